// Scalar bfloat16 and float16, stored as bits, and their conversion to and from float32.
#pragma once

#include <cstdint>
#include <cstring>

namespace fxhlo {

struct BFloat16 {
  uint16_t bits;
};
struct Half {
  uint16_t bits;
};

template <typename To, typename From>
inline To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float to_float(float value) { return value; }
inline float to_float(BFloat16 value) { return bit_cast<float>(uint32_t{value.bits} << 16); }
inline float to_float(Half value) {
  // Denormals are converted as integers: XLA's threads flush denormal floats to zero, and those of float16 are normal in float32.
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t special = magnitude >= 0x7c00u ? 0x7f800000u : 0u;  // infinity and NaN
  const float normal = bit_cast<float>(((magnitude << 13) + 0x38000000u) | special);
  const float result = magnitude < 0x400u ? static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-24f : normal;
  return (value.bits & 0x8000u) ? -result : result;
}

// Round to nearest even; NaN stays NaN.
template <typename T>
inline T from_float(float value);
template <>
inline float from_float<float>(float value) {
  return value;
}
template <>
inline BFloat16 from_float<BFloat16>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if (value != value) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
template <>
inline Half from_float<Half>(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {  // below 2^-14: the float32 addition rounds to the denormals' precision
    const uint32_t sum = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f);
    return {static_cast<uint16_t>(sign | (sum - 0x3f000000u))};
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

}  // namespace fxhlo
