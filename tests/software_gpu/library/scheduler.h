// Streams, and which of them goes on.
//
// The devices have no threads. Their work is done when the program waits, on the thread that waits: again and again one
// of the streams that can go on is chosen and its first step done, until what is waited for has happened. Which stream
// goes first is random, with *priorities* that seldom change (as in probabilistic concurrency testing): now and then one
// stream runs far ahead of another, or far behind, as a missing synchronisation needs it to be seen. Sometimes work is
// also done in calls that do not wait. The choice depends on SWGPU_SEED and on the calls alone, never on time.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

struct Capture;

/// All state of the machine has one lock. Work of `Work::callback` runs without it.
struct Lock {
  Lock() : held(mutex) {}
  void wait() { changed.wait(held); }
  void notify() { changed.notify_all(); }

  static std::mutex mutex;
  static std::condition_variable changed;
  std::unique_lock<std::mutex> held;
};

/// Something to do on a device.
struct Work {
  std::function<void()> run;
  int device = 0;
  std::string kernel = {};  // the kernel's name; empty for other work
  bool callback = false;    // runs code of the program, which may need Python's lock
};

/// A point in the work of a stream: what an event stands for after a record.
struct Mark {
  bool happened = false;
  double milliseconds = 0;
};

/// Work in a graph; it may begin when that of all nodes of `after` is done.
struct Node {
  Work work;
  std::vector<size_t> after;
};

using Nodes = std::shared_ptr<const std::vector<Node>>;

/// One launch of a graph.
struct Replay {
  Nodes nodes;
  std::vector<bool> done;
  size_t left;
  std::vector<bool> fails;               // the nodes that fail
  std::shared_ptr<Mark> last, finished;  // of the launch before, as launches of one graph never overlap; and of this one
};

/// What a stream has to do next: exactly one of these is set.
struct Step {
  std::shared_ptr<Work> work = nullptr;
  std::shared_ptr<Mark> record = nullptr;
  std::shared_ptr<Mark> wait = nullptr;
  std::shared_ptr<Replay> replay = nullptr;
  bool fails = false;
};

struct Stream {
  int device = 0;
  std::deque<Step> steps = {};
  uint32_t priority = 0;
  bool busy = false;  // a callback runs
  cudaAccessPolicyWindow window = {};
  std::shared_ptr<Capture> capture = nullptr;
  std::vector<size_t> tail = {};  // the nodes of the capture that the stream's next node comes after

  bool idle() const { return steps.empty() && !busy; }
};

/// Returns a new stream, or the stream that a handle means: 0 is the default stream of the current device.
Stream *new_stream(int device);
Stream *stream_of(cudaStream_t handle);
const std::vector<Stream *> &all_streams();

/// Does a step of a stream that can go on; returns false if there is none. Callbacks only if they are allowed.
bool advance(Lock &lock, bool callbacks);

/// Returns whether the thread may wait for a callback: one that has Python's lock, or a process without Python.
bool may_run_callbacks();

/// Does some work or none: it is called where a real device might do so.
void advance_a_little(Lock &lock);

/// Goes on until a condition holds.
template <typename Condition>
void advance_until(Lock &lock, Condition holds);

/// Goes on until a stream, or all of a device, has nothing left to do.
void drain(Lock &lock, const Stream *stream);
void drain_device(Lock &lock, int device);

/// Enqueues a step; a work step of a kernel gets its number here, and with it its failure.
void enqueue(Lock &lock, Stream *stream, Step step);

/// Returns whether the next kernel of a device is the one that fails, and counts it.
bool take_kernel_number(int device);

/// Returns whether one of the next kernels of a device is one that it does not accept, and counts them then.
bool refuses_kernels(int device, int how_many);

/// A random number below a bound.
uint32_t below(uint32_t bound);

double now_in_milliseconds();

/// Called where nothing can go on: waits for another thread, or ends the process if there is nothing to wait for.
void wait_for_others(Lock &lock);

template <typename Condition>
void advance_until(Lock &lock, Condition holds) {
  while (!holds())
    if (!advance(lock, true)) wait_for_others(lock);
}
