// Attention of ragged requests on the CPU: tiles of queries walk over their keys, block by block, on XLA's threads.
//
// A `Problem` says where a request's keys are and which of them a row attends to; Tile and attend are the same for all. Its members:
//   using Value: float, BFloat16 or Half
//   int64_t tokens, heads, kv_heads, head_size, requests; const Value* q; Value* out; const int32_t* starts; const float* sinks,
//       *slopes (or null); Scoring scoring
//   int64_t value_size(): of a value, at most head_size
//   int64_t first_position(request): of the request's first row of this step, in its context
//   int64_t first_key(position), end_key(request, position): the keys that a row attends to; neither falls as positions rise
//   void find_keys(item, block, first, last, keys): pointers to the keys of one block; to zeros() outside [first, last)
//   void prefetch(keys): their keys and values
//   void to_values(keys): replaces pointers to keys by pointers to their values
//
// Batch invariance: a row's result is an online softmax (Milakov and Gimelshein 2018) over blocks of keys at fixed
// positions, in order. Other rows of its tile only determine which keys are packed together.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "attention_tile.h"
#include "door.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {

namespace ffi = xla::ffi;

constexpr int kTileQueries = 64;                // query tokens x heads that share packed keys
constexpr int64_t kSharesPerThread = 8;         // in a decode step, to balance threads that the system preempts
constexpr int64_t kSerialBytes = 64 << 10;      // less of the keys than this is read faster than a thread wakes up

struct Item {
  int32_t request, head, row, rows;  // row: index of the first, counted from the request's first of this step
  int64_t cost;
};

// Per-thread buffers, kept between calls.
struct Scratch {
  std::vector<uint32_t> queries, keys, values, weights;
  std::vector<float> scores, output, highest, total, shrink;
};

alignas(64) inline const unsigned char kZeros[2 * kMaxHeadSize * sizeof(float)] = {};

// A key of zeros with a value of zeros behind it.
template <typename T>
const T* zeros() {
  return reinterpret_cast<const T*>(kZeros);
}

template <typename T>
void prefetch_bytes(const T* from, int64_t count) {
  const char* bytes = reinterpret_cast<const char*>(from);
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(bytes + byte, 0, 2);
}

template <typename Problem>
void prefetch_first(const Problem& p, const Item& item) {
  const int64_t position = p.first_position(item.request) + item.row, last = p.end_key(item.request, position + item.rows - 1);
  const int64_t first = p.first_key(position), block = first / kKeys * kKeys;
  if (block >= last) return;
  const typename Problem::Value* keys[kKeys];
  p.find_keys(item, block, first, last, keys);
  p.prefetch(keys);
}

// Attention of one tile of queries of one KV head, over all its keys.
template <typename Problem>
class Tile {
 public:
  using T = typename Problem::Value;
  using Packed = PackedOf<T>;
  static constexpr int kPer = kPerWord<Packed>;

  Tile(const Problem& p, const Item& item, Scratch& scratch, TileShapes& shapes)
      : p_(p), item_(item), s_(scratch), shapes_(shapes), tiled_(tiled<T>()), group_(static_cast<int>(p.heads / p.kv_heads)), rows_(item.rows * group_),
        head_size_(static_cast<int>(p.head_size)), words_(whole((head_size_ + kPer - 1) / kPer, tiled_ ? kTileSide : 1)),
        value_size_(static_cast<int>(p.value_size())), padded_(whole(value_size_, kLanes)), position_(p.first_position(item.request) + item.row) {}

  static int whole(int count, int of) { return (count + of - 1) / of * of; }

  // next: this thread's next item, or null; its first keys are prefetched during this tile's last block.
  void run(const Item* next) {
    start();
    // Keys that any row attends to.
    const int64_t first = p_.first_key(position_), last = p_.end_key(item_.request, position_ + item_.rows - 1);
    const T* keys[2][kKeys];
    int64_t block = first / kKeys * kKeys;
    if (block < last) p_.find_keys(item_, block, first, last, keys[0]);
    for (int turn = 0; block < last; block += kKeys, turn ^= 1) {
      if (block + kKeys < last) {
        p_.find_keys(item_, block + kKeys, first, last, keys[turn ^ 1]);
        p_.prefetch(keys[turn ^ 1]);
      } else if (next != nullptr) {
        prefetch_first(p_, *next);
      }
      attend(block, keys[turn]);
    }
    finish();
  }

