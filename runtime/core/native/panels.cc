// streamed_tile and kept_tile for every dtype, compiled once for all products (panels.h).
#include "panels.h"

namespace fxhlo {
namespace {

static_assert(kTileVectors == 4, "finish() interleaves four vectors");
constexpr int kSpan = 4;  // quads along k regrouped at a time: one cache line of each row

// One vector of a panel at k = at; count < kStep at the end of a row, the rest zero.
template <typename T>
inline Words regroup(const Panel<T>& panel, int vector, int64_t at, int count) {
  PackedOf<T> values[kLanes * kPerWord<PackedOf<T>>] = {};
  for (int i = 0; i < kLanes / 4; ++i) convert(panel.rows[4 * i + vector] + at, values + i * kStep<T>, count);
  return load<Words>(values);
}

// regroup for kSpan consecutive full quads.
template <typename T>
inline void regroup_span(const Panel<T>& panel, int vector, int64_t at, Words* out) {
#if defined(FXHLO_AVX512)
  if constexpr (std::is_same_v<T, PackedOf<T>>) {
    const __m512i a = load<__m512i>(panel.rows[vector] + at), b = load<__m512i>(panel.rows[4 + vector] + at);
    const __m512i c = load<__m512i>(panel.rows[8 + vector] + at), d = load<__m512i>(panel.rows[12 + vector] + at);
    const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
    const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
    out[0] = (Words)_mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
    out[1] = (Words)_mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
    out[2] = (Words)_mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
    out[3] = (Words)_mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
    return;
  }
#elif defined(__AVX2__)
  const T *a = panel.rows[vector] + at, *b = panel.rows[4 + vector] + at;
  if constexpr (std::is_same_v<T, float>) {
    for (int quad = 0; quad < kSpan; ++quad) {
      const __m256i first = _mm256_castsi128_si256(load<__m128i>(a + 4 * quad));
      out[quad] = (Words)_mm256_inserti128_si256(first, load<__m128i>(b + 4 * quad), 1);
    }
    return;
  }
  if constexpr (std::is_same_v<T, BFloat16>) {  // a bfloat16 is the upper half of a float
    for (int pair = 0; pair < kSpan; pair += 2) {
      const __m256i first = _mm256_castsi128_si256(load<__m128i>(a + 4 * pair));
      const __m256i both = _mm256_inserti128_si256(first, load<__m128i>(b + 4 * pair), 1);
      out[pair] = (Words)_mm256_unpacklo_epi16(_mm256_setzero_si256(), both);
      out[pair + 1] = (Words)_mm256_unpackhi_epi16(_mm256_setzero_si256(), both);
    }
    return;
  }
#if defined(__F16C__)
  if constexpr (std::is_same_v<T, Half>) {
    for (int pair = 0; pair < kSpan; pair += 2) {
      const __m128i first = load<__m128i>(a + 4 * pair), second = load<__m128i>(b + 4 * pair);
      out[pair] = (Words)_mm256_cvtph_ps(_mm_unpacklo_epi64(first, second));
      out[pair + 1] = (Words)_mm256_cvtph_ps(_mm_unpackhi_epi64(first, second));
    }
    return;
  }
#endif
#endif
  for (int quad = 0; quad < kSpan; ++quad) out[quad] = regroup(panel, vector, at + quad * kStep<T>, kStep<T>);
}

// kPanel outputs of one row: lane 4 * i + v is the sum of the four lanes from 4 * i of vector v.
inline void finish(const Floats* sums, float* out) {
#if defined(FXHLO_AVX512)
  const __m512 a = sums[0], b = sums[1], c = sums[2], d = sums[3];
  const __m512d ab = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512d cd = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  store(out, _mm512_add_ps((__m512)_mm512_unpacklo_pd(ab, cd), (__m512)_mm512_unpackhi_pd(ab, cd)));
#elif defined(__AVX2__)
  const __m256 a = sums[0], b = sums[1], c = sums[2], d = sums[3];
  const __m256d ab = (__m256d)_mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  const __m256d cd = (__m256d)_mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
  store(out, _mm256_add_ps((__m256)_mm256_unpacklo_pd(ab, cd), (__m256)_mm256_unpackhi_pd(ab, cd)));
#else
  for (int i = 0; i < kLanes / 4; ++i) {
    for (int v = 0; v < kTileVectors; ++v) {
      out[4 * i + v] = (sums[v][4 * i] + sums[v][4 * i + 2]) + (sums[v][4 * i + 1] + sums[v][4 * i + 3]);
    }
  }
#endif
}

// Prefetches the next panel: hardware may not detect so many streams, and a virtual machine with prefetchers off read w at
// a tenth of the speed.
template <int Rows, typename T>
void streamed(const Panel<T>& panel, int64_t k, const Quad* x, Words* kept, float* out) {
  Floats sums[Rows][kTileVectors] = {};
  int64_t at = 0;
  for (; at + kSpan * kStep<T> <= k; at += kSpan * kStep<T>, x += kSpan * Rows) {
    for (int i = 0; i < kPanel; ++i) __builtin_prefetch(panel.rows[i] + panel.next + at, 0, 2);
    for (int v = 0; v < kTileVectors; ++v) {
      Words quads[kSpan];
      regroup_span(panel, v, at, quads);
      for (int quad = 0; quad < kSpan; ++quad) {
        if (kept != nullptr) kept[quad * kTileVectors + v] = quads[quad];
        for (int r = 0; r < Rows; ++r) {
          sums[r][v] = multiply_add<PackedOf<T>>(broadcast_quad(x + quad * Rows + r), quads[quad], sums[r][v]);
        }
      }
    }
    if (kept != nullptr) kept += kSpan * kTileVectors;
  }
  for (; at < k; at += kStep<T>, x += Rows) {
    for (int v = 0; v < kTileVectors; ++v) {
      const Words words = regroup(panel, v, at, static_cast<int>(std::min<int64_t>(kStep<T>, k - at)));
      for (int r = 0; r < Rows; ++r) sums[r][v] = multiply_add<PackedOf<T>>(broadcast_quad(x + r), words, sums[r][v]);
      if (kept != nullptr) *kept++ = words;
    }
  }
  for (int r = 0; r < Rows; ++r) finish(sums[r], out + r * kPanel);
}

template <int Rows, typename Packed>
void kept(int64_t steps, const Quad* x, const Words* panel, float* out) {
  Floats sums[Rows][kTileVectors] = {};
  for (; steps > 0; --steps, x += Rows, panel += kTileVectors) {
    for (int line = 0; line < Rows; line += 4) __builtin_prefetch(x + 32 * Rows + line);
    Words words[Rows];
    for (int r = 0; r < Rows; ++r) words[r] = broadcast_quad(x + r);
    for (int v = 0; v < kTileVectors; ++v) {  // the order in which the fewest values are loaded, and all fit into registers
      const Words column = in_register(panel[v]);
      for (int r = 0; r < Rows; ++r) sums[r][v] = multiply_add<Packed>(words[r], column, sums[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r) finish(sums[r], out + r * kPanel);
}

}  // namespace

template <typename T>
void streamed_tile(const Panel<T>& panel, int64_t k, int64_t count, const Quad* x, Words* kept, float* out) {
  with_rows(count, [&](auto rows) { streamed<rows()>(panel, k, x, kept, out); });
}

template <typename Packed>
void kept_tile(int64_t steps, int64_t count, const Quad* x, const Words* panel, float* out) {
  with_rows(count, [&](auto rows) { kept<rows(), Packed>(steps, x, panel, out); });
}

template void streamed_tile(const Panel<float>&, int64_t, int64_t, const Quad*, Words*, float*);
template void streamed_tile(const Panel<BFloat16>&, int64_t, int64_t, const Quad*, Words*, float*);
template void streamed_tile(const Panel<Half>&, int64_t, int64_t, const Quad*, Words*, float*);
template void kept_tile<float>(int64_t, int64_t, const Quad*, const Words*, float*);
#if defined(FXHLO_BF16_DOT)
template void kept_tile<BFloat16>(int64_t, int64_t, const Quad*, const Words*, float*);
#endif

}  // namespace fxhlo
