// The stage threads of the local runtime, in C++ so that no stage ever waits for Python's global lock.
//
// A request is a table of values, held as tensor handles of torch's C interface. Requests are numbered, and request n
// lives in slot n % capacity of a ring while it is in flight. A slot's `progress` says which stage may run it next:
//
//     progress = n * (stages + 1) + stage        stage == stages: request n is finished and the slot is free
//
// Stage s is served by its workers (one thread each; more than one where the stage is replicated): worker j takes the
// requests n = j, j + replicas, ... and waits until the slot of its next request is at (n, s). It runs the stage's
// compiled code, a shared object that AOTInductor made, and moves the slot on to (n, s + 1). The handed-over values
// are pointers; nothing is copied and there is no lock. The number of slots bounds what is in flight.
//
// Waiting: spin for at most `spin_ns`, then park on a futex. Whoever moves a slot on wakes the next worker only if it is
// parked. The two sides agree as in Dekker's algorithm: one stores `progress` and then reads `parked`, the other stores
// `parked` and then reads `progress`, each with a full fence between.

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace {

using Handle = AtenTensorHandle;
using Futex = std::atomic<uint32_t>;
static_assert(sizeof(Futex) == sizeof(uint32_t), "a futex is one word");

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Sleeps while *word == 1; timeout_ns < 0 waits without end.
void futex_wait(Futex* word, int64_t timeout_ns) {
  timespec t{timeout_ns / 1000000000, timeout_ns % 1000000000};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 1, timeout_ns < 0 ? nullptr : &t, nullptr, 0);
}

void wake_if_parked(Futex* word) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (word->load(std::memory_order_relaxed) && word->exchange(0))
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Spins, then parks on `word`, until ready() or until the time is over; says whether it is ready.
template <typename Ready>
bool wait_until(Futex* word, const Ready& ready, int64_t spin_ns, int64_t timeout_ns) {
  if (ready()) return true;
  const int64_t start = now_ns();
  while (now_ns() - start < spin_ns) {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause_cpu();
    }
  }
  for (;;) {
    word->store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (ready()) return true;  // the word stays 1: others may be parked on it, and a wake too many does no harm
    const int64_t left = timeout_ns < 0 ? -1 : timeout_ns - (now_ns() - start);
    if (timeout_ns >= 0 && left <= 0) return false;
    futex_wait(word, left);
  }
}

// The C interface of a shared object that AOTInductor made (torch/csrc/inductor/aoti_runtime/interface.h).
struct Code {
  using Create = int32_t (*)(void**, size_t, const char*, const char*);
  using Delete = int32_t (*)(void*);
  using Run = int32_t (*)(void*, Handle*, size_t, Handle*, size_t, void*, void*);

  explicit Code(const char* path) {
    library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) throw std::runtime_error(dlerror());
    run = reinterpret_cast<Run>(symbol("AOTInductorModelContainerRunSingleThreaded"));
    remove = reinterpret_cast<Delete>(symbol("AOTInductorModelContainerDelete"));
    auto create = reinterpret_cast<Create>(symbol("AOTInductorModelContainerCreateWithDevice"));
    if (create(&container, 1, "cpu", nullptr)) throw std::runtime_error(std::string("cannot start ") + path);
  }
  Code(const Code&) = delete;
  ~Code() {
    if (container) remove(container);  // the library stays: kernels may have left thread-local state behind
  }
  void* symbol(const char* name) {
    void* found = dlsym(library, name);
    if (!found) throw std::runtime_error(dlerror());
    return found;
  }

  void* library = nullptr;
  void* container = nullptr;
  Run run = nullptr;
  Delete remove = nullptr;
};

struct Request {
  explicit Request(size_t num_values, size_t num_stages) : values(num_values), times(2 * num_stages) {}
  Request(const Request&) = delete;
  ~Request() {
    for (size_t i = 0; i < values.size(); ++i) drop(i);
  }
  void drop(size_t i) {
    if (values[i]) aoti_torch_delete_tensor_object(values[i]);
    values[i] = nullptr;
  }

  std::vector<Handle> values;
  std::vector<int64_t> times;  // start and end of each stage, monotonic nanoseconds
  int failed_stage = -1;       // its inputs are then kept in `values`
  PyObject* error = nullptr;   // what a stage in Python raised; whoever takes the result owns it
  std::atomic<bool> finished{false};
  Futex parked{0};
};

