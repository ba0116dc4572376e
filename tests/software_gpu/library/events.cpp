// Events. Each record is a `Mark` of its own: a stream that waits for an event waits for the record that was the last
// when it began, however often the event is recorded afterwards.
#include <algorithm>
#include <memory>

#include "capture.h"
#include "counters.h"
#include "devices.h"
#include "errors.h"
#include "scheduler.h"

namespace {

struct Event {
  int device;
  std::shared_ptr<Mark> mark;        // null until the first record
  std::shared_ptr<Capture> capture;  // of the last record, if that was in a capture
  std::vector<size_t> tail;          // what it comes after there
};

Event *event_of(cudaEvent_t handle) { return reinterpret_cast<Event *>(handle); }

}  // namespace

CUDA_CALL cudaEventCreateWithFlags(cudaEvent_t *handle, unsigned) {
  *handle = reinterpret_cast<cudaEvent_t>(new Event{current_device(), nullptr, nullptr, {}});
  return cudaSuccess;
}

CUDA_CALL cudaEventCreate(cudaEvent_t *handle) { return cudaEventCreateWithFlags(handle, 0); }

CUDA_CALL cudaEventDestroy(cudaEvent_t handle) {
  delete event_of(handle);  // what waits for it keeps its mark
  return cudaSuccess;
}

CUDA_CALL cudaEventRecordWithFlags(cudaEvent_t handle, cudaStream_t stream_handle, unsigned flags) {
  Lock lock;
  Event *event = event_of(handle);
  Stream *stream = stream_of(stream_handle);
  if (event->device != stream->device)
    return fail(cudaErrorInvalidResourceHandle, "cudaEventRecord: event and stream are of two devices");
  if (stream->capture) {
    if (flags & cudaEventRecordExternal) return fail(cudaErrorNotSupported, "a record in a graph for the outside");
    event->capture = stream->capture;
    event->tail = stream->tail;
    return cudaSuccess;
  }
  if (cudaError_t error = check_device(stream->device)) return error;
  event->capture = nullptr;
  event->mark = std::make_shared<Mark>();
  count(Counter::event_records, stream->device);
  log_call("record event %p on stream %p", static_cast<void *>(event), static_cast<void *>(stream));
  enqueue(lock, stream, {.record = event->mark});
  return cudaSuccess;
}

CUDA_CALL cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return cudaEventRecordWithFlags(event, stream, 0); }

CUDA_CALL cudaStreamWaitEvent(cudaStream_t stream_handle, cudaEvent_t handle, unsigned flags) {
  Lock lock;
  Event *event = event_of(handle);
  Stream *stream = stream_of(stream_handle);
  if (flags & cudaEventWaitExternal) return fail(cudaErrorNotSupported, "a wait in a graph for the outside");
  if (event->capture && event->capture->active) {
    if (stream->capture == nullptr) join_capture(stream, event->capture);
    if (stream->capture != event->capture)
      return invalidate(stream, cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent: an event of another capture");
    for (size_t node : event->tail)
      if (std::find(stream->tail.begin(), stream->tail.end(), node) == stream->tail.end())
        stream->tail.push_back(node);
    return cudaSuccess;
  }
  if (event->capture) return fail(cudaErrorCapturedEvent, "cudaStreamWaitEvent: the event's capture is over");
  if (event->mark == nullptr) return cudaSuccess;  // never recorded: there is nothing to wait for
  if (stream->capture)
    return invalidate(stream, cudaErrorStreamCaptureIsolation, "cudaStreamWaitEvent: a capture waits for other work");
  if (cudaError_t error = check_device(stream->device)) return error;
  count(Counter::event_waits, stream->device);
  log_call("stream %p waits for event %p", static_cast<void *>(stream), static_cast<void *>(event));
  enqueue(lock, stream, {.wait = event->mark});
  return cudaSuccess;
}

CUDA_CALL cudaEventQuery(cudaEvent_t handle) {
  Lock lock;
  Event *event = event_of(handle);
  if (event->capture) return fail(cudaErrorCapturedEvent, "cudaEventQuery");
  if (forbidden_by_capture("cudaEventQuery")) return cudaErrorStreamCaptureUnsupported;
  count(Counter::event_queries, event->device);
  if (event->mark == nullptr) return cudaSuccess;
  if (!event->mark->happened) advance(lock, may_run_callbacks());  // a program that asks again and again gets on
  if (cudaError_t error = check_device(event->device)) return error;
  return event->mark->happened ? cudaSuccess : cudaErrorNotReady;
}

CUDA_CALL cudaEventSynchronize(cudaEvent_t handle) {
  Lock lock;
  Event *event = event_of(handle);
  if (event->capture) return fail(cudaErrorCapturedEvent, "cudaEventSynchronize");
  count(Counter::event_synchronizations, event->device);
  std::shared_ptr<Mark> mark = event->mark;
  int device = event->device;
  if (mark) advance_until(lock, [&] { return mark->happened; });
  return check_device(device);
}

CUDA_CALL cudaEventElapsedTime(float *milliseconds, cudaEvent_t from, cudaEvent_t to) {
  Lock lock;
  const std::shared_ptr<Mark> &begin = event_of(from)->mark, &end = event_of(to)->mark;
  if (!begin || !end) return fail(cudaErrorInvalidResourceHandle, "cudaEventElapsedTime: an event was not recorded");
  if (!begin->happened || !end->happened) return cudaErrorNotReady;
  *milliseconds = static_cast<float>(end->milliseconds - begin->milliseconds);
  return cudaSuccess;
}
