// Products of rows with one head's projection in latent attention: a matrix [depth, columns], packed once for all rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention_tile.h"
#include "attention_walk.h"

namespace fxhlo {

constexpr int kLatentRows = 64;  // rows that are multiplied together

inline int whole(int count, int of) { return (count + of - 1) / of * of; }

// A matrix as product() takes it: columns in `blocks` of `width`, a block's words [depth][width].
struct Packing {
  int depth, width, blocks;

  int64_t size() const { return static_cast<int64_t>(depth) * width * blocks; }
};

// Words of a row of `count` values, of which whole blocks of kKeys are multiplied.
template <typename T>
int words_of(int64_t count) {
  return whole(static_cast<int>(count), kKeys) / kPerWord<PackedOf<T>>;
}

// matrix [depth, columns], multiplied from the left: one block of all columns.
template <typename T>
Packing pack_straight(const T* matrix, int64_t depth, int64_t columns, std::vector<uint32_t>& out) {
  const Packing packing{words_of<T>(depth), whole(static_cast<int>(columns), kLanes), 1};
  out.resize(packing.size());
  for (int64_t first = 0; first < depth; first += kKeys) {
    const T* rows[kKeys];
    for (int64_t row = 0; row < kKeys; ++row) rows[row] = first + row < depth ? matrix + (first + row) * columns : zeros<T>();
    pack_values(rows, static_cast<int>(columns), packing.width, out.data() + first / kPerWord<PackedOf<T>> * packing.width);
  }
  return packing;
}

// matrix [columns, depth], the transpose of what is multiplied from the left: blocks of kKeys columns.
template <typename T>
Packing pack_transposed(const T* matrix, int64_t depth, int64_t columns, std::vector<uint32_t>& out) {
  constexpr int kPer = kPerWord<PackedOf<T>>;
  const Packing packing{words_of<T>(depth), kKeys, whole(static_cast<int>(columns), kKeys) / kKeys};
  out.resize(packing.size());
  const int64_t given = (depth + kPer - 1) / kPer;
  for (int64_t first = 0; first < columns; first += kKeys) {
    const T* rows[kKeys];
    for (int64_t row = 0; row < kKeys; ++row) rows[row] = first + row < columns ? matrix + (first + row) * depth : zeros<T>();
    uint32_t* block = out.data() + first / kKeys * packing.depth * kKeys;
    pack_keys(rows, static_cast<int>(depth), block);
    std::fill(block + given * kKeys, block + packing.depth * kKeys, 0u);
  }
  return packing;
}

// One thread's rows and their products, kept between calls.
struct LatentScratch {
  std::vector<uint32_t> matrix, other, rows;
  std::vector<float> products;
};

// Multiplies `count` rows of `depth` values, at most kLatentRows, with a packed matrix of `columns` columns.
// from(row): a row's values; to(row): where its products go, rounded to T. multiply() with `loaded` rows reuses those of the last call.
template <typename T>
class RowsTimesMatrix {
 public:
  using Packed = PackedOf<T>;

  RowsTimesMatrix(LatentScratch& scratch, TileShapes& shapes) : s_(scratch), shapes_(shapes), tiled_(tiled<T>()) {}

  template <typename From>
  void load(int count, int64_t depth, const From& from) {
    count_ = count;
    words_ = words_of<T>(depth);
    s_.rows.assign(static_cast<size_t>(whole(count, kTileSide)) * words_, 0u);
    for (int row = 0; row < count; ++row) {
      convert(from(row), reinterpret_cast<Packed*>(s_.rows.data() + static_cast<int64_t>(row) * words_), depth);
    }
  }

  template <typename To>
  void multiply(const std::vector<uint32_t>& matrix, const Packing& packing, int64_t columns, const To& to) {
    s_.products.resize(static_cast<size_t>(whole(count_, kTileSide)) * packing.width);
    for (int block = 0; block < packing.blocks; ++block) {
      const uint32_t* words = matrix.data() + static_cast<int64_t>(block) * packing.depth * packing.width;
      product_of(words, packing.width);
      const int64_t first = static_cast<int64_t>(block) * packing.width;
      const int64_t some = std::min<int64_t>(packing.width, columns - first);
      for (int row = 0; row < count_; ++row) {
        store_row(s_.products.data() + static_cast<int64_t>(row) * packing.width, to(row) + first, some);
      }
    }
  }

 private:
  void product_of(const uint32_t* matrix, int width) {
#if defined(FXHLO_TILES)
    if (tiled_) {
      shapes_.set(std::min(count_, kTileSide));
      return tiled_product(s_.rows.data(), words_, count_, words_, matrix, width, s_.products.data(), nullptr);
    }
#endif
    product<Packed>(s_.rows.data(), words_, count_, words_, matrix, width, s_.products.data(), nullptr);
  }

  static void store_row(const float* from, T* to, int64_t count) {
    int64_t at = 0;
    for (; at + kLanes <= count; at += kLanes) store_as(to + at, fxhlo::load<Floats>(from + at));
    convert(from + at, to + at, count - at);
  }

  LatentScratch& s_;
  TileShapes& shapes_;
  const bool tiled_;
  int count_ = 0, words_ = 0;
};

}  // namespace fxhlo
