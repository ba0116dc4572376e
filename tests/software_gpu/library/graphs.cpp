// Graphs: instantiated, launched, and the objects that they keep alive. The nodes of a launch run in any order that
// their dependencies allow, on whatever device they were captured on.
#include "capture.h"
#include "counters.h"
#include "devices.h"
#include "errors.h"

namespace {

struct Executable {
  Nodes nodes;
  std::vector<std::shared_ptr<HeldByGraph>> held;
  std::shared_ptr<Mark> last;  // of the last launch
};

using Holder = std::shared_ptr<HeldByGraph>;

Graph *graph_of(cudaGraph_t handle) { return reinterpret_cast<Graph *>(handle); }

Executable *executable_of(cudaGraphExec_t handle) { return reinterpret_cast<Executable *>(handle); }

}  // namespace

CUDA_CALL cudaGraphInstantiateWithFlags(cudaGraphExec_t *handle, cudaGraph_t graph, unsigned long long) {
  const Graph *from = graph_of(graph);
  auto nodes = std::make_shared<const std::vector<Node>>(from->nodes);
  *handle = reinterpret_cast<cudaGraphExec_t>(new Executable{nodes, from->held, nullptr});
  return cudaSuccess;
}

CUDA_CALL cudaGraphLaunch(cudaGraphExec_t handle, cudaStream_t stream_handle) {
  Lock lock;
  Executable *executable = executable_of(handle);
  Stream *stream = stream_of(stream_handle);
  if (stream->capture) return invalidate(stream, cudaErrorNotSupported, "a graph in a graph");
  for (const Node &node : *executable->nodes)
    if (cudaError_t error = check_device(node.work.device)) return error;
  count(Counter::graph_launches, stream->device);
  int kernels[kMostDevices] = {};
  for (const Node &node : *executable->nodes) kernels[node.work.device] += !node.work.kernel.empty();
  for (int i = 0; i < settings().devices; i++)
    if (refuses_kernels(i, kernels[i]))
      return fail(cudaErrorLaunchOutOfResources, "too many resources requested for launch of a graph");
  size_t size = executable->nodes->size();
  auto replay = std::make_shared<Replay>(Replay{executable->nodes, std::vector<bool>(size), size,
                                                std::vector<bool>(size), executable->last, std::make_shared<Mark>()});
  for (size_t i = 0; i < size; i++) {
    const Work &work = (*executable->nodes)[i].work;
    if (!work.kernel.empty()) replay->fails[i] = take_kernel_number(work.device);
  }
  executable->last = replay->finished;
  log_call("launch a graph of %zu nodes on stream %p", size, static_cast<void *>(stream));
  enqueue(lock, stream, {.replay = replay});
  return cudaSuccess;
}

CUDA_CALL cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t *nodes, size_t *how_many) {
  if (nodes != nullptr) return fail(cudaErrorNotSupported, "the nodes of a graph");
  *how_many = graph_of(graph)->nodes.size();
  return cudaSuccess;
}

CUDA_CALL cudaGraphDestroy(cudaGraph_t graph) {
  delete graph_of(graph);
  return cudaSuccess;
}

CUDA_CALL cudaGraphExecDestroy(cudaGraphExec_t handle) {
  delete executable_of(handle);  // launches that are still to run keep their nodes
  return cudaSuccess;
}

CUDA_CALL cudaUserObjectCreate(cudaUserObject_t *handle, void *object, cudaHostFn_t destroy, unsigned, unsigned) {
  *handle = reinterpret_cast<cudaUserObject_t>(new Holder(new HeldByGraph{object, destroy}));
  return cudaSuccess;
}

CUDA_CALL cudaUserObjectRelease(cudaUserObject_t handle, unsigned) {
  delete reinterpret_cast<Holder *>(handle);
  return cudaSuccess;
}

CUDA_CALL cudaGraphRetainUserObject(cudaGraph_t graph, cudaUserObject_t handle, unsigned, unsigned flags) {
  Holder *holder = reinterpret_cast<Holder *>(handle);
  graph_of(graph)->held.push_back(*holder);
  if (flags & cudaGraphUserObjectMove) delete holder;
  return cudaSuccess;
}

CUDA_CALL cudaDeviceGetGraphMemAttribute(int, cudaGraphMemAttributeType, void *value) {
  *static_cast<unsigned long long *>(value) = 0;  // graphs allocate nothing
  return cudaSuccess;
}

CUDA_CALL cudaDeviceSetGraphMemAttribute(int, cudaGraphMemAttributeType, void *) { return cudaSuccess; }
