// Transposes of as many vectors of words as a vector has lanes, and a load of fewer bytes than a vector.
#pragma once

#include <cstdint>

#include "vector.h"

namespace fxhlo {

#if defined(FXHLO_AVX512)
// rows[i] lane j becomes rows[j] lane i.
inline void transpose(__m512i* rows) {
  __m512i pairs[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
    rows[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
    rows[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
    rows[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    pairs[i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0x88);
    pairs[4 + i] = _mm512_shuffle_i32x4(rows[i], rows[4 + i], 0xdd);
    pairs[8 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0x88);
    pairs[12 + i] = _mm512_shuffle_i32x4(rows[8 + i], rows[12 + i], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm512_shuffle_i32x4(pairs[i], pairs[8 + i], 0x88);
    rows[8 + i] = _mm512_shuffle_i32x4(pairs[i], pairs[8 + i], 0xdd);
    rows[4 + i] = _mm512_shuffle_i32x4(pairs[4 + i], pairs[12 + i], 0x88);
    rows[12 + i] = _mm512_shuffle_i32x4(pairs[4 + i], pairs[12 + i], 0xdd);
  }
}

// Loads up to 64 bytes; the rest is zero.
inline __m512i load_bytes(const void* from, int64_t count) {
  return count >= 64 ? _mm512_loadu_si512(from) : _mm512_maskz_loadu_epi8((uint64_t{1} << count) - 1, from);
}
#endif

// rows[i] lane j becomes rows[j] lane i, for kLanes vectors.
inline void transpose(Floats* rows) {
#if defined(FXHLO_AVX512)
  transpose(reinterpret_cast<__m512i*>(rows));
#elif defined(__AVX2__)
  __m256d pairs[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = (__m256d)_mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = (__m256d)_mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    rows[i] = (Floats)_mm256_unpacklo_pd(pairs[i], pairs[i + 2]);
    rows[i + 1] = (Floats)_mm256_unpackhi_pd(pairs[i], pairs[i + 2]);
    rows[i + 2] = (Floats)_mm256_unpacklo_pd(pairs[i + 1], pairs[i + 3]);
    rows[i + 3] = (Floats)_mm256_unpackhi_pd(pairs[i + 1], pairs[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    const __m256 low = rows[i], high = rows[4 + i];
    rows[i] = _mm256_permute2f128_ps(low, high, 0x20);
    rows[4 + i] = _mm256_permute2f128_ps(low, high, 0x31);
  }
#else
  for (int i = 0; i < kLanes; ++i) {
    for (int j = 0; j < i; ++j) {
      const float one = rows[i][j], other = rows[j][i];
      rows[i][j] = other, rows[j][i] = one;
    }
  }
#endif
}

}  // namespace fxhlo
