// One thread's work on one tile of queries and one block of keys: pack, multiply, softmax, accumulate.
//
// A tile is some query tokens by the query heads that share a KV head, and so the packed keys. Blocks of kKeys keys start
// at multiples of kKeys, independent of the request, its pages and its chunks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

#include "tiles.h"
#include "transpose.h"
#include "vector.h"

namespace fxhlo {

constexpr int kKeys = 64;
constexpr int kMaxHeadSize = 576;
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

// ---- packing -----------------------------------------------------------------------------------------------

// keys[kKeys] rows of head_size values -> [words][kKeys] words: one query word is then multiplied with kLanes keys at once.
template <typename T>
void pack_keys(const T* const* keys, int head_size, uint32_t* out) {
  using Packed = PackedOf<T>;
  constexpr int kPer = kPerWord<Packed>;
#if defined(FXHLO_AVX512)
  if constexpr (std::is_same_v<T, Packed>) {
    const int words = (head_size + kPer - 1) / kPer;
    for (int group = 0; group < kKeys; group += 16) {
      for (int word = 0; word < words; word += 16) {
        __m512i rows[16];
        const int64_t bytes = (head_size - word * kPer) * sizeof(T);
        for (int i = 0; i < 16; ++i) rows[i] = load_bytes(keys[group + i] + word * kPer, bytes);
        transpose(rows);
        for (int i = 0; i < std::min(16, words - word); ++i) store(out + (word + i) * kKeys + group, rows[i]);
      }
    }
    return;
  }
#endif
  if constexpr (kPer == 1) {
    int i = 0;
    for (; i + kLanes <= head_size; i += kLanes) {
      for (int group = 0; group < kKeys; group += kLanes) {
        Floats rows[kLanes];
        for (int key = 0; key < kLanes; ++key) rows[key] = load_as(keys[group + key] + i);
        transpose(rows);
        for (int word = 0; word < kLanes; ++word) store(out + (i + word) * kKeys + group, rows[word]);
      }
    }
    for (; i < head_size; ++i) {
      for (int key = 0; key < kKeys; ++key) out[i * kKeys + key] = bit_cast<uint32_t>(to_float(keys[key][i]));
    }
  }
}

// values[kKeys] rows -> [kKeys / kPer][padded] words, padded a multiple of kLanes: a word is one column of kPer keys.
template <typename T>
void pack_values(const T* const* values, int head_size, int padded, uint32_t* out) {
  using Packed = PackedOf<T>;
#if defined(FXHLO_BF16_DOT)
  if constexpr (std::is_same_v<T, BFloat16>) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i low = _mm512_or_si512(lanes, _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(32)), 16));
    const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int key = 0; key < kKeys; key += 2, out += padded) {
      for (int column = 0; column < head_size; column += 32) {
        const int64_t bytes = (head_size - column) * sizeof(T);
        const __m512i even = load_bytes(values[key] + column, bytes), odd = load_bytes(values[key + 1] + column, bytes);
        store(out + column, _mm512_permutex2var_epi16(even, low, odd));
        if (column + 16 < padded) store(out + column + 16, _mm512_permutex2var_epi16(even, high, odd));
      }
    }
    return;
  }
#endif
  if constexpr (kPerWord<Packed> == 1) {
    for (int key = 0; key < kKeys; ++key, out += padded) {
      convert(values[key], reinterpret_cast<float*>(out), head_size);
      std::fill(out + head_size, out + padded, 0u);
    }
  }
}

template <typename T>
bool all_finite(const T* const* values, int head_size) {
  bool finite = true;
  for (int key = 0; key < kKeys; ++key) {
    for (int i = 0; i < head_size; ++i) {
      const float value = to_float(values[key][i]);
      finite &= value - value == 0.0f;
    }
  }
  return finite;
}

// ---- matmuls -----------------------------------------------------------------------------------------------