struct alignas(64) Worker {
  Futex parked{0};
  std::unique_ptr<Code> code;  // a container is for one thread at a time, so each worker has its own
};

struct Stage {
  std::vector<int> inputs;  // v >= 0: a value of the request; v < 0: weight -v - 1
  std::vector<Handle> weights;
  std::vector<int> outputs;
  std::vector<int> dead;  // values that no later stage needs
  std::vector<std::unique_ptr<Worker>> workers;
};

struct alignas(64) Slot {
  std::atomic<int64_t> progress{-1};
  std::shared_ptr<Request> request;
  Futex parked{0};  // a submitter that waits for the slot to be free
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
  ~Pipe() {
    for (Stage& stage : stages)
      for (Handle weight : stage.weights) aoti_torch_delete_tensor_object(weight);
  }
};

struct Ticket {
  std::shared_ptr<Request> request;
  PyObject* inputs;  // the caller's tensors: dropped with Python's lock held, never by a stage
};

void ready_for(Pipe* pipe, int64_t request, size_t stage) {
  pipe->slot(request).progress.store(pipe->at(request, stage), std::memory_order_release);
  auto& workers = pipe->stages[stage].workers;
  wake_if_parked(&workers[request % workers.size()]->parked);
}

void finish(Pipe* pipe, int64_t number) {
  Slot& slot = pipe->slot(number);
  std::shared_ptr<Request> request = std::move(slot.request);
  slot.progress.store(pipe->at(number, pipe->stages.size()), std::memory_order_release);
  wake_if_parked(&slot.parked);
  request->finished.store(true, std::memory_order_release);
  wake_if_parked(&request->parked);
}

// Runs a stage's compiled code on a request. Handles that are passed are stolen, so each is made anew.
bool run_code(Stage& stage, Code& code, Request& request) {
  std::vector<Handle> inputs(stage.inputs.size()), outputs(stage.outputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) {
    const int v = stage.inputs[i];
    aoti_torch_new_tensor_handle(v < 0 ? stage.weights[-v - 1] : request.values[v], &inputs[i]);
  }
  if (code.run(code.container, inputs.data(), inputs.size(), outputs.data(), outputs.size(), nullptr, nullptr))
    return false;
  for (size_t i = 0; i < outputs.size(); ++i) request.values[stage.outputs[i]] = outputs[i];
  return true;
}

Handle handle_of(PyObject* capsule) { return static_cast<Handle>(PyCapsule_GetPointer(capsule, nullptr)); }

// Runs a stage in Python: callback(handles of its inputs, weights included) -> handles of its outputs.
bool run_python(Stage& stage, PyObject* callback, Request& request) {
  PyObject* inputs = PyList_New(Py_ssize_t(stage.inputs.size()));
  for (size_t i = 0; i < stage.inputs.size(); ++i) {
    const int v = stage.inputs[i];
    Handle handle;
    aoti_torch_new_tensor_handle(v < 0 ? stage.weights[-v - 1] : request.values[v], &handle);
    PyList_SET_ITEM(inputs, Py_ssize_t(i), PyCapsule_New(handle, nullptr, nullptr));
  }
  PyObject* outputs = PyObject_CallOneArg(callback, inputs);
  Py_DECREF(inputs);
  if (!outputs) {
    PyObject *type, *trace;
    PyErr_Fetch(&type, &request.error, &trace);
    PyErr_NormalizeException(&type, &request.error, &trace);
    if (trace) PyException_SetTraceback(request.error, trace);
    Py_XDECREF(type);
    Py_XDECREF(trace);
    return false;
  }
  for (size_t i = 0; i < stage.outputs.size(); ++i)
    request.values[stage.outputs[i]] = handle_of(PyList_GET_ITEM(outputs, Py_ssize_t(i)));
  Py_DECREF(outputs);
  return true;
}

void pin(const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores) CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
  // The thread's own pools, in the very libraries that torch uses, where it uses them.
  void* torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (!torch) return;
  for (const char* name : {"omp_set_num_threads", "MKL_Set_Num_Threads_Local"})
    if (void* found = dlsym(torch, name)) reinterpret_cast<void (*)(int)>(found)(int(cores.size()));
  dlclose(torch);
}

