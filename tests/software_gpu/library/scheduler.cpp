#include "scheduler.h"

#include <dlfcn.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>

#include "control.h"
#include "devices.h"
#include "errors.h"

std::mutex Lock::mutex;
std::condition_variable Lock::changed;

namespace {

// How often the schedule turns: one in so many steps gives a stream another priority, one in so many calls does work.
constexpr uint32_t kStepsOfPriority = 12, kCallsWithoutWork = 12, kStepsInCall = 12;

std::mt19937 generator(settings().seed);
std::vector<Stream *> streams;
Stream *default_streams[kMostDevices];

bool can_run(const Work &work, bool callbacks) { return callbacks || !work.callback; }

std::vector<size_t> ready_nodes(const Replay &replay, bool callbacks) {
  std::vector<size_t> ready;
  for (size_t i = 0; i < replay.nodes->size(); i++) {
    const Node &node = (*replay.nodes)[i];
    bool can = !replay.done[i] && can_run(node.work, callbacks) && !device(node.work.device).held;
    for (size_t before : node.after) can = can && replay.done[before];
    if (can) ready.push_back(i);
  }
  return ready;
}

bool can_go_on(const Stream &stream, bool callbacks) {
  if (stream.busy || stream.steps.empty() || device(stream.device).held) return false;
  const Step &step = stream.steps.front();
  if (step.wait) return step.wait->happened;
  if (step.work) return can_run(*step.work, callbacks);
  if (!step.replay) return true;
  if (step.replay->last && !step.replay->last->happened) return false;
  return step.replay->left == 0 || !ready_nodes(*step.replay, callbacks).empty();
}

/// Does the work, unless its device does not work; a failing kernel is where it stops working.
void run(Lock &lock, Stream *stream, const Work &work, bool fails) {
  Device &on = device(work.device);
  if (on.error != cudaSuccess) return;
  if (fails) {
    on.error = cudaErrorLaunchFailure;
    on.reason = "unspecified launch failure in " + work.kernel;
    return;
  }
  if (!work.callback) return work.run();
  stream->busy = true;
  lock.held.unlock();
  work.run();
  lock.held.lock();
  stream->busy = false;
}

void do_step(Lock &lock, Stream *stream, bool callbacks) {
  Step step = stream->steps.front();
  if (step.replay && step.replay->left > 0) {
    Replay &replay = *step.replay;
    std::vector<size_t> ready = ready_nodes(replay, callbacks);
    size_t chosen = ready[below(static_cast<uint32_t>(ready.size()))];
    replay.done[chosen] = true;
    replay.left--;
    run(lock, stream, (*replay.nodes)[chosen].work, replay.fails[chosen]);
    if (replay.left > 0) return;
  }
  if (step.replay) step.replay->finished->happened = true;
  stream->steps.pop_front();
  if (step.work) run(lock, stream, *step.work, step.fails);
  if (step.record) {
    step.record->happened = true;
    step.record->milliseconds = now_in_milliseconds();
  }
}

}  // namespace

uint32_t below(uint32_t bound) { return static_cast<uint32_t>(generator()) % bound; }

double now_in_milliseconds() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

Stream *new_stream(int device) {
  Stream *stream = new Stream;  // never freed: a handle that is used after its end is a bug to be seen, not a crash
  stream->device = device;
  stream->priority = static_cast<uint32_t>(generator());
  streams.push_back(stream);
  return stream;
}

Stream *stream_of(cudaStream_t handle) {
  if (handle != nullptr && handle != cudaStreamLegacy && handle != cudaStreamPerThread)
    return reinterpret_cast<Stream *>(handle);
  Stream *&stream = default_streams[current_device()];
  if (stream == nullptr) stream = new_stream(current_device());
  return stream;
}

const std::vector<Stream *> &all_streams() { return streams; }

bool may_run_callbacks() {
  // A thread without Python's lock would wait for it here, maybe for a thread that waits for a lock of this thread.
  static int (*has_lock)() = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
  return has_lock == nullptr || has_lock() != 0;
}

bool advance(Lock &lock, bool callbacks) {
  Stream *chosen = nullptr;
  for (Stream *stream : streams)
    if (can_go_on(*stream, callbacks) && (chosen == nullptr || stream->priority > chosen->priority)) chosen = stream;
  if (chosen == nullptr) return false;
  if (below(kStepsOfPriority) == 0) chosen->priority = static_cast<uint32_t>(generator());
  do_step(lock, chosen, callbacks);
  lock.notify();
  return true;
}

void advance_a_little(Lock &lock) {
  if (below(kCallsWithoutWork) != 0) return;
  for (uint32_t left = below(kStepsInCall); left > 0; left--)
    if (!advance(lock, false)) return;
}

void wait_for_others(Lock &lock) {
  bool hope = false;
  for (int i = 0; i < settings().devices; i++) hope = hope || device(i).held;
  for (const Stream *stream : streams) hope = hope || stream->busy;
  if (!hope) {
    std::fprintf(stderr, "software GPU: a stream waits for something that never comes\n");
    std::abort();
  }
  lock.wait();
}

void drain(Lock &lock, const Stream *stream) {
  // Until all that is enqueued now is done: another thread may go on enqueuing.
  auto end = std::make_shared<Mark>();
  const_cast<Stream *>(stream)->steps.push_back({.record = end});
  advance_until(lock, [&] { return end->happened; });
}

void drain_device(Lock &lock, int device) {
  std::vector<std::shared_ptr<Mark>> ends;
  for (Stream *stream : streams)
    if (stream->device == device && !stream->idle()) {
      ends.push_back(std::make_shared<Mark>());
      stream->steps.push_back({.record = ends.back()});
    }
  for (const auto &end : ends) advance_until(lock, [&] { return end->happened; });
}

bool take_kernel_number(int number) {
  Device &on = device(number);
  return ++on.kernels == on.failing_kernel;
}

bool refuses_kernels(int number, int how_many) {
  Device &on = device(number);
  bool refuses = on.kernels < on.refused_kernel && on.refused_kernel <= on.kernels + how_many;
  if (refuses) on.kernels += how_many;
  return refuses;
}

void enqueue(Lock &lock, Stream *stream, Step step) {
  if (step.work && !step.work->kernel.empty()) step.fails = take_kernel_number(stream->device);
  stream->steps.push_back(std::move(step));
  lock.notify();
  advance_a_little(lock);
}

/// Begins a schedule of its own: after this the same calls do the same work in the same order.
CONTROL void software_gpu_seed(unsigned seed) {
  Lock lock;
  generator.seed(seed);
  for (Stream *stream : streams) stream->priority = static_cast<uint32_t>(generator());
}
