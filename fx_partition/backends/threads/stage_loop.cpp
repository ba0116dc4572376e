// The extension module of stage threads, in C++ so that no stage ever waits for Python's global lock.
//
//     border.h         how errors cross between C++ and Python
//     parking.h        how threads wait
//     aoti_code.h      a stage's compiled code
//     ring.h           requests in flight, and how they move from stage to stage
//     stage_thread.h   the loop of a stage thread

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <climits>
#include <cstdint>
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "border.h"
#include "stage_thread.h"

namespace stage_loop {
namespace {

// A request as Python holds it, until Python drops it.
struct PendingRequest {
  std::shared_ptr<Request> request;
  const Pipe* pipe;
  PyObject* inputs;  // the caller's tensors: released here, with Python's lock held, and never by a stage
};

constexpr const char* kPipe = "fx_partition.pipe";
constexpr const char* kPending = "fx_partition.pending_request";

Pipe* pipe_of(PyObject* capsule) { return pointer_in<Pipe>(capsule, kPipe); }
PendingRequest* pending_of(PyObject* capsule) { return pointer_in<PendingRequest>(capsule, kPending); }

// Python may call a capsule's destructor while an error is set; the destructor must leave that error alone.
void delete_pipe(PyObject* capsule) {
  auto* pipe = static_cast<Pipe*>(PyCapsule_GetPointer(capsule, kPipe));
  if (pipe && !pipe->is_inherited()) delete pipe;
}

void delete_pending(PyObject* capsule) {
  auto* pending = static_cast<PendingRequest*>(PyCapsule_GetPointer(capsule, kPending));
  if (!pending) return;
  Py_XDECREF(pending->inputs);
  pending->request->is_wanted = false;
  Py_CLEAR(pending->request->error);
  delete pending;
}

// Reads an order of dimensions, each once.
Order order_of(PyObject* dims) {
  const Order order = numbers(dims, 0, PySequence_Size(dims), "a dimension");
  for (size_t d = 0; d < order.size(); ++d)
    if (std::find(order.begin(), order.end(), int(d)) == order.end())
      fail(PyExc_ValueError, "an order must name each dimension once");
  return order;
}

// Reads (path or None, inputs, weights as handles, outputs, orders, dead, replicas).
void add_stage(Pipe& pipe, PyObject* described) {
  const char* path;
  PyObject *inputs, *weights, *outputs, *orders, *dead;
  int replicas;
  if (!PyArg_ParseTuple(described, "zOO!OO!Oi", &path, &inputs, &PyList_Type, &weights, &outputs, &PyList_Type, &orders,
                        &dead, &replicas))
    throw ErrorIsSet();
  if (replicas < 1) fail(PyExc_ValueError, "a stage needs at least one thread, not " + std::to_string(replicas));
  const auto values = static_cast<long long>(pipe.num_values);
  Stage& stage = pipe.stages.emplace_back();
  stage.inputs = numbers(inputs, -PyList_GET_SIZE(weights), values, "an input of a stage");
  stage.outputs = numbers(outputs, 0, values, "an output of a stage");
  if (size_t(PyList_GET_SIZE(orders)) != stage.outputs.size())
    fail(PyExc_ValueError, "a stage needs an order for each of its outputs");
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(orders); ++i) stage.orders.push_back(order_of(PyList_GET_ITEM(orders, i)));
  stage.dead = numbers(dead, 0, values, "a value that dies with a stage");
  for (Py_ssize_t w = 0; w < PyList_GET_SIZE(weights); ++w)
    stage.weights.emplace_back(handle_of(PyList_GET_ITEM(weights, w)));
  for (int r = 0; r < replicas; ++r) {
    auto worker = std::make_unique<Worker>();
    if (path) worker->code = std::make_unique<Code>(path);
    stage.workers.push_back(std::move(worker));
  }
}

// create(stages, num_values, results, capacity, spin_ns) -> pipe
// stages: see `add_stage`. On success the pipe owns the handles of weights; after an error the caller still does.
PyObject* create(PyObject* args) {
  PyObject *stages, *results;
  Py_ssize_t num_values, capacity;
  long long spin_ns;
  if (!PyArg_ParseTuple(args, "O!nOnL", &PyList_Type, &stages, &num_values, &results, &capacity, &spin_ns))
    return nullptr;
  if (!PyList_GET_SIZE(stages) || num_values < 0 || num_values > INT_MAX || capacity < 1)
    fail(PyExc_ValueError, "a pipe needs at least one stage, at most INT_MAX values, and room for at least one request");
  auto pipe = std::make_unique<Pipe>();
  try {
    pipe->num_values = size_t(num_values);
    pipe->results = numbers(results, 0, num_values, "a result");
    pipe->spin_ns = spin_ns;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(stages); ++i) add_stage(*pipe, PyList_GET_ITEM(stages, i));
    pipe->slots = std::vector<Slot>(size_t(capacity));
    Ref capsule(PyCapsule_New(pipe.get(), kPipe, delete_pipe));
    pipe.release();
    return capsule.release();
  } catch (...) {
    for (Stage& stage : pipe->stages)
      for (Owned& weight : stage.weights) weight.release();
    throw;
  }
}

