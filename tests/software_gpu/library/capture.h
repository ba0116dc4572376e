// Captures: what is enqueued on the streams of a capture becomes a graph, and what a capture forbids is an error.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "scheduler.h"

/// Something that lives as long as the graphs that hold it.
struct HeldByGraph {
  void *object;
  cudaHostFn_t destroy;
  ~HeldByGraph() { destroy(object); }
};

struct Graph {
  std::vector<Node> nodes;
  std::vector<std::shared_ptr<HeldByGraph>> held;
};

struct Capture {
  unsigned long long number;
  cudaStreamCaptureMode mode;
  std::thread::id thread;
  Stream *origin;
  Graph *graph;
  bool active = true, invalid = false;
};

/// Invalidates a stream's capture and fails.
cudaError_t invalidate(Stream *stream, cudaError_t code, const std::string &text);

/// Returns whether a capture forbids a call that may wait for other work, after noting the error and invalidating it.
bool forbidden_by_capture(const char *call);

/// Lets a stream take part in a capture of another one.
void join_capture(Stream *stream, const std::shared_ptr<Capture> &capture);

/// Enqueues work on a stream, or makes it a node of the graph that the stream is captured in.
void submit(Lock &lock, Stream *stream, Work work);
