#include "functors.h"

#include <algorithm>
#include <cmath>

namespace {

struct Name {
  const char *text;
  Dtype dtype;
};

constexpr Name kDtypes[] = {
    {"float", Dtype::f32},       {"c10::Half", Dtype::f16}, {"c10::BFloat16", Dtype::bf16},
    {"double", Dtype::f64},      {"long", Dtype::i64},      {"int", Dtype::i32},
    {"unsigned char", Dtype::u8}, {"bool", Dtype::boolean},
};

/// Reads the name of a dtype that begins at a place of a text and ends with one of two characters.
bool dtype_at(const std::string &text, size_t begin, Dtype *found) {
  size_t end = text.find_first_of(",>)", begin);
  if (end == std::string::npos) return false;
  for (const Name &name : kDtypes)
    if (text.compare(begin, end - begin, name.text) == 0) {
      *found = name.dtype;
      return true;
    }
  return false;
}

/// Reads the first template argument of a class, if the kernel has it.
bool argument_of(const std::string &kernel, const std::string &name, Dtype *found) {
  size_t place = kernel.find(name + "<");
  return place != std::string::npos && dtype_at(kernel, place + name.size() + 1, found);
}

/// Reads the argument of the lambda with one argument in a function, if the kernel has it.
bool lambda_in(const std::string &kernel, const std::string &function, Dtype *found) {
  size_t place = kernel.find(function);
  const std::string lambda = "{lambda(";
  while (place != std::string::npos && (place = kernel.find(lambda, place)) != std::string::npos) {
    place += lambda.size();
    if (dtype_at(kernel, place, found)) return true;
  }
  return false;
}

/// The dtype that scalars are kept in beside tensors of a dtype.
Dtype scalar_dtype(Dtype dtype) { return dtype == Dtype::f16 || dtype == Dtype::bf16 ? Dtype::f32 : dtype; }

double product(const double *x) { return x[0] * x[1]; }

double quotient(const double *x) { return x[0] / x[1]; }

bool find_sum(const std::string &kernel, const char *bytes, Functor *found) {
  Dtype dtype;
  if (argument_of(kernel, "CUDAFunctor_add", &dtype)) {
    Dtype scalar = scalar_dtype(dtype);
    double alpha = load(bytes, scalar);
    *found = {2, dtype, dtype, size_of(scalar), [=](const double *x) { return x[0] + alpha * x[1]; }};
    return true;
  }
  bool on_self = argument_of(kernel, "CUDAFunctorOnSelf_add", &dtype);  // x + alpha * number
  if (!on_self && !argument_of(kernel, "CUDAFunctorOnOther_add", &dtype)) return false;  // number + alpha * x
  Dtype scalar = scalar_dtype(dtype);
  double number = load(bytes, scalar), alpha = load(bytes + size_of(scalar), scalar);
  auto call = [=](const double *x) { return on_self ? x[0] + alpha * number : number + alpha * x[0]; };
  *found = {1, dtype, dtype, 2 * size_of(scalar), call};
  return true;
}

bool find_product(const std::string &kernel, const char *bytes, Functor *found) {
  Dtype dtype;
  bool multiplies = kernel.find("MulFunctor<") != std::string::npos;
  if (!multiplies && kernel.find("DivFunctor<") == std::string::npos) return false;
  double (*combine)(const double *) = multiplies ? product : quotient;
  if (argument_of(kernel, "BinaryFunctor", &dtype)) {
    *found = {2, dtype, dtype, 1, combine};
    return true;
  }
  bool number_first = argument_of(kernel, "AUnaryFunctor", &dtype);
  if (!number_first && !argument_of(kernel, "BUnaryFunctor", &dtype)) return false;
  Dtype scalar = scalar_dtype(dtype);
  double number = load(bytes + size_of(scalar), scalar);  // behind an empty functor
  auto call = [=](const double *x) {
    const double pair[] = {number_first ? number : x[0], number_first ? x[0] : number};
    return combine(pair);
  };
  *found = {1, dtype, dtype, 2 * size_of(scalar), call};
  return true;
}

bool find_clamp(const std::string &kernel, const char *bytes, Functor *found) {
  Dtype dtype;
  if (!lambda_in(kernel, "launch_clamp_scalar", &dtype)) return false;
  Dtype scalar = scalar_dtype(dtype);
  size_t begin = std::max<size_t>(size_of(Dtype::i32), size_of(scalar));  // behind what says which limits count
  int limits = static_cast<int>(load(bytes, Dtype::i32));                 // 0: the lower one, 1: the upper one, 2: both
  double first = load(bytes + begin, scalar), second = load(bytes + begin + size_of(scalar), scalar);
  auto call = [=](const double *x) {
    if (std::isnan(x[0])) return x[0];
    if (limits == 1) return std::min(x[0], first);
    double value = std::max(x[0], first);
    return limits == 2 ? std::min(value, second) : value;
  };
  *found = {1, dtype, dtype, begin + 2 * size_of(scalar), call};
  return true;
}

bool find_copy(const std::string &kernel, Functor *found) {
  Dtype in, out;
  if (lambda_in(kernel, "bfloat16_copy_kernel_cuda", &in))
    out = Dtype::bf16;
  else if (lambda_in(kernel, "float16_copy_kernel_cuda", &in))
    out = Dtype::f16;
  else if (lambda_in(kernel, "direct_copy_kernel_cuda", &in))
    out = in;
  else
    return false;
  *found = {1, in, out, 1, [](const double *x) { return x[0]; }};
  return true;
}

bool find_fill(const std::string &kernel, const char *bytes, Functor *found) {
  Dtype dtype;
  if (!argument_of(kernel, "FillFunctor", &dtype)) return false;
  double value = load(bytes, dtype);
  *found = {0, dtype, dtype, size_of(dtype), [=](const double *) { return value; }};
  return true;
}

}  // namespace

bool find_functor(const std::string &kernel, const char *bytes, Functor *found) {
  return find_fill(kernel, bytes, found) || find_copy(kernel, found) || find_clamp(kernel, bytes, found) ||
         find_product(kernel, bytes, found) || find_sum(kernel, bytes, found);
}
