// The ring of requests in flight, the stages that they pass, and how a request moves from one stage to the next.
//
// A request is a table of values, held as tensor handles of torch's C interface. Requests are numbered, and request n
// is in slot n % capacity of the ring while it is in flight. A slot's `progress` says which stage may run it next:
//
//     progress = n * (stages + 1) + stage        stage == stages: request n is finished and the slot is free
//
// Stage s is served by its workers (one thread each; more than one where the stage is replicated): worker j takes the
// requests n = j, j + replicas, ... and waits until the slot of its next request is at (n, s). It runs the stage's
// compiled code, a shared object that AOTInductor made, and moves the slot on to (n, s + 1). Stages hand over pointers:
// nothing is copied, and there is no lock. The number of slots limits the requests in flight.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <vector>

#include "aoti_code.h"
#include "layout.h"
#include "parking.h"

namespace stage_loop {

struct Request {
  explicit Request(size_t num_values, size_t num_stages) : values(num_values), times(2 * num_stages) {}
  Request(const Request&) = delete;

  std::vector<Owned> values;
  std::vector<int64_t> times;  // start and end of each stage, monotonic nanoseconds
  int failed_stage = -1;       // the inputs of a failed stage stay in `values`
  std::exception_ptr thrown;   // thrown by a stage in C++
  // Raised by a stage in Python. The pending request owns it. This and `is_wanted` need Python's lock.
  PyObject* error = nullptr;
  bool is_wanted = true;  // whether Python still holds the pending request
  std::atomic<bool> finished{false};
  Futex parked{0};
};

struct alignas(64) Worker {
  Futex parked{0};
  std::unique_ptr<Code> code;  // a container serves one thread at a time, so each worker has its own
};

struct Stage {
  std::vector<int> inputs;  // v >= 0: a value of the request; v < 0: weight -v - 1
  std::vector<Owned> weights;
  std::vector<int> outputs;
  std::vector<Order> orders;  // of the outputs
  std::vector<int> dead;  // values that no later stage needs
  std::vector<std::unique_ptr<Worker>> workers;
};

struct alignas(64) Slot {
  std::atomic<int64_t> progress{-1};
  std::shared_ptr<Request> request;
  Futex parked{0};  // for a submitter that waits until the slot is free
};

struct Pipe {
  std::vector<Stage> stages;
  std::vector<Slot> slots;
  std::vector<int> results;
  size_t num_values = 0;
  int64_t spin_ns = 0;
  int64_t next = 0;  // number of the next request; used with Python's lock held, and final once stopped
  std::atomic<bool> stopped{false};

  int64_t at(int64_t request, size_t stage) const { return request * int64_t(stages.size() + 1) + int64_t(stage); }
  Slot& slot(int64_t request) { return slots[request % slots.size()]; }
  bool is_free(int64_t request) {
    const int64_t before = request - int64_t(slots.size());
    return before < 0 || slot(request).progress.load(std::memory_order_acquire) >= at(before, stages.size());
  }
  // Threads do not survive a fork, and the locks that they held stay locked: a child must not touch the pipe.
  bool is_inherited() const { return getpid() != owner; }

  const pid_t owner = getpid();
};

// Returns the tensor that is input v of a stage.
inline Handle value_of(const Stage& stage, const Request& request, int v) {
  return (v < 0 ? stage.weights[size_t(-v - 1)] : request.values[size_t(v)]).get();
}

inline void ready_for(Pipe* pipe, int64_t request, size_t stage) {
  pipe->slot(request).progress.store(pipe->at(request, stage), std::memory_order_release);
  auto& workers = pipe->stages[stage].workers;
  wake_if_parked(&workers[request % workers.size()]->parked);
}

inline void finish(Pipe* pipe, int64_t number) {
  Slot& slot = pipe->slot(number);
  std::shared_ptr<Request> request = std::move(slot.request);
  slot.progress.store(pipe->at(number, pipe->stages.size()), std::memory_order_release);
  wake_if_parked(&slot.parked);
  request->finished.store(true, std::memory_order_release);
  wake_if_parked(&request->parked);
}

}  // namespace stage_loop
