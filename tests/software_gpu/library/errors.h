// Errors as the CUDA runtime reports them: a code, kept for each thread until it is asked for; and a text that says more.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#define CUDA_CALL extern "C" __attribute__((visibility("default"))) cudaError_t

/// Returns `code` after noting it as the thread's last error. The text is part of what torch raises.
cudaError_t fail(cudaError_t code, const std::string &text);

/// Writes a line on stderr if SWGPU_LOG is set.
void log_call(const char *format, ...) __attribute__((format(printf, 1, 2)));
