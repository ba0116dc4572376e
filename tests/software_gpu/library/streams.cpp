// The calls for streams. All streams are like those that torch makes: the default stream does not wait for them.
#include <cstring>

#include "capture.h"
#include "counters.h"
#include "devices.h"
#include "errors.h"
#include "scheduler.h"

CUDA_CALL cudaStreamCreateWithPriority(cudaStream_t *handle, unsigned, int) {
  Lock lock;
  *handle = reinterpret_cast<cudaStream_t>(new_stream(current_device()));
  return cudaSuccess;
}

CUDA_CALL cudaStreamCreateWithFlags(cudaStream_t *handle, unsigned flags) {
  return cudaStreamCreateWithPriority(handle, flags, 0);
}

CUDA_CALL cudaStreamCreate(cudaStream_t *handle) { return cudaStreamCreateWithPriority(handle, 0, 0); }

CUDA_CALL cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }  // its work goes on, and the handle stays known

CUDA_CALL cudaStreamGetPriority(cudaStream_t, int *priority) {
  *priority = 0;
  return cudaSuccess;
}

CUDA_CALL cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}

CUDA_CALL cudaStreamQuery(cudaStream_t handle) {
  Lock lock;
  Stream *stream = stream_of(handle);
  if (stream->capture) return invalidate(stream, cudaErrorStreamCaptureUnsupported, "cudaStreamQuery of a capture");
  if (cudaError_t error = check_device(stream->device)) return error;
  advance(lock, may_run_callbacks());  // a program that asks again and again gets on
  if (cudaError_t error = check_device(stream->device)) return error;
  return stream->idle() ? cudaSuccess : cudaErrorNotReady;
}

CUDA_CALL cudaStreamSynchronize(cudaStream_t handle) {
  Lock lock;
  Stream *stream = stream_of(handle);
  if (stream->capture)
    return invalidate(stream, cudaErrorStreamCaptureUnsupported, "cudaStreamSynchronize of a capture");
  count(Counter::stream_synchronizations, stream->device);
  log_call("synchronize stream %p", static_cast<void *>(stream));
  drain(lock, stream);
  return check_device(stream->device);
}

CUDA_CALL cudaDeviceSynchronize() {
  Lock lock;
  if (forbidden_by_capture("cudaDeviceSynchronize")) return cudaErrorStreamCaptureUnsupported;
  count(Counter::device_synchronizations, current_device());
  drain_device(lock, current_device());
  return check_device(current_device());
}

CUDA_CALL cudaStreamSetAttribute(cudaStream_t handle, cudaStreamAttrID name, const cudaStreamAttrValue *value) {
  if (name != cudaLaunchAttributeAccessPolicyWindow) return fail(cudaErrorNotSupported, "this attribute of a stream");
  int largest = 0;
  cudaDeviceGetAttribute(&largest, cudaDevAttrMaxAccessPolicyWindowSize, current_device());
  const cudaAccessPolicyWindow &window = value->accessPolicyWindow;
  if (window.num_bytes > static_cast<size_t>(largest) || window.hitRatio < 0 || window.hitRatio > 1)
    return fail(cudaErrorInvalidValue, "an access policy window that is too large, or a hit ratio not from 0 to 1");
  Lock lock;
  stream_of(handle)->window = window;
  return cudaSuccess;
}

CUDA_CALL cudaStreamGetAttribute(cudaStream_t handle, cudaStreamAttrID name, cudaStreamAttrValue *value) {
  if (name != cudaLaunchAttributeAccessPolicyWindow) return fail(cudaErrorNotSupported, "this attribute of a stream");
  Lock lock;
  std::memset(value, 0, sizeof *value);
  value->accessPolicyWindow = stream_of(handle)->window;
  return cudaSuccess;
}