 private:
  const T* query(int row) const {
    const int64_t token = p_.starts[item_.request] + item_.row + row / group_;
    return p_.q + (token * p_.heads + head(row)) * head_size_;
  }
  int head(int row) const { return item_.head * group_ + row % group_; }
  int64_t position(int row) const { return position_ + row / group_; }
  // The range of a block's keys that a row attends to, relative to the block's first key.
  int first_seen(int row, int64_t block) const {
    return static_cast<int>(std::clamp<int64_t>(p_.first_key(position(row)) - block, 0, kKeys));
  }
  int last_seen(int row, int64_t block) const {
    return static_cast<int>(std::clamp<int64_t>(p_.end_key(item_.request, position(row)) - block, 0, kKeys));
  }

  void start() {
    // AMX needs whole tiles of rows and of words.
    shape_tiles(rows_);
    const int rows = tiled_ && rows_ > kTileSide ? whole(rows_, kTileSide) : rows_;
    s_.queries.assign(rows * words_, 0);
    s_.keys.resize(words_ * kKeys);
    std::fill(s_.keys.begin() + (head_size_ + kPer - 1) / kPer * kKeys, s_.keys.end(), 0u);  // padding words
    s_.values.resize(kKeys / kPer * padded_);
    s_.weights.resize(rows * kKeys / kPer);
    s_.scores.resize(rows * kKeys);
    s_.output.assign(rows * padded_, 0.0f);
    s_.highest.assign(rows_, kMinusInfinity);
    s_.total.assign(rows_ * kLanes, 0.0f);
    s_.shrink.resize(rows_);
    for (int row = 0; row < rows_; ++row) {
      convert(query(row), reinterpret_cast<Packed*>(s_.queries.data() + row * words_), head_size_);
      if (p_.sinks != nullptr && p_.sinks[head(row)] != kMinusInfinity) {
        s_.highest[row] = p_.sinks[head(row)] * kLog2E;
        s_.total[row * kLanes] = 1.0f;
      }
    }
  }

  void attend(int64_t block, const T** keys) {
    pack_keys(keys, head_size_, s_.keys.data());
    multiply(s_.queries.data(), words_, rows_, s_.keys, kKeys, s_.scores.data(), nullptr);
    for (int row = 0; row < rows_; ++row) {
      s_.shrink[row] = softmax_row<Packed>(
          s_.scores.data() + row * kKeys, s_.weights.data() + row * kKeys / kPer, first_seen(row, block),
          last_seen(row, block), p_.scoring, p_.slopes == nullptr ? 0.0f : p_.slopes[head(row)],
          static_cast<int>(block - position(row)), s_.highest[row], s_.total.data() + row * kLanes);
    }
    p_.to_values(keys);
    // 0 * infinity is NaN: values that are masked for some rows only must be finite.
    const bool alike = last_seen(0, block) == last_seen(rows_ - 1, block) && first_seen(0, block) == first_seen(rows_ - 1, block);
    if (alike || all_finite(keys, value_size_)) {
      accumulate(keys, 0, rows_);
    } else {
      shape_tiles(1);
      for (int row = 0; row < rows_; ++row) {
        const T* seen[kKeys];
        for (int key = 0; key < kKeys; ++key) {
          const bool visible = key >= first_seen(row, block) && key < last_seen(row, block);
          seen[key] = visible ? keys[key] : zeros<T>();
        }
        accumulate(seen, row, 1);
      }
      shape_tiles(rows_);
    }
  }

  void accumulate(const T* const* values, int row, int rows) {
    pack_values(values, value_size_, padded_, s_.values.data());
    multiply(s_.weights.data() + row * kKeys / kPer, kKeys / kPer, rows, s_.values, padded_,
             s_.output.data() + static_cast<int64_t>(row) * padded_, s_.shrink.data() + row);
  }

  void shape_tiles(int rows) {
    if (tiled_) shapes_.set(std::min(rows, kTileSide));
  }

  // product() with `depth` words per row of a.
  void multiply(const uint32_t* a, int depth, int rows, const std::vector<uint32_t>& b, int columns, float* c, const float* shrink) {
#if defined(FXHLO_TILES)
    if (tiled_) return tiled_product(a, depth, rows, depth, b.data(), columns, c, shrink);
#endif
    product<Packed>(a, depth, rows, depth, b.data(), columns, c, shrink);
  }

