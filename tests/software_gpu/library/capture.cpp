#include "capture.h"

#include <algorithm>
#include <utility>

#include "counters.h"
#include "devices.h"
#include "errors.h"

namespace {

thread_local cudaStreamCaptureMode mode_of_thread = cudaStreamCaptureModeGlobal;
unsigned long long captures = 0;
std::set<Capture *> active;

cudaGraphNode_t handle_of(size_t node) { return reinterpret_cast<cudaGraphNode_t>(node + 1); }

size_t node_of(cudaGraphNode_t handle) { return reinterpret_cast<size_t>(handle) - 1; }

/// Marks the nodes that come before `tail`, and those of `tail`.
std::vector<bool> before(const Graph &graph, const std::vector<size_t> &tail) {
  std::vector<bool> found(graph.nodes.size());
  std::vector<size_t> left = tail;
  while (!left.empty()) {
    size_t node = left.back();
    left.pop_back();
    if (found[node]) continue;
    found[node] = true;
    const std::vector<size_t> &after = graph.nodes[node].after;
    left.insert(left.end(), after.begin(), after.end());
  }
  return found;
}

}  // namespace

cudaError_t invalidate(Stream *stream, cudaError_t code, const std::string &text) {
  if (stream->capture) stream->capture->invalid = true;
  return fail(code, text);
}

bool forbidden_by_capture(const char *call) {
  if (mode_of_thread == cudaStreamCaptureModeRelaxed) return false;
  bool forbidden = false;
  for (Capture *capture : active) {
    bool mine = capture->thread == std::this_thread::get_id();
    bool counts = mine ? capture->mode != cudaStreamCaptureModeRelaxed
                       : mode_of_thread == cudaStreamCaptureModeGlobal && capture->mode == cudaStreamCaptureModeGlobal;
    capture->invalid = capture->invalid || counts;
    forbidden = forbidden || counts;
  }
  if (forbidden) fail(cudaErrorStreamCaptureUnsupported, std::string(call) + " while a stream is captured");
  return forbidden;
}

void join_capture(Stream *stream, const std::shared_ptr<Capture> &capture) {
  stream->capture = capture;
  stream->tail.clear();
}

void submit(Lock &lock, Stream *stream, Work work) {
  work.device = stream->device;
  if (!work.kernel.empty() && stream->window.num_bytes > 0) count(Counter::kernels_in_window, stream->device);
  if (stream->capture == nullptr) {
    enqueue(lock, stream, {.work = std::make_shared<Work>(std::move(work))});
    return;
  }
  std::vector<Node> &nodes = stream->capture->graph->nodes;
  nodes.push_back({std::move(work), std::exchange(stream->tail, {nodes.size()})});
  count(Counter::captured_operations, stream->device);
}

CUDA_CALL cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode *mode) {
  std::swap(*mode, mode_of_thread);
  return cudaSuccess;
}

CUDA_CALL cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  Lock lock;
  if (handle == nullptr || handle == cudaStreamLegacy)
    return fail(cudaErrorStreamCaptureUnsupported, "cudaStreamBeginCapture on the default stream");
  Stream *stream = stream_of(handle);
  if (stream->capture) return fail(cudaErrorIllegalState, "cudaStreamBeginCapture: the stream is captured already");
  stream->capture = std::make_shared<Capture>(
      Capture{++captures, mode, std::this_thread::get_id(), stream, new Graph});
  stream->tail.clear();
  active.insert(stream->capture.get());
  log_call("begin the capture of stream %p", static_cast<void *>(stream));
  return cudaSuccess;
}

CUDA_CALL cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t *graph) {
  Lock lock;
  Stream *stream = stream_of(handle);
  *graph = nullptr;
  std::shared_ptr<Capture> capture = stream->capture;
  if (!capture) return fail(cudaErrorIllegalState, "cudaStreamEndCapture: the stream is not captured");
  if (capture->origin != stream) return fail(cudaErrorStreamCaptureUnmatched, "cudaStreamEndCapture of a joined stream");
  if (capture->mode != cudaStreamCaptureModeRelaxed && capture->thread != std::this_thread::get_id())
    return fail(cudaErrorStreamCaptureWrongThread, "cudaStreamEndCapture on another thread than the begin");
  std::vector<bool> joined = before(*capture->graph, stream->tail);
  bool all_joined = std::find(joined.begin(), joined.end(), false) == joined.end();
  for (Stream *other : all_streams())
    if (other->capture == capture) other->capture = nullptr;
  capture->active = false;
  active.erase(capture.get());
  log_call("captured %zu operations", capture->graph->nodes.size());
  if (capture->invalid || !all_joined) {
    delete capture->graph;
    return capture->invalid ? fail(cudaErrorStreamCaptureInvalidated, "cudaStreamEndCapture")
                            : fail(cudaErrorStreamCaptureUnjoined, "cudaStreamEndCapture: work on another stream");
  }
  *graph = reinterpret_cast<cudaGraph_t>(capture->graph);
  return cudaSuccess;
}

CUDA_CALL cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus *status) {
  Lock lock;
  const std::shared_ptr<Capture> &capture = stream_of(handle)->capture;
  *status = !capture           ? cudaStreamCaptureStatusNone
            : capture->invalid ? cudaStreamCaptureStatusInvalidated
                               : cudaStreamCaptureStatusActive;
  return cudaSuccess;
}

CUDA_CALL cudaStreamGetCaptureInfo(cudaStream_t handle, cudaStreamCaptureStatus *status, unsigned long long *number,
                                   cudaGraph_t *graph, const cudaGraphNode_t **after, const cudaGraphEdgeData **edges,
                                   size_t *how_many) {
  cudaStreamIsCapturing(handle, status);
  Lock lock;
  Stream *stream = stream_of(handle);
  thread_local std::vector<cudaGraphNode_t> nodes;  // the caller reads them before the thread's next call
  nodes.clear();
  if (stream->capture)
    for (size_t node : stream->tail) nodes.push_back(handle_of(node));
  if (number) *number = stream->capture ? stream->capture->number : 0;
  if (graph) *graph = stream->capture ? reinterpret_cast<cudaGraph_t>(stream->capture->graph) : nullptr;
  if (after) *after = nodes.data();
  if (edges) *edges = nullptr;
  if (how_many) *how_many = nodes.size();
  return cudaSuccess;
}

CUDA_CALL cudaStreamUpdateCaptureDependencies(cudaStream_t handle, cudaGraphNode_t *nodes, const cudaGraphEdgeData *,
                                              size_t how_many, unsigned flags) {
  Lock lock;
  Stream *stream = stream_of(handle);
  if (!stream->capture) return fail(cudaErrorIllegalState, "cudaStreamUpdateCaptureDependencies without a capture");
  if (flags == cudaStreamSetCaptureDependencies) stream->tail.clear();
  for (size_t i = 0; i < how_many; i++) stream->tail.push_back(node_of(nodes[i]));
  return cudaSuccess;
}
