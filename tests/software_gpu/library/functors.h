// What a kernel of torch does with each element: its functor, read from its name and its bytes.
#pragma once

#include <cstddef>
#include <functional>
#include <string>

#include "elements.h"

struct Functor {
  int inputs;
  Dtype in, out;  // what its arguments are converted to, and what it returns
  size_t size;    // bytes of the functor itself
  std::function<double(const double *)> call;
};

/// Finds the functor in the demangled name of a kernel; `bytes` is where the functor lies. Returns false for others.
bool find_functor(const std::string &kernel, const char *bytes, Functor *found);
