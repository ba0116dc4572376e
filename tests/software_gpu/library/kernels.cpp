// torch's elementwise kernels. They have four forms, by how their operands lie in memory and whether dtypes differ; the
// arguments of each are those of ATen/native/cuda/CUDALoops.cuh of torch 2.14:
//
//   vectorized   (N, functor, addresses)                                  dense, all of the functor's dtypes
//   unrolled     (N, functor, addresses, -, -, loader, storer)            dense, with dtypes of their own
//   strided      (N, {offsets, addresses, functor})                       strided, all of the functor's dtypes
//   strided cast (N, {offsets, addresses, functor, dtypes})               strided, with dtypes of their own
#include "kernels.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "devices.h"
#include "elements.h"
#include "functors.h"
#include "memory.h"

namespace {

constexpr int kMostDimensions = 25;  // MAX_DIMS of ATen/cuda/detail/OffsetCalculator.cuh

struct Operand {
  char *address;
  Dtype dtype;
  std::vector<size_t> strides;  // in bytes, by dimension

  char *at(size_t index, const std::vector<size_t> &sizes) const {
    size_t offset = 0;
    for (size_t i = 0; i < sizes.size(); i++) {
      offset += index % sizes[i] * strides[i];
      index /= sizes[i];
    }
    return address + offset;
  }
};

struct Elementwise {
  size_t count;
  Functor functor;
  std::vector<size_t> sizes;       // by dimension, the innermost first
  std::vector<Operand> operands;  // the output first
};

/// The dtype of a c10::ScalarType; false for those that no kernel here has.
bool dtype_of(int8_t scalar_type, Dtype *found) {
  switch (scalar_type) {
    case 0: *found = Dtype::u8; return true;
    case 3: *found = Dtype::i32; return true;
    case 4: *found = Dtype::i64; return true;
    case 5: *found = Dtype::f16; return true;
    case 6: *found = Dtype::f32; return true;
    case 7: *found = Dtype::f64; return true;
    case 11: *found = Dtype::boolean; return true;
    case 15: *found = Dtype::bf16; return true;
    default: return false;
  }
}

template <typename T>
T read(const char *&bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof value);
  bytes += sizeof value;
  return value;
}

/// Makes the operands, dense and of the functor's dtypes, from their addresses.
void add_operands(Elementwise *work, const char *addresses) {
  for (int i = 0; i <= work->functor.inputs; i++) {
    Dtype dtype = i == 0 ? work->functor.out : work->functor.in;
    work->operands.push_back({read<char *>(addresses), dtype, {size_of(dtype)}});
  }
  work->sizes = {work->count};
}

bool set_dtype(Operand *operand, int8_t scalar_type) {
  if (!dtype_of(scalar_type, &operand->dtype)) return false;
  if (operand->strides.size() == 1) operand->strides[0] = size_of(operand->dtype);
  return true;
}

bool read_dense(const std::string &kernel, void **arguments, bool casts, Elementwise *work) {
  if (!find_functor(kernel, static_cast<const char *>(arguments[1]), &work->functor)) return false;
  add_operands(work, static_cast<const char *>(arguments[2]));
  if (!casts) return true;
  const int8_t *loader = static_cast<const int8_t *>(arguments[5]), *storer = static_cast<const int8_t *>(arguments[6]);
  bool known = set_dtype(&work->operands[0], storer[0]);
  for (int i = 1; i <= work->functor.inputs; i++) known = known && set_dtype(&work->operands[i], loader[i - 1]);
  return known;
}

/// Reads an OffsetCalculator: how many dimensions, their sizes, and the strides of all operands by dimension.
void read_offsets(const char *&bytes, Elementwise *work) {
  int operands = work->functor.inputs + 1, dimensions = read<int32_t>(bytes);
  work->sizes.clear();
  for (int i = 0; i < kMostDimensions; i++) {
    uint32_t size = read<uint32_t>(bytes);
    bytes += 2 * sizeof(uint32_t);  // of a division without a division
    if (i < dimensions) work->sizes.push_back(size);
  }
  for (Operand &operand : work->operands) operand.strides.clear();
  for (int i = 0; i < kMostDimensions; i++)
    for (int j = 0; j < operands; j++) {
      uint32_t stride = read<uint32_t>(bytes);
      if (i < dimensions) work->operands[j].strides.push_back(stride);
    }
}

