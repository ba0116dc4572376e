// The border to Python: a C++ exception never crosses it, and every error that Python reports is handled.
//
// Inside, a failure on either side is a C++ exception. `ErrorIsSet` stands for an error that Python's error indicator
// holds already. Each function that Python calls is wrapped in `guarded`, and code that runs without the GIL ("Python's
// lock") in `without_lock`.

#pragma once

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <cxxabi.h>

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

namespace stage_loop {

struct ErrorIsSet {};

// The C library ends a thread by an exception of its own, which must not be swallowed: when the interpreter has ended,
// Python ends the threads that ask for its lock. Every handler below passes it on.
#if defined(__GLIBCXX__)
using ThreadEnds = abi::__forced_unwind;
#else
struct ThreadEnds {};
#endif

[[noreturn]] inline void fail(PyObject* type, const std::string& message) {
  PyErr_SetString(type, message.c_str());
  throw ErrorIsSet();
}

// Owns a reference to a Python object; a null pointer means that Python has set an error.
class Ref {
 public:
  explicit Ref(PyObject* object) : object_(object) {
    if (!object) throw ErrorIsSet();
  }
  Ref(const Ref&) = delete;
  ~Ref() { Py_XDECREF(object_); }
  PyObject* get() const { return object_; }
  PyObject* release() {
    PyObject* object = object_;
    object_ = nullptr;
    return object;
  }

 private:
  PyObject* object_;
};

// Sets the exception that is being handled as Python's error. Call it in a catch block, with Python's lock held.
inline void set_error() {
  try {
    throw;
  } catch (const ThreadEnds&) {
    throw;
  } catch (const ErrorIsSet&) {
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
  } catch (...) {
    PyErr_SetString(PyExc_RuntimeError, "an exception that is not a std::exception");
  }
}

template <typename Body>
PyObject* guarded_call(const Body& body) {
  try {
    return body();
  } catch (...) {
    set_error();
    return nullptr;
  }
}

// Wrap a function for the module's method table, one wrapper for each calling convention.
template <PyObject* (*function)(PyObject*)>
PyObject* guarded(PyObject*, PyObject* argument) {
  return guarded_call([&] { return function(argument); });
}
template <PyObject* (*function)(PyObject* const*, Py_ssize_t)>
PyObject* guarded_fast(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  return guarded_call([&] { return function(arguments, count); });
}

// Runs body() with Python's lock released.
template <typename Body>
void without_lock(const Body& body) {
  PyThreadState* thread = PyEval_SaveThread();
  std::exception_ptr thrown;
  try {
    body();
  } catch (const ThreadEnds&) {
    throw;
  } catch (...) {
    thrown = std::current_exception();
  }
  PyEval_RestoreThread(thread);
  if (thrown) std::rethrow_exception(thrown);
}

// Reads a Python int in [low, end).
inline long long number(PyObject* object, long long low, long long end, const char* what) {
  const long long found = PyLong_AsLongLong(object);
  if (found == -1 && PyErr_Occurred()) throw ErrorIsSet();
  if (found < low || found >= end)
    fail(PyExc_ValueError, std::string(what) + " is " + std::to_string(found) + ", and must be in [" +
                               std::to_string(low) + ", " + std::to_string(end) + ")");
  return found;
}

inline std::vector<int> numbers(PyObject* sequence, long long low, long long end, const char* what) {
  const Ref fast(PySequence_Fast(sequence, "expected a sequence of numbers"));
  std::vector<int> result;
  for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(fast.get()); ++i)
    result.push_back(int(number(PySequence_Fast_GET_ITEM(fast.get(), i), low, end, what)));
  return result;
}

// Returns the pointer of a capsule of this name.
template <typename T>
T* pointer_in(PyObject* capsule, const char* name) {
  void* found = PyCapsule_GetPointer(capsule, name);
  if (!found) throw ErrorIsSet();
  return static_cast<T*>(found);
}

}  // namespace stage_loop