// serve(pipe, stage, replica, cores, callback or None): the body of a stage thread; returns when the pipe stops
PyObject* serve(PyObject* args) {
  PyObject *capsule, *cores, *callback;
  Py_ssize_t index, replica;
  if (!PyArg_ParseTuple(args, "OnnOO", &capsule, &index, &replica, &cores, &callback)) return nullptr;
  Pipe* pipe = pipe_of(capsule);
  if (index < 0 || size_t(index) >= pipe->stages.size()) fail(PyExc_ValueError, "the pipe has no such stage");
  const Stage& stage = pipe->stages[size_t(index)];
  if (replica < 0 || size_t(replica) >= stage.workers.size()) fail(PyExc_ValueError, "the stage has no such thread");
  const bool calls_python = callback != Py_None;
  if (calls_python ? !PyCallable_Check(callback) : !stage.workers[size_t(replica)]->code)
    fail(PyExc_TypeError, "a stage needs code, or a callback");
  pin(numbers(cores, 0, INT_MAX, "a core"));
  PyThreadState* thread = PyEval_SaveThread();
  serve_stage(pipe, size_t(index), size_t(replica), calls_python ? callback : nullptr, thread);
  PyEval_RestoreThread(thread);
  Py_RETURN_NONE;
}

// submit(pipe, values, handles, inputs) -> pending request; None where the ring is full or the pipe has been stopped
// values: the numbers of the request's values that the handles are; inputs: kept alive with the pending request
// On success the request owns the handles; otherwise the caller still does.
PyObject* submit(PyObject* const* args, Py_ssize_t count) {
  if (count != 4 || !PyTuple_Check(args[1]) || !PyList_Check(args[2]) ||
      PyTuple_GET_SIZE(args[1]) != PyList_GET_SIZE(args[2]))
    fail(PyExc_TypeError, "submit(pipe, values, handles, inputs), with as many values as handles");
  Pipe* pipe = pipe_of(args[0]);
  const int64_t n = pipe->next;
  if (pipe->stopped.load() || !pipe->is_free(n)) Py_RETURN_NONE;
  auto request = std::make_shared<Request>(pipe->num_values, pipe->stages.size());
  std::vector<std::pair<size_t, Handle>> given;
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(args[1]); ++i)
    given.emplace_back(number(PyTuple_GET_ITEM(args[1], i), 0, (long long)(pipe->num_values), "a value"),
                       handle_of(PyList_GET_ITEM(args[2], i)));
  auto made = std::make_unique<PendingRequest>(PendingRequest{request, pipe, nullptr});
  Ref pending(PyCapsule_New(made.get(), kPending, delete_pending));
  made.release()->inputs = Py_NewRef(args[3]);
  for (auto [value, handle] : given) request->values[value].reset(handle);  // nothing below can fail
  pipe->slot(n).request = std::move(request);
  pipe->next = n + 1;
  ready_for(pipe, n, 0);
  return pending.release();
}

// wait_free(pipe, timeout_ns) -> whether a request may be submitted
PyObject* wait_free(PyObject* args) {
  PyObject* capsule;
  long long timeout_ns;
  if (!PyArg_ParseTuple(args, "OL", &capsule, &timeout_ns)) return nullptr;
  Pipe* pipe = pipe_of(capsule);
  const int64_t n = pipe->next;
  bool ready = false;
  without_lock([&] {
    ready = wait_until(&pipe->slot(n).parked, [&] { return pipe->is_free(n); }, 0, timeout_ns);
  });
  return PyBool_FromLong(ready);
}

// wait(pending, spin_ns, timeout_ns) -> whether the request is finished
PyObject* wait(PyObject* args) {
  PyObject* capsule;
  long long spin_ns, timeout_ns;
  if (!PyArg_ParseTuple(args, "OLL", &capsule, &spin_ns, &timeout_ns)) return nullptr;
  Request& request = *pending_of(capsule)->request;
  auto ready = [&] { return request.finished.load(std::memory_order_acquire); };
  bool done = ready();
  if (!done && timeout_ns != 0)
    without_lock([&] { done = wait_until(&request.parked, ready, spin_ns, timeout_ns); });
  return PyBool_FromLong(done);
}