// Runs with Python's lock released, and takes it for `callback` alone.
void serve_stage(Pipe* pipe, size_t index, size_t replica, PyObject* callback, PyThreadState*& thread) {
  Stage& stage = pipe->stages[index];
  Worker& worker = *stage.workers[replica];
  for (int64_t n = int64_t(replica);; n += int64_t(stage.workers.size())) {
    Slot& slot = pipe->slot(n);
    const int64_t mine = pipe->at(n, index);
    // A request that was submitted comes, stopped or not: an earlier stage may have it still.
    auto over = [&] { return pipe->stopped.load() && n >= pipe->next; };
    auto ready = [&] { return slot.progress.load(std::memory_order_acquire) == mine || over(); };
    wait_until(&worker.parked, ready, pipe->spin_ns, -1);
    if (slot.progress.load(std::memory_order_acquire) != mine) return;
    Request& request = *slot.request;
    request.times[2 * index] = now_ns();
    if (request.failed_stage < 0) {
      bool ok;
      if (callback) {
        PyEval_RestoreThread(thread);
        ok = run_python(stage, callback, request);
        thread = PyEval_SaveThread();
      } else {
        ok = run_code(stage, *worker.code, request);
      }
      if (ok)
        for (int value : stage.dead) request.drop(value);
      else
        request.failed_stage = int(index);
    }
    request.times[2 * index + 1] = now_ns();
    if (index + 1 == pipe->stages.size())
      finish(pipe, n);
    else
      ready_for(pipe, n, index + 1);
  }
}

// ---- what Python sees ------------------------------------------------------------------------------------------

std::vector<int> numbers(PyObject* sequence) {
  std::vector<int> result;
  PyObject* fast = PySequence_Fast(sequence, "expected a sequence of numbers");
  if (!fast) return result;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast); ++i)
    result.push_back(int(PyLong_AsLong(PySequence_Fast_GET_ITEM(fast, i))));
  Py_DECREF(fast);
  return result;
}

constexpr const char* kPipe = "fx_partition.pipe";
constexpr const char* kTicket = "fx_partition.ticket";

Pipe* pipe_of(PyObject* capsule) { return static_cast<Pipe*>(PyCapsule_GetPointer(capsule, kPipe)); }
Ticket* ticket_of(PyObject* capsule) { return static_cast<Ticket*>(PyCapsule_GetPointer(capsule, kTicket)); }

void delete_pipe(PyObject* capsule) { delete pipe_of(capsule); }

void delete_ticket(PyObject* capsule) {
  Ticket* ticket = ticket_of(capsule);
  Py_XDECREF(ticket->inputs);
  if (ticket->request->finished.load(std::memory_order_acquire)) Py_XDECREF(ticket->request->error);
  delete ticket;
}

// create(stages, num_values, results, capacity, spin_ns) -> pipe
// stages: (path or None, inputs, weights as handles, outputs, dead, replicas) each
PyObject* create(PyObject*, PyObject* args) {
  PyObject *stages, *results;
  Py_ssize_t num_values, capacity;
  long long spin_ns;
  if (!PyArg_ParseTuple(args, "O!nOnL", &PyList_Type, &stages, &num_values, &results, &capacity, &spin_ns))
    return nullptr;
  auto pipe = std::make_unique<Pipe>();
  pipe->num_values = size_t(num_values);
  pipe->results = numbers(results);
  pipe->slots = std::vector<Slot>(size_t(capacity));
  pipe->spin_ns = spin_ns;
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(stages); ++i) {
    const char* path;
    PyObject *inputs, *weights, *outputs, *dead;
    int replicas;
    if (!PyArg_ParseTuple(PyList_GET_ITEM(stages, i), "zOO!OOi", &path, &inputs, &PyList_Type, &weights, &outputs,
                          &dead, &replicas))
      return nullptr;
    Stage stage;
    stage.inputs = numbers(inputs);
    stage.outputs = numbers(outputs);
    stage.dead = numbers(dead);
    for (Py_ssize_t w = 0; w < PyList_GET_SIZE(weights); ++w)
      stage.weights.push_back(handle_of(PyList_GET_ITEM(weights, w)));
    pipe->stages.push_back(std::move(stage));  // the pipe owns the weights from here on
    try {
      for (int r = 0; r < replicas; ++r) {
        auto worker = std::make_unique<Worker>();
        if (path) worker->code = std::make_unique<Code>(path);
        pipe->stages.back().workers.push_back(std::move(worker));
      }
    } catch (const std::exception& error) {
      PyErr_SetString(PyExc_RuntimeError, error.what());
      return nullptr;
    }
  }
  if (PyErr_Occurred()) return nullptr;
  return PyCapsule_New(pipe.release(), kPipe, delete_pipe);
}