// c[Rows][Vectors * kLanes] = c * shrink + a b, or a b if shrink is null; a [Rows][depth] words, b [depth][...] words.
// Each output is one chain of additions, in order of depth.
template <typename Packed, int Rows, int Vectors>
inline void product_tile(const uint32_t* a, int64_t a_row, int depth, const uint32_t* b, int64_t b_row, float* c,
                         int64_t c_row, const float* shrink) {
  Floats sums[Rows][Vectors] = {};
  if (shrink != nullptr) {
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Vectors; ++v) sums[r][v] = load<Floats>(c + r * c_row + v * kLanes) * shrink[r];
    }
  }
  for (int i = 0; i < depth; ++i, b += b_row) {
    Words words[Rows];
    for (int r = 0; r < Rows; ++r) words[r] = broadcast_word(a + r * a_row + i);
    for (int v = 0; v < Vectors; ++v) {
      const Words column = in_register(load<Words>(b + v * kLanes));
      for (int r = 0; r < Rows; ++r) sums[r][v] = multiply_add<Packed>(words[r], column, sums[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) store(c + r * c_row + v * kLanes, sums[r][v]);
  }
}

// product_tile for any number of rows, and of columns that is a multiple of kLanes.
template <typename Packed>
void product(const uint32_t* a, int64_t a_row, int rows, int depth, const uint32_t* b, int columns, float* c,
             const float* shrink) {
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  for (int tile = 0; tile < tiles; ++tile) {
    const int row = rows * tile / tiles, next = rows * (tile + 1) / tiles;
    with_rows(next - row, [&](auto count) {
      const uint32_t* from = a + row * a_row;
      const float* by = shrink == nullptr ? nullptr : shrink + row;
      float* to = c + static_cast<int64_t>(row) * columns;
      int column = 0;
      for (; column + kTileVectors * kLanes <= columns; column += kTileVectors * kLanes) {
        product_tile<Packed, count(), kTileVectors>(from, a_row, depth, b + column, columns, to + column, columns, by);
      }
      for (; column < columns; column += kLanes) {
        product_tile<Packed, count(), 1>(from, a_row, depth, b + column, columns, to + column, columns, by);
      }
    });
  }
}

#if defined(FXHLO_TILES)
// product_tile with AMX: Rows x Columns tiles of sums, starting from c (or zero) and stored to it.
template <int Rows, int Columns>
inline void product_tiles(const uint32_t* a, int64_t a_row, int depth, const uint32_t* b, int64_t b_row, float* c, bool add) {
  const int64_t stride = b_row * 4, a_stride = a_row * 4;
  float* lower = c + kTileSide * b_row;
  if (add) {
    load_tile<0>(c, stride);
    if constexpr (Columns == 2) load_tile<1>(c + kTileSide, stride);
    if constexpr (Rows == 2) load_tile<2>(lower, stride);
    if constexpr (Rows == 2 && Columns == 2) load_tile<3>(lower + kTileSide, stride);
  } else {
    zero_tile<0>(), zero_tile<1>(), zero_tile<2>(), zero_tile<3>();
  }
  for (int i = 0; i < depth; i += kTileSide, b += kTileSide * b_row) {
    load_tile<4>(a + i, a_stride), load_tile<6>(b, stride);
    multiply_tiles<0, 4, 6>();
    if constexpr (Columns == 2) {
      load_tile<7>(b + kTileSide, stride);
      multiply_tiles<1, 4, 7>();
    }
    if constexpr (Rows == 2) {
      load_tile<5>(a + kTileSide * a_row + i, a_stride);
      multiply_tiles<2, 5, 6>();
      if constexpr (Columns == 2) multiply_tiles<3, 5, 7>();
    }
  }
  store_tile<0>(c, stride);
  if constexpr (Columns == 2) store_tile<1>(c + kTileSide, stride);
  if constexpr (Rows == 2) store_tile<2>(lower, stride);
  if constexpr (Rows == 2 && Columns == 2) store_tile<3>(lower + kTileSide, stride);
}

// product<BFloat16> with AMX and this thread's TileShapes. With at least kTileSide rows, their number is rounded up to a
// multiple of it, which the buffers must hold. depth and columns are multiples of kTileSide.
inline void tiled_product(const uint32_t* a, int64_t a_row, int rows, int depth, const uint32_t* b, int columns, float* c,
                          const float* shrink) {
  for (int r = 0; shrink != nullptr && r < rows; ++r) {
    if (shrink[r] == 1.0f) continue;
    float* row = c + static_cast<int64_t>(r) * columns;
    for (int i = 0; i < columns; i += kLanes) store(row + i, load<Floats>(row + i) * shrink[r]);
  }
  const bool add = shrink != nullptr;
  for (int row = 0; row < rows; row += 2 * kTileSide, a += 2 * kTileSide * a_row, c += 2 * kTileSide * columns) {
    const bool two = row + kTileSide < rows;
    int column = 0;
    for (; column + 2 * kTileSide <= columns; column += 2 * kTileSide) {
      two ? product_tiles<2, 2>(a, a_row, depth, b + column, columns, c + column, add)
          : product_tiles<1, 2>(a, a_row, depth, b + column, columns, c + column, add);
    }
    if (column < columns) {
      two ? product_tiles<2, 1>(a, a_row, depth, b + column, columns, c + column, add)
          : product_tiles<1, 1>(a, a_row, depth, b + column, columns, c + column, add);
    }
  }
}
#endif

// ---- softmax -----------------------------------------------------------------------------------------------

struct Scoring {
  float scale;
  float soft_cap;  // 0: none
};

// tanh with an absolute error of about 1e-7.
inline Floats tanh(Floats x) {
  const Floats limit = broadcast(60.0f);
  Floats power = x * (2 * kLog2E);
  power = power > limit ? limit : power;
  power = power < -limit ? -limit : power;
  power = exp2(power);
  return (power - 1.0f) / (power + 1.0f);
}

// Softmax of one row over one block: s [kKeys] dot products -> words [kKeys / kPer], weights 2^(score - highest).
// Keys [first, last) of the block are visible. Updates highest and total [kLanes], whose lanes are added
// up at the end, and returns the factor for earlier weights.
// A fully masked block leaves the row's state unchanged, bit for bit: other rows of the tile may need that block.
template <typename Packed>
inline float softmax_row(float* s, uint32_t* words, int first, int last, const Scoring& scoring, float slope,
                         int distance, float& highest, float* total) {
  if (first >= last) {
    std::memset(words, 0, kKeys * sizeof(Packed));
    return 1.0f;
  }
  constexpr int kVectors = kKeys / kLanes;
  Floats scores[kVectors];
  Floats top = broadcast(kMinusInfinity);
  const Ints lanes = iota();
  for (int v = 0; v < kVectors; ++v) {
    Floats score = load<Floats>(s + v * kLanes);
    if (scoring.soft_cap > 0) {
      score = tanh(score * (scoring.scale / scoring.soft_cap)) * (scoring.soft_cap * kLog2E);
    } else {
      score = score * (scoring.scale * kLog2E);
    }
    const Ints key = lanes + v * kLanes;
    if (slope != 0) score += __builtin_convertvector(key + distance, Floats) * (slope * kLog2E);
    if (first > 0 || last < kKeys) score = ((key >= first) & (key < last)) ? score : broadcast(kMinusInfinity);
    scores[v] = score;
    top = max(score, top);
  }
  const float block_top = max_lanes(top);
  const float raised = block_top > highest ? block_top : highest;
  const float base = raised == kMinusInfinity ? 0.0f : raised;
  const float shrink = raised == highest ? 1.0f : exp2(broadcast(highest - base))[0];
  Floats sum{};
  for (int v = 0; v < kVectors; ++v) {
    scores[v] = exp2(scores[v] - base);
    sum += scores[v];
  }
  if constexpr (kPerWord<Packed> == 1) {
    for (int v = 0; v < kVectors; ++v) store(words + v * kLanes, scores[v]);
  } else {
    for (int v = 0; v < kVectors; ++v) store_as(reinterpret_cast<Packed*>(words) + v * kLanes, scores[v]);
  }
  highest = raised;
  store(total, fma(load<Floats>(total), broadcast(shrink), sum));
  return shrink;
}

}  // namespace fxhlo