// Returns the exception of a failed request, owned by the caller; None if compiled code only returned an error code.
PyObject* take_failure(Request& request) {
  if (request.error) return std::exchange(request.error, nullptr);
  if (!request.thrown) return Py_NewRef(Py_None);
  try {
    std::rethrow_exception(request.thrown);
  } catch (...) {
    set_error();
  }
  return take_error();
}

// take(pipe, pending) -> (handles, failed stage or -1, error or None) of a finished request
// handles: those of the results, or of the failed stage's inputs without weights
PyObject* take(PyObject* const* args, Py_ssize_t count) {
  if (count != 2) fail(PyExc_TypeError, "take(pipe, pending request)");
  const Pipe* pipe = pipe_of(args[0]);
  const PendingRequest* pending = pending_of(args[1]);
  Request& request = *pending->request;
  if (pending->pipe != pipe) fail(PyExc_ValueError, "the request was submitted to another pipe");
  if (!request.finished.load(std::memory_order_acquire)) fail(PyExc_RuntimeError, "the request is not finished");
  const int failed = request.failed_stage;
  std::vector<Owned> handles;
  for (int v : failed < 0 ? pipe->results : pipe->stages[size_t(failed)].inputs)
    if (v >= 0) handles.push_back(another(request.values[size_t(v)].get()));
  const Ref number(PyLong_FromLong(failed));
  Ref result(PyTuple_New(3));
  PyTuple_SET_ITEM(result.get(), 1, Py_NewRef(number.get()));
  PyTuple_SET_ITEM(result.get(), 2, take_failure(request));
  PyTuple_SET_ITEM(result.get(), 0, capsules_of(std::move(handles)));
  return result.release();
}

// times(pending) -> start and end of each stage in turn, monotonic nanoseconds
PyObject* times(PyObject* capsule) {
  const std::vector<int64_t>& found = pending_of(capsule)->request->times;
  Ref result(PyList_New(Py_ssize_t(found.size())));
  for (size_t i = 0; i < found.size(); ++i)
    PyList_SET_ITEM(result.get(), Py_ssize_t(i), Ref(PyLong_FromLongLong(found[i])).release());
  return result.release();
}

// run(path, handles, outputs) -> handles: runs compiled code once, in the calling thread; it steals the input handles
PyObject* run(PyObject* args) {
  const char* path;
  PyObject* capsules;
  Py_ssize_t num_outputs;
  if (!PyArg_ParseTuple(args, "sO!n", &path, &PyList_Type, &capsules, &num_outputs)) return nullptr;
  if (num_outputs < 0) fail(PyExc_ValueError, "a stage cannot have less than 0 outputs");
  std::vector<Handle> inputs, outputs(static_cast<size_t>(num_outputs));
  for (Py_ssize_t i = 0; i < PyList_GET_SIZE(capsules); ++i) inputs.push_back(handle_of(PyList_GET_ITEM(capsules, i)));
  without_lock([&] {
    Code code(path);
    if (code.run(code.container, inputs.data(), inputs.size(), outputs.data(), outputs.size(), nullptr, nullptr))
      throw std::runtime_error("see its message on standard error");
  });
  std::vector<Owned> made;
  for (Handle output : outputs) made.emplace_back(output);
  return capsules_of(std::move(made));
}

// stop(pipe): refuses further requests; workers return once all submitted requests are finished
PyObject* stop(PyObject* capsule) {
  Pipe* pipe = pipe_of(capsule);
  pipe->stopped.store(true);
  for (Stage& stage : pipe->stages)
    for (auto& worker : stage.workers) wake_if_parked(&worker->parked);
  Py_RETURN_NONE;
}

template <PyObject* (*function)(PyObject* const*, Py_ssize_t)>
PyCFunction fast() {
  return reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(guarded_fast<function>));
}

PyMethodDef methods[] = {
    {"create", guarded<create>, METH_VARARGS, nullptr},
    {"serve", guarded<serve>, METH_VARARGS, nullptr},
    {"submit", fast<submit>(), METH_FASTCALL, nullptr},
    {"wait_free", guarded<wait_free>, METH_VARARGS, nullptr},
    {"wait", guarded<wait>, METH_VARARGS, nullptr},
    {"take", fast<take>(), METH_FASTCALL, nullptr},
    {"times", guarded<times>, METH_O, nullptr},
    {"run", guarded<run>, METH_VARARGS, nullptr},
    {"stop", guarded<stop>, METH_O, nullptr},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_stage_loop", nullptr, -1, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace
}  // namespace stage_loop

PyMODINIT_FUNC PyInit__stage_loop() { return PyModule_Create(&stage_loop::definition); }
