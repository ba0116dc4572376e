// The life of a stage thread: wait for the stage's turn, run its code on the request, hand the request on.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include "ring.h"

namespace stage_loop {

// Runs a stage's compiled code on a request. Handles that are passed are stolen, so each is made anew.
inline bool run_code(Stage& stage, Code& code, Request& request) {
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

inline Handle handle_of(PyObject* capsule) { return static_cast<Handle>(PyCapsule_GetPointer(capsule, nullptr)); }

// Runs a stage in Python: callback(handles of its inputs, weights included) -> handles of its outputs.
inline bool run_python(Stage& stage, PyObject* callback, Request& request) {
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

inline void pin(const std::vector<int>& cores) {
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
inline void serve_stage(Pipe* pipe, size_t index, size_t replica, PyObject* callback, PyThreadState*& thread) {
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

}  // namespace stage_loop
