// The loop of a stage thread: wait for the next request, run the stage's code on it, hand it on.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>

#include <utility>

#include "border.h"
#include "ring.h"

namespace stage_loop {

// Runs a stage's compiled code on a request. The code steals its input handles, so each gets a new one.
inline bool run_code(const Stage& stage, const Code& code, Request& request) {
  std::vector<Owned> owned;
  for (int v : stage.inputs) owned.push_back(another(value_of(stage, request, v)));
  std::vector<Handle> inputs(owned.size()), outputs(stage.outputs.size());
  for (size_t i = 0; i < inputs.size(); ++i) inputs[i] = owned[i].release();
  if (code.run(code.container, inputs.data(), inputs.size(), outputs.data(), outputs.size(), nullptr, nullptr))
    return false;
  for (size_t i = 0; i < outputs.size(); ++i) request.values[size_t(stage.outputs[i])].reset(outputs[i]);
  refuse_other_layouts(stage.orders, outputs);
  return true;
}

inline Handle handle_of(PyObject* capsule) { return pointer_in<AtenTensorOpaque>(capsule, nullptr); }

// Returns a list of capsules. A capsule does not free its tensor, so the receiver must use each exactly once.
inline PyObject* capsules_of(std::vector<Owned>&& handles) {
  Ref list(PyList_New(Py_ssize_t(handles.size())));
  for (size_t i = 0; i < handles.size(); ++i)
    PyList_SET_ITEM(list.get(), Py_ssize_t(i), Ref(PyCapsule_New(handles[i].get(), nullptr, nullptr)).release());
  for (Owned& handle : handles) handle.release();
  return list.release();
}

// Clears Python's error and returns it as an exception with its traceback.
inline PyObject* take_error() {
  PyObject *type, *error, *trace;
  PyErr_Fetch(&type, &error, &trace);
  PyErr_NormalizeException(&type, &error, &trace);
  if (error && trace) PyException_SetTraceback(error, trace);
  Py_XDECREF(type);
  Py_XDECREF(trace);
  return error;
}

// Runs a stage in Python: callback(handles of its inputs, weights included) -> handles of its outputs.
inline bool run_python(const Stage& stage, PyObject* callback, Request& request) {
  try {
    std::vector<Owned> owned;
    for (int v : stage.inputs) owned.push_back(another(value_of(stage, request, v)));
    const Ref inputs(capsules_of(std::move(owned)));
    const Ref outputs(PyObject_CallOneArg(callback, inputs.get()));
    if (!PyList_Check(outputs.get()) || size_t(PyList_GET_SIZE(outputs.get())) != stage.outputs.size())
      fail(PyExc_TypeError, "a stage must return a list with a handle for each of its outputs");
    std::vector<Handle> handles;
    for (size_t i = 0; i < stage.outputs.size(); ++i)
      handles.push_back(handle_of(PyList_GET_ITEM(outputs.get(), Py_ssize_t(i))));
    for (size_t i = 0; i < handles.size(); ++i) request.values[size_t(stage.outputs[i])].reset(handles[i]);
    refuse_other_layouts(stage.orders, handles);
    return true;
  } catch (...) {
    set_error();
    PyObject* error = take_error();
    if (request.is_wanted)
      request.error = error;
    else
      Py_XDECREF(error);
    return false;
  }
}

inline void pin(const std::vector<int>& cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (int core : cores) CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
  // Sets the sizes of this thread's pools, in the same libraries that torch has loaded, if it has loaded them.
  void* torch = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (!torch) return;
  for (const char* name : {"omp_set_num_threads", "MKL_Set_Num_Threads_Local"})
    if (void* found = dlsym(torch, name)) reinterpret_cast<void (*)(int)>(found)(int(cores.size()));
  dlclose(torch);
}

// Runs a stage on a request and returns whether it succeeded. An exception of C++ code is kept in the request.
inline bool run_stage(Stage& stage, Worker& worker, PyObject* callback, Request& request, PyThreadState*& thread) {
  if (callback) {
    PyEval_RestoreThread(thread);
    const bool ok = run_python(stage, callback, request);
    thread = PyEval_SaveThread();
    return ok;
  }
  try {
    return run_code(stage, *worker.code, request);
  } catch (const ThreadEnds&) {
    throw;
  } catch (...) {
    request.thrown = std::current_exception();
    return false;
  }
}

// Runs without Python's lock, except in `callback`. A failure ends its request, never the thread.
inline void serve_stage(Pipe* pipe, size_t index, size_t replica, PyObject* callback, PyThreadState*& thread) {
  Stage& stage = pipe->stages[index];
  Worker& worker = *stage.workers[replica];
  for (int64_t n = int64_t(replica);; n += int64_t(stage.workers.size())) {
    Slot& slot = pipe->slot(n);
    const int64_t mine = pipe->at(n, index);
    // A submitted request arrives even after stop: an earlier stage may still have it.
    auto over = [&] { return pipe->stopped.load() && n >= pipe->next; };
    auto ready = [&] { return slot.progress.load(std::memory_order_acquire) == mine || over(); };
    wait_until(&worker.parked, ready, pipe->spin_ns, -1);
    if (slot.progress.load(std::memory_order_acquire) != mine) return;
    Request& request = *slot.request;
    request.times[2 * index] = now_ns();
    if (request.failed_stage < 0) {
      if (run_stage(stage, worker, callback, request, thread))
        for (int value : stage.dead) request.values[size_t(value)].reset();
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
