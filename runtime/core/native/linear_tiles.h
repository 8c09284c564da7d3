// fxhlo_linear in bfloat16 with Intel AMX: y^T = w x^T, so that w, which is large, is read in its own layout.
//
// The rows of x are packed instead, once for many rows of w. A row of y has the same bits in any batch: tiles.h says why.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "tiles.h"
#include "transpose.h"

namespace fxhlo {

constexpr int kTilePanel = 2 * kTileSide;     // rows of w, columns of y, processed together
constexpr int64_t kTileBlockBytes = 1 << 20;  // of x per chunk; read once per group of panels
constexpr int64_t kTileChunksPerThread = 2;   // each chunk packs its rows of x

#if defined(FXHLO_TILES)

constexpr int64_t kTileKeep = 2 * kTilePanel;  // with more rows of x, copying a panel contiguously pays off;
constexpr int64_t kTileGroupBytes = 512 << 10;  // bytes of such copies that stay in the L2 cache

// Rows [row, row + 16) of x -> [steps][16 words of k][16 rows], zero past the last row and past the end of k.
inline void pack_tile_rows(const BFloat16* x, int64_t k, int64_t count, Words* out) {
  for (int64_t at = 0; at < k; at += kTileDepth, out += kTileSide) {
    __m512i rows[kTileSide];
    const int64_t bytes = (k - at) * static_cast<int64_t>(sizeof(BFloat16));
    for (int i = 0; i < kTileSide; ++i) rows[i] = i < count ? load_bytes(x + i * k + at, bytes) : _mm512_setzero_si512();
    transpose(rows);
    for (int i = 0; i < kTileSide; ++i) store(out + i, rows[i]);
  }
}

// Rows [0, kTilePanel) of w -> [steps][kTilePanel] lines of 64 bytes, zero past the last row and past the end of k.
inline void pack_panel(const BFloat16* w, int64_t k, int64_t count, Words* out) {
  for (int64_t at = 0; at < k; at += kTileDepth, out += kTilePanel) {
    const int64_t bytes = (k - at) * static_cast<int64_t>(sizeof(BFloat16));
    for (int i = 0; i < kTilePanel; ++i) store(out + i, i < count ? load_bytes(w + i * k + at, bytes) : _mm512_setzero_si512());
  }
}

// Rounds sums [kTilePanel columns of y][16 rows of y] and stores them; y points to the first.
template <typename Out>
inline void write_tiles(const float* sums, const float* bias, int64_t rows, int64_t columns, Out* y, int64_t stride) {
  __m512i lines[kTilePanel];
  for (int i = 0; i < kTilePanel; ++i) {
    Floats line = load<Floats>(sums + i * kTileSide);
    if (bias != nullptr) line += broadcast(bias[i]);
    lines[i] = (__m512i)line;
  }
  if constexpr (sizeof(Out) == 2) {
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    const __m512i pair = _mm512_or_si512(lanes, _mm512_slli_epi32(_mm512_add_epi32(lanes, _mm512_set1_epi32(16)), 16));
    for (int i = 0; i < kTileSide; ++i) {
      const __m512bh both = _mm512_cvtne2ps_pbh((__m512)lines[2 * i + 1], (__m512)lines[2 * i]);
      lines[i] = _mm512_permutexvar_epi16(pair, (__m512i)both);
    }
    transpose(lines);
    const __mmask32 valid = columns >= kTilePanel ? ~__mmask32{0} : (__mmask32{1} << columns) - 1;
    for (int64_t i = 0; i < rows; ++i) _mm512_mask_storeu_epi16(y + i * stride, valid, lines[i]);
  } else {
    for (int half = 0; half < 2; ++half) {
      const int64_t left = columns - half * kTileSide;
      if (left <= 0) break;
      transpose(lines + half * kTileSide);
      const __mmask16 valid = left >= kTileSide ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      for (int64_t i = 0; i < rows; ++i) _mm512_mask_storeu_epi32(y + i * stride + half * kTileSide, valid, lines[half * kTileSide + i]);
    }
  }
}

// A panel of w: in w's layout for whole steps of k, or packed by pack_panel.
struct TilePanel {
  const char* lines;
  int64_t stride;        // bytes from one row to the next
  int64_t step;          // bytes from one step of k to the next
  int64_t whole;         // steps in `lines`; a partial last one is in `rest`
  const Words* rest;
  const char* next;      // the next panel, in the same layout, to prefetch; or null
};

// Destination of a matmul's results, whose cache lines are prefetched.
struct TileResult {
  const char* lines;
  int64_t stride, rows;
  void fetch(int64_t first, int64_t last) const {
    for (int64_t row = first; row < std::min(last, rows); ++row) __builtin_prefetch(lines + row * stride, 1, 3);
  }
};

// sums [Tiles][kTilePanel][16] = the panel times one or two tiles of rows of x, [steps][16][16] words each.
template <int Tiles>
inline void panel_product(const TilePanel& panel, const Words* x, int64_t steps, const TileResult& result, float* sums) {
  zero_tile<0>(), zero_tile<1>();
  if constexpr (Tiles == 2) zero_tile<2>(), zero_tile<3>();
  const auto multiply = [](const char* a, int64_t stride, const Words* left, const Words* right) {
    load_tile<4>(a, stride), load_tile<6>(left, kTileLine);
    multiply_tiles<0, 4, 6>();
    load_tile<5>(a + kTileSide * stride, stride);
    multiply_tiles<1, 5, 6>();
    if constexpr (Tiles == 2) {
      load_tile<7>(right, kTileLine);
      multiply_tiles<2, 4, 7>();
      multiply_tiles<3, 5, 7>();
    }
  };
  constexpr int kFetched = 4;  // lines of the result prefetched per step
  const Words* second = x + steps * kTileSide;
  for (int64_t step = 0; step < panel.whole; ++step) {
    if (panel.next != nullptr) {
      for (int i = 0; i < kTilePanel; ++i) __builtin_prefetch(panel.next + i * panel.stride + step * panel.step, 0, 2);
    }
    result.fetch(step * kFetched, (step + 1) * kFetched);
    multiply(panel.lines + step * panel.step, panel.stride, x + step * kTileSide, second + step * kTileSide);
  }
  if (panel.whole < steps) {
    multiply(reinterpret_cast<const char*>(panel.rest), kTileLine, x + panel.whole * kTileSide, second + panel.whole * kTileSide);
  }
  store_tile<0>(sums, kTileLine), store_tile<1>(sums + kTileWords, kTileLine);
  if constexpr (Tiles == 2) store_tile<2>(sums + 2 * kTileWords, kTileLine), store_tile<3>(sums + 3 * kTileWords, kTileLine);
}

// y [m, n] = x [m, k] w [n, k]^T (+ bias [n], or null), by blocks of y.
class TiledLinear {
 public:
  // y: bfloat16, or float if `wide`.
  TiledLinear(const BFloat16* x, const BFloat16* w, const BFloat16* bias, void* y, bool wide, int64_t n, int64_t k)
      : x_(x), w_(w), bias_(bias), y_(y), wide_(wide), n_(n), k_(k), steps_((k + kTileDepth - 1) / kTileDepth) {}

