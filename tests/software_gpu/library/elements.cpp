#include "elements.h"

#include <cmath>
#include <cstring>

namespace {

float bits_to_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

uint32_t float_to_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

double half_to_double(uint16_t half) {
  int exponent = (half >> 10) & 31;
  double fraction = half & 1023;
  double size = exponent == 31  ? (fraction != 0 ? NAN : INFINITY)
                : exponent == 0 ? std::ldexp(fraction, -24)
                                : std::ldexp(1024 + fraction, exponent - 25);
  return half & 0x8000 ? -size : size;
}

uint16_t double_to_half(double value) {
  uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  double size = std::fabs(value);
  if (std::isnan(value)) return 0x7e00;
  if (size >= 65520) return sign | 0x7c00;  // half way from the largest number to the next one
  int exponent = size == 0 ? -14 : std::ilogb(size);
  if (exponent < -14) exponent = -14;  // subnormal
  // A fraction that is rounded up to the next power of two carries into the exponent, as it should.
  double fraction = std::nearbyint(std::ldexp(size, 10 - exponent));
  return sign | static_cast<uint16_t>(((exponent + 14) << 10) + static_cast<int>(fraction));
}

uint16_t double_to_bfloat(double value) {
  uint32_t bits = float_to_bits(static_cast<float>(value));
  if (std::isnan(value)) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <typename T>
T read(const void *address) {
  T value;
  std::memcpy(&value, address, sizeof value);
  return value;
}

template <typename T>
void write(void *address, T value) {
  std::memcpy(address, &value, sizeof value);
}

}  // namespace

size_t size_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: case Dtype::i32: return 4;
    case Dtype::f16: case Dtype::bf16: return 2;
    case Dtype::f64: case Dtype::i64: return 8;
    default: return 1;
  }
}

double load(const void *address, Dtype dtype) {
  switch (dtype) {
    case Dtype::f32: return read<float>(address);
    case Dtype::f16: return half_to_double(read<uint16_t>(address));
    case Dtype::bf16: return bits_to_float(static_cast<uint32_t>(read<uint16_t>(address)) << 16);
    case Dtype::f64: return read<double>(address);
    case Dtype::i64: return static_cast<double>(read<int64_t>(address));
    case Dtype::i32: return read<int32_t>(address);
    default: return read<uint8_t>(address);
  }
}

void store(void *address, Dtype dtype, double value) {
  switch (dtype) {
    case Dtype::f32: return write(address, static_cast<float>(value));
    case Dtype::f16: return write(address, double_to_half(value));
    case Dtype::bf16: return write(address, double_to_bfloat(value));
    case Dtype::f64: return write(address, value);
    case Dtype::i64: return write(address, static_cast<int64_t>(value));
    case Dtype::i32: return write(address, static_cast<int32_t>(value));
    case Dtype::boolean: return write(address, static_cast<uint8_t>(value != 0));
    case Dtype::u8: return write(address, static_cast<uint8_t>(value));
  }
}
