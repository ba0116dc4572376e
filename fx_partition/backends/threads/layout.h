// The memory layouts of a stage's results: the layout that the compiler promised, and a check of the result.

#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "aoti_code.h"

namespace stage_loop {

// The dimensions of a tensor from the outermost in memory to the innermost; empty where nothing depends on the layout.
using Order = std::vector<int>;

// Returns whether a tensor is dense in this order. The stride of a dimension of size 1 does not matter.
inline bool is_in_order(Handle tensor, const Order& order) {
  int64_t dims = 0, *sizes = nullptr, *strides = nullptr;
  if (aoti_torch_get_dim(tensor, &dims) || aoti_torch_get_sizes(tensor, &sizes) ||
      aoti_torch_get_strides(tensor, &strides))
    throw std::runtime_error("a result of a stage has no strides");
  if (dims != int64_t(order.size())) return false;
  for (int64_t d = 0; d < dims; ++d)
    if (!sizes[d]) return true;  // an empty tensor has every layout
  int64_t step = 1;
  for (size_t i = order.size(); i-- > 0;) {
    const int d = order[i];
    if (sizes[d] != 1 && strides[d] != step) return false;
    step *= sizes[d];
  }
  return true;
}

// Throws if a result has another layout than the next stage was compiled for, as that stage would read wrong elements.
inline void refuse_other_layouts(const std::vector<Order>& orders, const std::vector<Handle>& results) {
  for (size_t i = 0; i < orders.size(); ++i)
    if (!orders[i].empty() && !is_in_order(results[i], orders[i]))
      throw std::runtime_error("result " + std::to_string(i) +
                               " is laid out in another way than the next stage was compiled for: the strides of an "
                               "operator's result differ from those of its fake kernel");
}

}  // namespace stage_loop