bool read_strided(const std::string &kernel, void **arguments, bool casts, Elementwise *work) {
  // How long the offsets and the addresses are depends on how many inputs the functor has, which its name says.
  static const char zeros[64] = {};
  if (!find_functor(kernel, zeros, &work->functor)) return false;
  size_t operands = work->functor.inputs + 1;
  const char *bytes = static_cast<const char *>(arguments[1]);
  size_t offsets = sizeof(int32_t) * (1 + 3 * kMostDimensions + kMostDimensions * operands);
  const char *addresses = bytes + (offsets + 7) / 8 * 8, *functor = addresses + 8 * operands;
  find_functor(kernel, functor, &work->functor);
  add_operands(work, addresses);
  read_offsets(bytes, work);
  if (!casts) return true;
  const char *dtypes = functor + work->functor.size;
  bool known = true;
  for (Operand &operand : work->operands) known = known && dtype_of(read<int8_t>(dtypes), &operand.dtype);
  return known;
}

bool begins_with(const std::string &text, const char *begin) { return text.rfind(begin, 0) == 0; }

bool read_launch(const std::string &kernel, void **arguments, Elementwise *work) {
  work->count = static_cast<size_t>(*static_cast<const int32_t *>(arguments[0]));
  if (begins_with(kernel, "void at::native::vectorized_elementwise_kernel<"))
    return read_dense(kernel, arguments, false, work);
  if (begins_with(kernel, "void at::native::unrolled_elementwise_kernel<"))
    return read_dense(kernel, arguments, kernel.find("LoadWithCast<") != std::string::npos, work);
  if (!begins_with(kernel, "void at::native::elementwise_kernel<")) return false;
  bool casts = kernel.find("gpu_kernel_impl<") != std::string::npos;
  if (!casts && kernel.find("gpu_kernel_impl_nocast<") == std::string::npos) return false;
  return read_strided(kernel, arguments, casts, work);
}

/// Converts a number to a dtype and back, as an argument of a functor is.
double as(Dtype dtype, double value) {
  char bytes[8];
  store(bytes, dtype, value);
  return load(bytes, dtype);
}

void run(const std::string &kernel, const Elementwise &work, int device) {
  if (work.count == 0) return;
  for (const Operand &operand : work.operands) {
    size_t last = 0;
    for (size_t i = 0; i < work.sizes.size(); i++) last += (work.sizes[i] - 1) * operand.strides[i];
    if (!check_access(kernel, device, operand.address, last + size_of(operand.dtype))) return;
  }
  const Functor &functor = work.functor;
  for (size_t i = 0; i < work.count; i++) {
    double inputs[2];
    for (int j = 0; j < functor.inputs; j++) {
      const Operand &operand = work.operands[j + 1];
      inputs[j] = as(functor.in, load(operand.at(i, work.sizes), operand.dtype));
    }
    const Operand &output = work.operands[0];
    store(output.at(i, work.sizes), output.dtype, as(functor.out, functor.call(inputs)));
  }
}

}  // namespace

Task task_of(const std::string &kernel, void **arguments) {
  Elementwise work;
  if (!read_launch(kernel, arguments, &work)) return nullptr;
  return [=](int device) { run(kernel, work, device); };
}

bool check_access(const std::string &kernel, int number, const void *address, size_t bytes) {
  if (usable(address, bytes, number)) return true;
  Device &broken = device(number);
  broken.error = cudaErrorIllegalAddress;
  broken.reason = "an illegal memory access was encountered in " + kernel;
  return false;
}
