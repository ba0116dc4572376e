// Copies and fills. A copy that touches memory of the host which CUDA does not know (*pageable*) goes through memory of
// the driver's own: to a device it returns once the bytes are read, though not yet there; from a device it waits.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "capture.h"
#include "counters.h"
#include "devices.h"
#include "errors.h"
#include "memory.h"
#include "scheduler.h"

namespace {

/// Rows of bytes; a plain copy is one row.
struct Rows {
  size_t width, height = 1, to_pitch = 0, from_pitch = 0;

  size_t extent(size_t pitch) const { return height == 0 ? 0 : pitch * (height - 1) + width; }
};

void count_copy(int from, int to, int device, size_t bytes) {
  Counter copies = Counter::copies_within_host, moved = Counter::bytes_within_host;
  if (from < 0 && to >= 0) copies = Counter::copies_host_to_device, moved = Counter::bytes_host_to_device;
  if (from >= 0 && to < 0) copies = Counter::copies_device_to_host, moved = Counter::bytes_device_to_host;
  if (from >= 0 && from == to) copies = Counter::copies_within_device, moved = Counter::bytes_within_device;
  if (from >= 0 && to >= 0 && from != to)
    copies = Counter::copies_between_devices, moved = Counter::bytes_between_devices;
  count(copies, device);
  count(moved, device, static_cast<long long>(bytes));
}

void copy_rows(char *to, const char *from, const Rows &rows) {
  for (size_t i = 0; i < rows.height; i++)
    std::memmove(to + i * rows.to_pitch, from + i * rows.from_pitch, rows.width);
}

/// Whether a copy may touch these bytes: memory of any device and of the host, but not beyond the end of a block.
bool in_one_block(const void *address, size_t bytes) {
  int owner = owner_of(address);
  return owner < 0 || usable(address, bytes, owner);
}

cudaError_t copy(void *to, const void *from, Rows rows, cudaStream_t handle, bool wait) {
  Lock lock;
  Stream *stream = stream_of(handle);
  if (cudaError_t error = check_device(stream->device)) return error;
  int target = owner_of(to), source = owner_of(from);
  bool pageable = target == kPageable || source == kPageable;
  if (pageable && stream->capture)
    return invalidate(stream, cudaErrorStreamCaptureUnsupported, "a copy of pageable memory in a capture");
  if (!in_one_block(to, rows.extent(rows.to_pitch)) || !in_one_block(from, rows.extent(rows.from_pitch)))
    return fail(cudaErrorInvalidValue, "a copy beyond the end of a block of memory");
  if (stream->capture == nullptr) count_copy(source, target, stream->device, rows.width * rows.height);
  log_call("copy of %zu bytes from %d to %d on stream %p", rows.width * rows.height, source, target,
           static_cast<void *>(stream));
  char *writes = static_cast<char *>(to);
  if (source == kPageable && target >= 0) {
    drain(lock, stream);  // the driver reads the bytes once it is the copy's turn
    auto bytes = std::make_shared<std::vector<char>>(rows.width * rows.height);
    Rows into{rows.width, rows.height, rows.width, rows.from_pitch};
    copy_rows(bytes->data(), static_cast<const char *>(from), into);
    Rows out{rows.width, rows.height, rows.to_pitch, rows.width};
    submit(lock, stream, {.run = [=] { copy_rows(writes, bytes->data(), out); }});
  } else {
    const char *reads = static_cast<const char *>(from);
    submit(lock, stream, {.run = [=] { copy_rows(writes, reads, rows); }});
    if (target == kPageable) drain(lock, stream);
  }
  if (wait && (target < 0 || source < 0)) drain(lock, stream);  // one between devices is enqueued all the same
  return check_device(stream->device);
}

cudaError_t fill(void *to, int value, size_t bytes, cudaStream_t handle) {
  Lock lock;
  Stream *stream = stream_of(handle);
  if (cudaError_t error = check_device(stream->device)) return error;
  if (!usable(to, bytes, stream->device)) return fail(cudaErrorInvalidValue, "cudaMemset of other memory");
  if (stream->capture == nullptr) count(Counter::memsets, stream->device);
  submit(lock, stream, {.run = [=] { std::memset(to, value, bytes); }});
  return cudaSuccess;
}

}  // namespace

CUDA_CALL cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, {bytes}, stream, false);
}

CUDA_CALL cudaMemcpyPeerAsync(void *to, int, const void *from, int, size_t bytes, cudaStream_t stream) {
  return copy(to, from, {bytes}, stream, false);
}

CUDA_CALL cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch, size_t width, size_t height,
                            cudaMemcpyKind, cudaStream_t stream) {
  return copy(to, from, {width, height, to_pitch, from_pitch}, stream, false);
}

CUDA_CALL cudaMemcpy(void *to, const void *from, size_t bytes, cudaMemcpyKind) {
  if (Lock lock; forbidden_by_capture("cudaMemcpy")) return cudaErrorStreamCaptureUnsupported;
  return copy(to, from, {bytes}, nullptr, true);
}

CUDA_CALL cudaMemsetAsync(void *to, int value, size_t bytes, cudaStream_t stream) {
  return fill(to, value, bytes, stream);
}

CUDA_CALL cudaMemset(void *to, int value, size_t bytes) { return fill(to, value, bytes, nullptr); }

CUDA_CALL cudaLaunchHostFunc(cudaStream_t handle, cudaHostFn_t function, void *argument) {
  Lock lock;
  submit(lock, stream_of(handle), {.run = [=] { function(argument); }, .callback = true});
  return cudaSuccess;
}

CUDA_CALL cudaStreamAddCallback(cudaStream_t handle, cudaStreamCallback_t function, void *argument, unsigned) {
  Lock lock;
  submit(lock, stream_of(handle), {.run = [=] { function(handle, cudaSuccess, argument); }, .callback = true});
  return cudaSuccess;
}
