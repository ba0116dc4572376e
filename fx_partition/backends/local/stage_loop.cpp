// The stage threads of the local runtime, in C++ so that no stage ever waits for Python's global lock: what Python sees.
//
//     parking.h        how threads wait
//     aoti_code.h      a stage's compiled code
//     ring.h           requests in flight, and how they move from stage to stage
//     stage_thread.h   what a stage thread does

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "stage_thread.h"

namespace stage_loop {
namespace {

struct Ticket {
  std::shared_ptr<Request> request;
  PyObject* inputs;  // the caller's tensors: dropped with Python's lock held, never by a stage
};

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
}  // namespace stage_loop

PyMODINIT_FUNC PyInit__stage_loop() { return PyModule_Create(&stage_loop::definition); }
