// Logits for sampling: with NaN and subnormals replaced, and as integers that sort as the floats do.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#include "convert.h"
#include "vector.h"

namespace fxhlo {

constexpr float kSmallestNormal = std::numeric_limits<float>::min();
constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int64_t kMostTokens = int64_t{1} << 31;  // a token is an int32

// Order image: int32 that sort as the floats do (no NaN), and its inverse.
inline int32_t order(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const int32_t magnitude = static_cast<int32_t>(bits & 0x7fffffffu);
  return static_cast<int32_t>(bits) < 0 ? -magnitude : magnitude;
}
inline float unorder(int32_t value) {
  return bit_cast<float>(value < 0 ? static_cast<uint32_t>(-value) | 0x80000000u : static_cast<uint32_t>(value));
}

inline Ints magnitude(Floats values) { return reinterpret_cast<Ints>(values) & 0x7fffffff; }
inline Ints order(Floats values) {
  const Ints positive = magnitude(values);
  return reinterpret_cast<Ints>(values) < 0 ? -positive : positive;
}

// NaN becomes -infinity; subnormals, which compiled code flushes, become zero.
inline Floats cleaned(Floats values) {
  values = values == values ? values : broadcast(-kInfinity);
  return reinterpret_cast<Floats>(magnitude(values)) < kSmallestNormal ? Floats{} : values;
}
inline float cleaned(float value) {
  value = value != value ? -kInfinity : value;
  return std::fabs(value) < kSmallestNormal ? 0.0f : value;
}

}  // namespace fxhlo