// serve(pipe, stage, replica, cores, callback or None): the body of a stage thread; returns when the pipe stops
PyObject* serve(PyObject*, PyObject* args) {
  PyObject *capsule, *cores, *callback;
  Py_ssize_t stage, replica;
  if (!PyArg_ParseTuple(args, "OnnOO", &capsule, &stage, &replica, &cores, &callback)) return nullptr;
  Pipe* pipe = pipe_of(capsule);
  const std::vector<int> set = numbers(cores);
  if (!pipe || PyErr_Occurred()) return nullptr;
  pin(set);
  PyThreadState* thread = PyEval_SaveThread();
  serve_stage(pipe, size_t(stage), size_t(replica), callback == Py_None ? nullptr : callback, thread);
  PyEval_RestoreThread(thread);
  Py_RETURN_NONE;
}

// submit(pipe, values, handles, inputs) -> ticket, or None while as many requests are in flight as may be, or stopped
// values: the numbers of the request's values that the handles are; inputs: kept alive with the ticket
PyObject* submit(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 4 || !PyTuple_Check(args[1]) || !PyList_Check(args[2])) {
    PyErr_SetString(PyExc_TypeError, "submit(pipe, values, handles, inputs)");
    return nullptr;
  }
  Pipe* pipe = pipe_of(args[0]);
  if (!pipe) return nullptr;
  const int64_t n = pipe->next;
  if (pipe->stopped.load() || !pipe->is_free(n)) Py_RETURN_NONE;
  auto request = std::make_shared<Request>(pipe->num_values, pipe->stages.size());
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args[1]); ++i)
    request->values[size_t(PyLong_AsLong(PyTuple_GET_ITEM(args[1], i)))] = handle_of(PyList_GET_ITEM(args[2], i));
  Py_INCREF(args[3]);
  PyObject* ticket = PyCapsule_New(new Ticket{request, args[3]}, kTicket, delete_ticket);
  pipe->slot(n).request = std::move(request);
  pipe->next = n + 1;
  ready_for(pipe, n, 0);
  return ticket;
}

// wait_free(pipe, timeout_ns) -> whether a request may be submitted
PyObject* wait_free(PyObject*, PyObject* args) {
  PyObject* capsule;
  long long timeout_ns;
  if (!PyArg_ParseTuple(args, "OL", &capsule, &timeout_ns)) return nullptr;
  Pipe* pipe = pipe_of(capsule);
  if (!pipe) return nullptr;
  const int64_t n = pipe->next;
  bool ready;
  Py_BEGIN_ALLOW_THREADS;
  ready = wait_until(&pipe->slot(n).parked, [&] { return pipe->is_free(n); }, 0, timeout_ns);
  Py_END_ALLOW_THREADS;
  return PyBool_FromLong(ready);
}

// wait(ticket, spin_ns, timeout_ns) -> whether the request is finished
PyObject* wait(PyObject*, PyObject* args) {
  PyObject* capsule;
  long long spin_ns, timeout_ns;
  if (!PyArg_ParseTuple(args, "OLL", &capsule, &spin_ns, &timeout_ns)) return nullptr;
  Ticket* ticket = ticket_of(capsule);
  if (!ticket) return nullptr;
  Request& request = *ticket->request;
  auto ready = [&] { return request.finished.load(std::memory_order_acquire); };
  bool done = ready();
  if (!done && timeout_ns != 0) {
    Py_BEGIN_ALLOW_THREADS;
    done = wait_until(&request.parked, ready, spin_ns, timeout_ns);
    Py_END_ALLOW_THREADS;
  }
  return PyBool_FromLong(done);
}

