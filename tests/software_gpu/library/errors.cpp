#include "errors.h"

#include <cstdarg>
#include <cstdio>

#include "devices.h"
#include "settings.h"

namespace {

thread_local cudaError_t last_error = cudaSuccess;
// The text of the last failure of each thread: cudaGetErrorString(code) returns it, as torch asks right after a failure.
thread_local cudaError_t text_of = cudaSuccess;
thread_local std::string text_of_last;

const char *name_of(cudaError_t code) {
  switch (code) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
    case cudaErrorInvalidResourceHandle: return "cudaErrorInvalidResourceHandle";
    case cudaErrorIllegalState: return "cudaErrorIllegalState";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorIllegalAddress: return "cudaErrorIllegalAddress";
    case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
    case cudaErrorLaunchOutOfResources: return "cudaErrorLaunchOutOfResources";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorStreamCaptureUnsupported: return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated: return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorStreamCaptureUnmatched: return "cudaErrorStreamCaptureUnmatched";
    case cudaErrorStreamCaptureUnjoined: return "cudaErrorStreamCaptureUnjoined";
    case cudaErrorStreamCaptureIsolation: return "cudaErrorStreamCaptureIsolation";
    case cudaErrorStreamCaptureWrongThread: return "cudaErrorStreamCaptureWrongThread";
    case cudaErrorCapturedEvent: return "cudaErrorCapturedEvent";
    default: return "cudaErrorUnknown";
  }
}

}  // namespace

cudaError_t fail(cudaError_t code, const std::string &text) {
  last_error = text_of = code;
  text_of_last = text;
  log_call("%s: %s", name_of(code), text.c_str());
  return code;
}

void log_call(const char *format, ...) {
  if (!settings().log) return;
  std::fprintf(stderr, "software GPU, device %d: ", current_device());
  va_list values;
  va_start(values, format);
  std::vfprintf(stderr, format, values);
  va_end(values);
  std::fputc('\n', stderr);
}

CUDA_CALL cudaGetLastError() {
  cudaError_t code = last_error;
  last_error = cudaSuccess;
  return code;
}

CUDA_CALL cudaPeekAtLastError() { return last_error; }

extern "C" __attribute__((visibility("default"))) const char *cudaGetErrorName(cudaError_t code) {
  return name_of(code);
}

extern "C" __attribute__((visibility("default"))) const char *cudaGetErrorString(cudaError_t code) {
  thread_local std::string answer;
  answer = name_of(code);
  // torch looks for these words, to raise an OutOfMemoryError or to tell what a capture forbids.
  if (code == cudaErrorMemoryAllocation) answer = "out of memory";
  if (code == text_of && !text_of_last.empty()) answer += ": " + text_of_last;
  return answer.c_str();
}
