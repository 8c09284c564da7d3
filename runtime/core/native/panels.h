// Sums of products of packed rows of x with panels of a weight: the inner loops of dense and grouped products.
//
// A panel of kPanel rows of w is regrouped so that each vector holds four words (16 bytes along k) of kLanes / 4
// different rows; four words of a row of x are broadcast. The first tile of rows of x regroups w in registers
// and keeps it for the following tiles, in a scratch that stays in the L2 cache.
//
// Batch invariance: an output is the sum of four partial sums, where word i along k is added to sum i mod 4, in order of k; the
// four are added up at the end. Tiles determine what is computed together, never the order of additions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vector.h"

namespace fxhlo {

constexpr int kPanel = kTileVectors * kLanes / 4;  // rows of w, columns of y

// Four words, a step along k.
struct Quad {
  char bytes[16];
};
template <typename T>
constexpr int kStep = sizeof(Quad) / sizeof(PackedOf<T>);  // values along k per quad

template <typename T>
constexpr int64_t steps_of(int64_t k) {
  return (k + kStep<T> - 1) / kStep<T>;
}

// Rows of w of one panel: lanes 4 * i to 4 * i + 3 of vector v hold row 4 * i + v; rows past the last repeat it.
template <typename T>
struct Panel {
  const T* rows[kPanel];
  int64_t next = 0;  // values from these rows to those of the panel to prefetch; 0: none

  // `first`: the first row; `stride`: values from one row to the next; `count`: rows from the first on, at least one.
  Panel(const T* first, int64_t stride, int64_t count) {
    for (int i = 0; i < kPanel; ++i) rows[i] = first + std::min<int64_t>(i, count - 1) * stride;
  }
};

// Number of tiles of rows, each of at most kTileRows, and the first row of each: 8 rows are two tiles of 4, not 6 and 2.
struct TiledRows {
  int64_t count;
  int64_t tiles() const { return (count + kTileRows - 1) / kTileRows; }
  int64_t first(int64_t tile) const { return count * tile / tiles(); }
};

// Rows of k values, `row(r)` points to the first -> for each tile [steps][count] quads, zero past the end of k. A tile reads them
// sequentially, and rows that are a power of two apart do not compete for the same lines of the L1 cache.
template <typename T, typename Row>
void pack_rows(const TiledRows& rows, int64_t k, const Row& row, Quad* out) {
  for (int64_t tile = 0; tile < rows.tiles(); ++tile) {
    const int64_t first = rows.first(tile), count = rows.first(tile + 1) - first;
    for (int64_t r = 0; r < count; ++r) {
      const T* from = row(first + r);
      Quad* to = out + first * steps_of<T>(k) + r;
      int64_t at = 0;
      if constexpr (!std::is_same_v<T, PackedOf<T>>) {
        for (; at + kLanes <= k; at += kLanes) {
          const Floats values = load_as(from + at);
          for (int quad = 0; quad < kLanes / 4; ++quad, to += count) {
            std::memcpy(to, reinterpret_cast<const char*>(&values) + quad * sizeof(Quad), sizeof(Quad));
          }
        }
      }
      for (; at + kStep<T> <= k; at += kStep<T>, to += count) {
        PackedOf<T> values[kStep<T>];
        convert(from + at, values, kStep<T>);
        std::memcpy(to, values, sizeof(Quad));
      }
      if (at < k) {
        PackedOf<T> values[kStep<T>] = {};
        convert(from + at, values, k - at);
        std::memcpy(to, values, sizeof(Quad));
      }
    }
  }
}

// out [count][kPanel] = a tile of packed rows, [steps][count], times one panel of k values a row, which is regrouped on
// the fly and kept in `kept`, [steps][kTileVectors], unless that is null. 1 <= count <= kTileRows.
template <typename T>
void streamed_tile(const Panel<T>& panel, int64_t k, int64_t count, const Quad* x, Words* kept, float* out);

// streamed_tile with a panel that an earlier tile has kept.
template <typename Packed>
void kept_tile(int64_t steps, int64_t count, const Quad* x, const Words* kept, float* out);

// out [rows.count][kPanel] = all tiles of packed rows times one panel. kept: scratch [steps][kTileVectors], unused by a single tile.
template <typename T>
void product_of_panel(const Panel<T>& panel, int64_t k, const TiledRows& rows, const Quad* x, Words* kept, float* out) {
  const int64_t tiles = rows.tiles(), steps = steps_of<T>(k);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t first = rows.first(tile), count = rows.first(tile + 1) - first;
    if (tile == 0) {
      streamed_tile(panel, k, count, x, tiles > 1 ? kept : nullptr, out);
    } else {
      kept_tile<PackedOf<T>>(steps, count, x + first * steps, kept, out + first * kPanel);
    }
  }
}

}  // namespace fxhlo