Handle new_handle(Handle handle) {
  Handle made;
  aoti_torch_new_tensor_handle(handle, &made);
  return made;
}

// take(pipe, ticket) -> (handles, failed stage or -1, error or None) of a finished request
// handles: of the results, or where a stage failed those of its inputs, without weights
PyObject* take(PyObject*, PyObject* const* args, Py_ssize_t count) {
  if (count != 2) {
    PyErr_SetString(PyExc_TypeError, "take(pipe, ticket)");
    return nullptr;
  }
  Pipe* pipe = pipe_of(args[0]);
  Ticket* ticket = ticket_of(args[1]);
  if (!pipe || !ticket) return nullptr;
  Request& request = *ticket->request;
  const int failed = request.failed_stage;
  PyObject* handles = PyList_New(0);
  for (int v : failed < 0 ? pipe->results : pipe->stages[size_t(failed)].inputs) {
    if (v < 0) continue;
    PyObject* capsule = PyCapsule_New(new_handle(request.values[size_t(v)]), nullptr, nullptr);
    PyList_Append(handles, capsule);
    Py_DECREF(capsule);
  }
  PyObject* error = request.error ? request.error : Py_NewRef(Py_None);
  request.error = nullptr;
  return Py_BuildValue("NiN", handles, failed, error);
}

// times(ticket) -> start and end of each stage in turn, monotonic nanoseconds
PyObject* times(PyObject*, PyObject* capsule) {
  Ticket* ticket = ticket_of(capsule);
  if (!ticket) return nullptr;
  PyObject* result = PyList_New(0);
  for (int64_t t : ticket->request->times) {
    PyObject* number = PyLong_FromLongLong(t);
    PyList_Append(result, number);
    Py_DECREF(number);
  }
  return result;
}

// run(path, handles, outputs) -> handles: compiled code once, in the calling thread; handles that are passed are stolen
PyObject* run(PyObject*, PyObject* args) {
  const char* path;
  PyObject* capsules;
  Py_ssize_t num_outputs;
  if (!PyArg_ParseTuple(args, "sO!n", &path, &PyList_Type, &capsules, &num_outputs)) return nullptr;
  std::vector<Handle> inputs, outputs(static_cast<size_t>(num_outputs));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(capsules); ++i) inputs.push_back(handle_of(PyList_GET_ITEM(capsules, i)));
  std::string failure;
  Py_BEGIN_ALLOW_THREADS;
  try {
    Code code(path);
    if (code.run(code.container, inputs.data(), inputs.size(), outputs.data(), outputs.size(), nullptr, nullptr))
      failure = "its words are on standard error";
  } catch (const std::exception& error) {
    failure = error.what();
  }
  Py_END_ALLOW_THREADS;
  if (!failure.empty()) {
    PyErr_SetString(PyExc_RuntimeError, failure.c_str());
    return nullptr;
  }
  PyObject* result = PyList_New(num_outputs);
  for (Py_ssize_t i = 0; i < num_outputs; ++i)
    PyList_SET_ITEM(result, i, PyCapsule_New(outputs[size_t(i)], nullptr, nullptr));
  return result;
}

// stop(pipe): nothing is submitted any more; workers return once all that was is finished
PyObject* stop(PyObject*, PyObject* capsule) {
  Pipe* pipe = pipe_of(capsule);
  if (!pipe) return nullptr;
  pipe->stopped.store(true);
  for (Stage& stage : pipe->stages)
    for (auto& worker : stage.workers) wake_if_parked(&worker->parked);
  Py_RETURN_NONE;
}

PyMethodDef methods[] = {
    {"create", create, METH_VARARGS, nullptr},
    {"serve", serve, METH_VARARGS, nullptr},
    {"submit", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(submit)), METH_FASTCALL, nullptr},
    {"wait_free", wait_free, METH_VARARGS, nullptr},
    {"wait", wait, METH_VARARGS, nullptr},
    {"take", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(take)), METH_FASTCALL, nullptr},
    {"times", times, METH_O, nullptr},
    {"run", run, METH_VARARGS, nullptr},
    {"stop", stop, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_stage_loop", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__stage_loop() { return PyModule_Create(&definition); }