  void finish() {
    T* out = p_.out + ((p_.starts[item_.request] + item_.row) * p_.heads + head(0)) * value_size_;
    for (int row = 0; row < rows_; ++row) {
      const float total = sum_lanes(load<Floats>(s_.total.data() + row * kLanes)), inverse = total == 0.0f ? 0.0f : 1.0f / total;
      float* from = s_.output.data() + static_cast<int64_t>(row) * padded_;
      // + 0 turns -0 into 0: a fully masked block does that too, and must not change the result.
      for (int i = 0; i < value_size_; ++i) from[i] = from[i] * inverse + 0.0f;
      T* to = out + (row / group_ * p_.heads + row % group_) * value_size_;
      convert(from, to, value_size_);
    }
  }

  const Problem& p_;
  const Item& item_;
  Scratch& s_;
  TileShapes& shapes_;
  const bool tiled_;
  const int group_, rows_, head_size_, words_, value_size_, padded_;
  const int64_t position_;
};

// Adds the tiles of one request's rows, of its KV heads [first_head, end_head).
template <typename Problem>
void plan(const Problem& p, int32_t request, int32_t first_head, int32_t end_head, std::vector<Item>& items) {
  const int group = static_cast<int>(p.heads / p.kv_heads);
  const int most = std::max(1, kTileQueries / group);
  const int32_t count = p.starts[request + 1] - p.starts[request];
  for (int32_t row = 0; row < count; row += most) {
    const int32_t rows = std::min<int32_t>(most, count - row);
    const int64_t position = p.first_position(request) + row;
    const int64_t keys = std::max<int64_t>(0, p.end_key(request, position + rows - 1) - p.first_key(position));
    for (int32_t head = first_head; head < end_head; ++head) items.push_back({request, head, row, rows, keys * (rows * group + 4)});
  }
}

template <typename Problem>
void attend(ffi::ThreadPool& pool, const Problem& p, std::vector<Item> items) {
  // Longest first, so that the last items are short and no thread waits long.
  if (std::any_of(items.begin(), items.end(), [](const Item& item) { return item.rows > 1; })) {
    std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
  }
  int64_t cost = 0;
  for (const Item& item : items) cost += item.cost;
  const int64_t count = static_cast<int64_t>(items.size());
  const bool serial = cost * p.head_size * static_cast<int64_t>(sizeof(typename Problem::Value)) < kSerialBytes;
  const int64_t shares = serial ? 1 : std::min<int64_t>(count, pool.num_threads() * kSharesPerThread);
  // A thread prefetches for the next item of its run; uneven items are scheduled one by one instead.
  const int64_t runs = p.tokens > p.requests && !serial ? count : shares;
  parallel_for(pool, runs, [&](int64_t run) {
    thread_local Scratch scratch;
    TileShapes shapes;
    const int64_t end = count * (run + 1) / runs;
    for (int64_t index = count * run / runs; index < end; ++index) {
      Tile<Problem>(p, items[index], scratch, shapes).run(index + 1 < end ? &items[index + 1] : nullptr);
    }
  });
}

// Attention of all requests and heads.
template <typename Problem>
void attend(ffi::ThreadPool& pool, const Problem& p) {
  std::vector<Item> items;
  for (int64_t request = 0; request < p.requests; ++request) {
    plan(p, static_cast<int32_t>(request), 0, static_cast<int32_t>(p.kv_heads), items);
  }
  attend(pool, p, std::move(items));
}

// Checks that each request's rows are in the batch and follow those of the one before it.
inline void check_rows(const int32_t* starts, int64_t requests, int64_t tokens, Door& door) {
  if (requests > 0) {
    door.require(starts[0] == 0, [&] { return "query_start_loc begins at " + std::to_string(starts[0]) + ", not at 0"; });
  }
  for (int64_t request = 0; request < requests && !door.failed(); ++request) {
    const int64_t begin = starts[request], end = starts[request + 1];
    door.require(0 <= begin && begin <= end && end <= tokens, [&] {
      return "request " + std::to_string(request) + ": rows " + std::to_string(begin) + " to " + std::to_string(end) +
             " of query_start_loc are not in a batch of " + std::to_string(tokens);
    });
  }
}

// Zeroes the rows of `out` that belong to no request. starts: checked.
template <typename Problem>
void zero_other_rows(const Problem& p) {
  const int64_t row = p.heads * p.value_size() * sizeof(typename Problem::Value);
  const int64_t first = p.requests ? p.starts[0] : 0, last = p.requests ? p.starts[p.requests] : 0;
  char* out = reinterpret_cast<char*>(p.out);
  std::memset(out, 0, first * row);
  std::memset(out + last * row, 0, (p.tokens - last) * row);
}

}  // namespace fxhlo
