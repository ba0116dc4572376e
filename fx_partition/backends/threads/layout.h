// How a stage's results are laid out in memory: what its compiler promised, and whether a result keeps it.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "aoti_code.h"

namespace stage_loop {

// The dimensions of a tensor from the outermost in memory to the innermost; none: nothing depends on the layout.
using Order = std::vector<int>;

// Whether a tensor fills its memory in an order. The stride of a dimension of one element says nothing.
inline bool is_in_order(Handle tensor, const Order& order) {
  int64_t dims = 0, *sizes = nullptr, *strides = nullptr;
  if (aoti_torch_get_dim(tensor, &dims) || aoti_torch_get_sizes(tensor, &sizes) ||
      aoti_torch_get_strides(tensor, &strides))
    throw std::runtime_error("a result of a stage has no strides");
  if (dims != int64_t(order.size())) return false;
  for (int64_t d = 0; d < dims; ++d)
    if (!sizes[d]) return true;
  int64_t step = 1;
  for (size_t i = order.size(); i-- > 0;) {
    const int d = order[i];
    if (sizes[d] != 1 && strides[d] != step) return false;
    step *= sizes[d];
  }
  return true;
}

// The stage that takes a result was compiled for its layout, and would read other numbers.
inline void refuse_other_layouts(const std::vector<Order>& orders, const std::vector<Handle>& results) {
  for (size_t i = 0; i < orders.size(); ++i)
    if (!orders[i].empty() && !is_in_order(results[i], orders[i]))
      throw std::runtime_error("result " + std::to_string(i) +
                               " is laid out in another way than what takes it was compiled for: an operator does not "
                               "lay its result out as its fake kernel says");
}

}  // namespace stage_loop
