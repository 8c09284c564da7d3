// Vectors of float32 in the machine's native width, and the operands of one dot product step for each dtype.
//
// Arithmetic uses GCC's and clang's vector extension on every machine; intrinsics are used only for instructions that it
// cannot express (fused multiply-add, bfloat16 dot products, masked loads, float16).
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "convert.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the native kernels read pairs of bfloat16 as little-endian words"
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define FXHLO_AVX512 1
#if defined(__AVX512BF16__) && !(defined(__clang__) && __clang_major__ < 17)
#define FXHLO_BF16_DOT 1  // clang 16.0.6 crashes on attention.cc with them
#endif
#endif

namespace fxhlo {

// A register tile is kTileRows x kTileVectors accumulators, which leaves registers for loaded operands.
inline constexpr int kTileVectors = 4;
#if defined(FXHLO_AVX512)
inline constexpr int kLanes = 16;
inline constexpr int kTileRows = 6;
#elif defined(__AVX2__)
inline constexpr int kLanes = 8;
inline constexpr int kTileRows = 3;
#else
inline constexpr int kLanes = 4;
inline constexpr int kTileRows = 6;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Shorts __attribute__((vector_size(kLanes * 2)));

template <typename Vector>
inline Vector load(const void* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <typename Vector>
inline void store(void* to, Vector vector) {
  std::memcpy(to, &vector, sizeof(vector));
}

inline Floats broadcast(float value) { return value - Floats{}; }

// Lane numbers 0, 1, 2, ...
inline Ints iota() {
  Ints lanes;
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
  return lanes;
}

inline Floats fma(Floats a, Floats b, Floats c) {
#if defined(FXHLO_AVX512)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__) && defined(__FMA__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__aarch64__)
  return vfmaq_f32(c, a, b);
#else
  return c + a * b;
#endif
}

inline Floats max(Floats a, Floats b) { return a > b ? a : b; }

// Horizontal reductions by halves, in the same order for every caller.
inline float sum_lanes(Floats vector) {
#if !defined(FXHLO_AVX512) && defined(__AVX2__)
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(vector), _mm256_extractf128_ps(vector, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
#endif
  float lanes[kLanes];
  store(lanes, vector);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

inline float max_lanes(Floats vector) {
#if defined(FXHLO_AVX512)
  return _mm512_reduce_max_ps(vector);
#else
  float highest = vector[0];
  for (int i = 1; i < kLanes; ++i) highest = vector[i] > highest ? vector[i] : highest;
  return highest;
#endif
}

// 2^x with an error of about one unit in the last place; 0 below -126, NaN for NaN. x must not exceed 126.
inline Floats exp2(Floats x) {
  const Floats low = broadcast(-126.0f);
  const Floats clamped = x < low ? low : x;
  const Floats whole = (clamped + 0x1.8p23f) - 0x1.8p23f;  // to the nearest integer, by the mantissa's end
  const Floats rest = clamped - whole;
  Floats power = broadcast(1.5353362e-4f);
  power = fma(power, rest, broadcast(1.3398874e-3f));
  power = fma(power, rest, broadcast(9.6184373e-3f));
  power = fma(power, rest, broadcast(5.5503324e-2f));
  power = fma(power, rest, broadcast(2.4022648e-1f));
  power = fma(power, rest, broadcast(6.9314720e-1f));
  power = fma(power, rest, broadcast(1.0f));
  const Ints exponent = __builtin_convertvector(whole, Ints) << 23;
  const Floats result = reinterpret_cast<Floats>(reinterpret_cast<Ints>(power) + exponent);
  return x < low ? Floats{} : result;
}

// ---- multiplication of packed words ------------------------------------------------------------------------
//
// A word is what one lane multiplies at a time: a pair of bfloat16 if the machine has a dot product for them, else
// one float32, to which other dtypes are converted when they are packed.

#if defined(FXHLO_BF16_DOT)
template <typename T>
using PackedOf = std::conditional_t<std::is_same_v<T, BFloat16>, BFloat16, float>;
#else
template <typename T>
using PackedOf = float;
#endif

// Number of values of the packed type per word.
template <typename Packed>
inline constexpr int kPerWord = 4 / static_cast<int>(sizeof(Packed));

// sums + a * b, a word at a time in each lane.
template <typename Packed>
inline Floats multiply_add(Words a, Words b, Floats sums) {
#if defined(FXHLO_BF16_DOT)
  if constexpr (std::is_same_v<Packed, BFloat16>) return _mm512_dpbf16_ps(sums, (__m512bh)a, (__m512bh)b);
#endif
  return fma(reinterpret_cast<Floats>(a), reinterpret_cast<Floats>(b), sums);
}

// Broadcasts one word to every lane, or four words to every four lanes.
inline Words broadcast_word(const void* from) {
  uint32_t word;
  std::memcpy(&word, from, sizeof(word));
  return word - Words{};
}

inline Words broadcast_quad(const void* from) {
#if defined(FXHLO_AVX512)
  return (Words)_mm512_broadcast_i32x4(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
  return (Words)_mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(from)));
#else
  Words words;
  for (int lane = 0; lane < kLanes; lane += 4) std::memcpy(reinterpret_cast<char*>(&words) + 4 * lane, from, 16);
  return words;
#endif
}

// kLanes values of T as floats.
template <typename T>
inline Floats load_as(const T* from) {
  if constexpr (std::is_same_v<T, float>) return load<Floats>(from);
  if constexpr (std::is_same_v<T, BFloat16>) {
    return reinterpret_cast<Floats>(__builtin_convertvector(load<Shorts>(from), Words) << 16);
  }
#if defined(FXHLO_AVX512)
  if constexpr (std::is_same_v<T, Half>) return _mm512_cvtph_ps(load<__m256i>(from));
#elif defined(__AVX2__) && defined(__F16C__)
  if constexpr (std::is_same_v<T, Half>) return _mm256_cvtph_ps(load<__m128i>(from));
#endif
  float lanes[kLanes];
  for (int i = 0; i < kLanes; ++i) lanes[i] = to_float(from[i]);
  return load<Floats>(lanes);
}

// Stores kLanes floats as T; a kernel's result is rounded only here.
template <typename T>
inline void store_as(T* to, Floats values) {
  if constexpr (std::is_same_v<T, float>) return store(to, values);
#if defined(FXHLO_BF16_DOT)
  if constexpr (std::is_same_v<T, BFloat16>) return store(to, _mm512_cvtneps_pbh(values));
#endif
  if constexpr (std::is_same_v<T, BFloat16>) {
    const Words bits = reinterpret_cast<Words>(values);
    const Words number = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, nan = (bits >> 16) | 0x40u;
    return store(to, __builtin_convertvector(values == values ? number : nan, Shorts));
  }
#if defined(FXHLO_AVX512)
  if constexpr (std::is_same_v<T, Half>) return store(to, _mm512_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__) && defined(__F16C__)
  if constexpr (std::is_same_v<T, Half>) return store(to, _mm256_cvtps_ph(values, _MM_FROUND_TO_NEAREST_INT));
#endif
  float lanes[kLanes];
  store(lanes, values);
  for (int i = 0; i < kLanes; ++i) to[i] = from_float<T>(lanes[i]);
}

// Keeps a loaded value in a register: a compiler may load it again for each use, and loads are what an inner loop has fewest of a cycle.
inline Words in_register(Words value) {
#if defined(__x86_64__)
  asm("" : "+v"(value));
#endif
  return value;
}

// Converts count values from `from` to `to`.
template <typename To, typename From>
inline void convert(const From* from, To* to, int64_t count) {
  if constexpr (std::is_same_v<To, From>) {
    std::memcpy(to, from, count * sizeof(To));
  } else {
    int64_t at = 0;
    for (; at + kLanes <= count; at += kLanes) store_as(to + at, load_as(from + at));
    for (; at < count; ++at) to[at] = from_float<To>(to_float(from[at]));
  }
}

// Calls f(std::integral_constant<int, count>) for 1 <= count <= kTileRows.
template <typename F, int Rows = kTileRows>
inline void with_rows(int64_t count, const F& f) {
  if constexpr (Rows == 1) {
    f(std::integral_constant<int, 1>());
  } else {
    if (count == Rows) return f(std::integral_constant<int, Rows>());
    with_rows<F, Rows - 1>(count, f);
  }
}

}  // namespace fxhlo
