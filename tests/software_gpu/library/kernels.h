// Kernels of torch that the machine can run, found by their names.
#pragma once

#include <cuda_runtime_api.h>

#include <functional>
#include <string>

#include "scheduler.h"

/// What a launch of a kernel does on a device. Pointers are checked when it runs: another device's memory is an error.
using Task = std::function<void(int device)>;

/// Returns what a launch does, given the demangled name of the kernel and its arguments, which are read at once; null if
/// nothing here knows the kernel.
Task task_of(const std::string &kernel, void **arguments);

/// Breaks a device whose kernel touches memory that is not its own. Returns whether all is well.
bool check_access(const std::string &kernel, int device, const void *address, size_t bytes);

/// Launches a kernel on a stream, after the checks that each launch has.
cudaError_t submit_kernel(Lock &lock, Stream *stream, Work work);