  // Computes rows [row, row_end) and columns [column, column_end) of y.
  void block(int64_t row, int64_t row_end, int64_t column, int64_t column_end) const {
    const int64_t tiles = (row_end - row + kTileSide - 1) / kTileSide;
    thread_local std::vector<Words> packed, kept;
    packed.resize(tiles * steps_ * kTileSide);
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = row + t * kTileSide;
      pack_tile_rows(x_ + first * k_, k_, std::min<int64_t>(kTileSide, row_end - first), packed.data() + t * steps_ * kTileSide);
    }
    const bool keep = row_end - row > kTileKeep;
    const int64_t panel_words = steps_ * kTilePanel, most = keep ? std::max<int64_t>(1, kTileGroupBytes / (panel_words * kTileLine)) : 1;
    kept.resize(panel_words * most);
    TileShapes shapes;
    shapes.set(kTileSide);
    while (column < column_end) {
      const int64_t panels = std::min(most, (column_end - column + kTilePanel - 1) / kTilePanel);
      if (keep) {
        for (int64_t p = 0; p < panels; ++p) {
          const int64_t first = column + p * kTilePanel;
          pack_panel(w_ + first * k_, k_, std::min<int64_t>(kTilePanel, n_ - first), kept.data() + p * panel_words);
        }
      }
      TilePanel panel = keep ? TilePanel{} : direct(column, column_end, kept.data());
      for (int64_t t = 0; t < tiles; t += 2) {
        for (int64_t p = 0; p < panels; ++p) {
          if (keep) panel = copied(kept.data() + p * panel_words);
          tiles_of_y(panel, packed.data() + t * steps_ * kTileSide, row + t * kTileSide, row_end, column + p * kTilePanel);
        }
        panel.next = nullptr;
      }
      column += panels * kTilePanel;
    }
  }

 private:
  TilePanel copied(const Words* kept) const {
    return {reinterpret_cast<const char*>(kept), kTileLine, kTilePanel * kTileLine, steps_, nullptr, nullptr};
  }

  // kept: scratch for a partial panel or a partial step of k, which must be copied.
  TilePanel direct(int64_t column, int64_t column_end, Words* kept) const {
    const BFloat16* from = w_ + column * k_;
    if (n_ - column < kTilePanel) {
      pack_panel(from, k_, n_ - column, kept);
      return copied(kept);
    }
    const int64_t whole = k_ / kTileDepth;
    if (whole < steps_) {
      const int64_t bytes = (k_ - whole * kTileDepth) * static_cast<int64_t>(sizeof(BFloat16));
      for (int i = 0; i < kTilePanel; ++i) store(kept + i, load_bytes(from + i * k_ + whole * kTileDepth, bytes));
    }
    const char* lines = reinterpret_cast<const char*>(from);
    const int64_t stride = k_ * static_cast<int64_t>(sizeof(BFloat16));
    const char* next = column + 2 * kTilePanel <= column_end ? lines + kTilePanel * stride : nullptr;
    return {lines, stride, kTileLine, whole, kept, next};
  }

  void tiles_of_y(const TilePanel& panel, const Words* x, int64_t row, int64_t row_end, int64_t column) const {
    alignas(64) float sums[4 * kTileWords];
    const int64_t rows = std::min<int64_t>(2 * kTileSide, row_end - row), columns = std::min<int64_t>(kTilePanel, n_ - column);
    const int64_t size = wide_ ? sizeof(float) : sizeof(BFloat16), stride = n_ * size;
    char* y = static_cast<char*>(y_) + row * stride + column * size;
    const TileResult result{y, stride, rows};
    rows > kTileSide ? panel_product<2>(panel, x, steps_, result, sums) : panel_product<1>(panel, x, steps_, result, sums);
    float bias[kTilePanel] = {};
    if (bias_ != nullptr) convert(bias_ + column, bias, columns);
    const float* added = bias_ == nullptr ? nullptr : bias;
    for (int64_t half = 0; half < rows; half += kTileSide, y += kTileSide * stride) {
      const int64_t count = std::min<int64_t>(kTileSide, rows - half);
      if (wide_) {
        write_tiles(sums + half * kTilePanel, added, count, columns, reinterpret_cast<float*>(y), n_);
      } else {
        write_tiles(sums + half * kTilePanel, added, count, columns, reinterpret_cast<BFloat16*>(y), n_);
      }
    }
  }

  const BFloat16 *x_, *w_, *bias_;
  void* y_;
  const bool wide_;
  const int64_t n_, k_, steps_;
};

#endif

}  // namespace fxhlo
