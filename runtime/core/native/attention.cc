// fxhlo_ragged_paged_attention: writes a step's keys and values into a paged cache and attends causally to it.
//
// Operands: q [T, Hq, D], k and v [T, Hkv, D], kv_cache [blocks, block_size, 2 * Hkv, D] (key of head h at 2h, value at
// 2h + 1), slot_mapping [T], block_tables [R, P], seq_lens [R] (this step's tokens included), query_start_loc
// [R + 1], all int32; sinks and alibi_slopes float32, [Hq] or [0]. Results: out [T, Hq, D], kv_cache, which should
// be aliased to the operand, and is copied otherwise. Rows of `out` that belong to no request are zero.
//
// Batch invariance: a row's result is an online softmax (Milakov and Gimelshein 2018) over blocks of keys at fixed
// positions, in order. Other rows of its tile only determine which keys are packed together.
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "attention_tile.h"
#include "door.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_ragged_paged_attention";
constexpr int kTileQueries = 64;                // query tokens x heads that share packed keys
constexpr int64_t kSharesPerThread = 8;         // in a decode step, to balance threads that the system preempts
constexpr int64_t kSerialBytes = 64 << 10;      // less of the cache than this is read faster than a thread wakes up

struct Shape {
  int64_t tokens, heads, kv_heads, head_size, blocks, block_size, requests, pages;
  int group() const { return static_cast<int>(heads / kv_heads); }
  int64_t slot_values() const { return 2 * kv_heads * head_size; }
};

template <typename T>
struct Problem {
  Shape shape;
  const T* q;
  T* cache;
  const int32_t* tables;
  const int32_t* seq_lens;
  const int32_t* starts;
  const float* sinks;   // or null
  const float* slopes;  // or null
  T* out;
  Scoring scoring;
  int64_t window;  // 0: none
  int64_t chunk;   // 0: none

  // Position, in its context, of the request's first row of this step.
  int64_t first_position(int64_t request) const {
    return seq_lens[request] - (starts[request + 1] - starts[request]);
  }
  int64_t first_key(int64_t position) const {
    const int64_t in_window = window > 0 ? position - window + 1 : 0, in_chunk = chunk > 0 ? position - position % chunk : 0;
    return std::max<int64_t>({0, in_window, in_chunk});
  }
};

struct Item {
  int32_t request, head, row, rows;  // row: index of the first, counted from the request's first of this step
  int64_t cost;
};

// Per-thread buffers, kept between calls.
struct Scratch {
  std::vector<uint32_t> queries, keys, values, weights;
  std::vector<float> scores, output, highest, total, shrink;
};

alignas(64) const unsigned char kZeros[2 * kMaxHeadSize * sizeof(float)] = {};

// Pointers to the keys of one block; to zeros for keys outside [first, last).
template <typename T>
void find_keys(const Problem<T>& p, const Item& item, int64_t block, int64_t first, int64_t last, const T** keys) {
  const Shape& shape = p.shape;
  const int32_t* table = p.tables + item.request * shape.pages;
  const T* zeros = reinterpret_cast<const T*>(kZeros);
  std::fill(keys, keys + kKeys, zeros);
  const int64_t begin = std::max(first, block), end = std::min(last, block + kKeys);
  if (begin >= end) return;
  int64_t page = begin / shape.block_size, offset = begin % shape.block_size;
  for (int64_t at = begin; at < end; ++page, offset = 0) {
    const T* slot = p.cache + (table[page] * shape.block_size + offset) * shape.slot_values() + 2 * item.head * shape.head_size;
    for (; at < end && offset < shape.block_size; ++at, ++offset, slot += shape.slot_values()) keys[at - block] = slot;
  }
}

template <typename T>
void prefetch_keys(const T* const* keys, int64_t head_size) {
  for (int key = 0; key < kKeys; ++key) {
    const char* from = reinterpret_cast<const char*>(keys[key]);
    for (int64_t byte = 0; byte < 2 * head_size * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(from + byte, 0, 2);
  }
}

template <typename T>
void prefetch_first(const Problem<T>& p, const Item& item) {
  const int64_t position = p.first_position(item.request) + item.row, last = position + item.rows;
  const int64_t first = p.first_key(position), block = first / kKeys * kKeys;
  if (block >= last) return;
  const T* keys[kKeys];
  find_keys(p, item, block, first, last, keys);
  prefetch_keys(keys, p.shape.head_size);
}

// Attention of one tile of queries of one KV head, over all its keys.
template <typename T>
class Tile {
 public:
  using Packed = PackedOf<T>;
  static constexpr int kPer = kPerWord<Packed>;

  Tile(const Problem<T>& p, const Item& item, Scratch& scratch, TileShapes& shapes)
      : p_(p), item_(item), s_(scratch), shapes_(shapes), tiled_(tiled<T>()), group_(p.shape.group()), rows_(item.rows * group_),
        head_size_(static_cast<int>(p.shape.head_size)), words_(whole((head_size_ + kPer - 1) / kPer, tiled_ ? kTileSide : 1)),
        padded_(whole(head_size_, kLanes)), position_(p.first_position(item.request) + item.row) {}

  static int whole(int count, int of) { return (count + of - 1) / of * of; }

  // next: this thread's next item, or null; its first keys are prefetched during this tile's last block.
  void run(const Item* next) {
    start();
    const int64_t first = p_.first_key(position_), last = position_ + item_.rows;  // keys visible to any row
    const T* keys[2][kKeys];
    int64_t block = first / kKeys * kKeys;
    if (block < last) find_keys(p_, item_, block, first, last, keys[0]);
    for (int turn = 0; block < last; block += kKeys, turn ^= 1) {
      if (block + kKeys < last) {
        find_keys(p_, item_, block + kKeys, first, last, keys[turn ^ 1]);
        prefetch_keys(keys[turn ^ 1], head_size_);
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
    return p_.q + (token * p_.shape.heads + head(row)) * head_size_;
  }
  int head(int row) const { return item_.head * group_ + row % group_; }
  int64_t position(int row) const { return position_ + row / group_; }
  // The range of a block's keys that a row attends to, relative to the block's first key.
  int first_seen(int row, int64_t block) const {
    return static_cast<int>(std::clamp<int64_t>(p_.first_key(position(row)) - block, 0, kKeys));
  }
  int last_seen(int row, int64_t block) const {
    return static_cast<int>(std::clamp<int64_t>(position(row) + 1 - block, 0, kKeys));
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
    for (int key = 0; key < kKeys; ++key) keys[key] += head_size_;  // a value follows its key
    // 0 * infinity is NaN: values that are masked for some rows only must be finite.
    const bool alike = last_seen(0, block) == last_seen(rows_ - 1, block) && first_seen(0, block) == first_seen(rows_ - 1, block);
    if (alike || all_finite(keys, head_size_)) {
      accumulate(keys, 0, rows_);
    } else {
      shape_tiles(1);
      for (int row = 0; row < rows_; ++row) {
        const T* seen[kKeys];
        for (int key = 0; key < kKeys; ++key) {
          const bool visible = key >= first_seen(row, block) && key < last_seen(row, block);
          seen[key] = visible ? keys[key] : reinterpret_cast<const T*>(kZeros);
        }
        accumulate(seen, row, 1);
      }
      shape_tiles(rows_);
    }
  }

  void accumulate(const T* const* values, int row, int rows) {
    pack_values(values, head_size_, padded_, s_.values.data());
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
    T* out = p_.out + (query(0) - p_.q);
    for (int row = 0; row < rows_; ++row) {
      const float total = sum_lanes(load<Floats>(s_.total.data() + row * kLanes)), inverse = total == 0.0f ? 0.0f : 1.0f / total;
      float* from = s_.output.data() + static_cast<int64_t>(row) * padded_;
      // + 0 turns -0 into 0: a fully masked block does that too, and must not change the result.
      for (int i = 0; i < head_size_; ++i) from[i] = from[i] * inverse + 0.0f;
      T* to = out + (row / group_ * p_.shape.heads + row % group_) * head_size_;
      convert(from, to, head_size_);
    }
  }

  const Problem<T>& p_;
  const Item& item_;
  Scratch& s_;
  TileShapes& shapes_;
  const bool tiled_;
  const int group_, rows_, head_size_, words_, padded_;
  const int64_t position_;
};

template <typename T>
std::vector<Item> plan(const Problem<T>& p) {
  const Shape& shape = p.shape;
  const int most = std::max(1, kTileQueries / shape.group());
  std::vector<Item> items;
  bool uneven = false;
  for (int64_t request = 0; request < shape.requests; ++request) {
    const int32_t count = p.starts[request + 1] - p.starts[request];
    for (int32_t row = 0; row < count; row += most) {
      const int32_t rows = std::min<int32_t>(most, count - row);
      const int64_t position = p.first_position(request) + row;
      const int64_t keys = std::max<int64_t>(0, position + rows - p.first_key(position));
      for (int32_t head = 0; head < shape.kv_heads; ++head) {
        items.push_back({static_cast<int32_t>(request), head, row, rows, keys * (rows * shape.group() + 4)});
      }
      uneven |= rows > 1;
    }
  }
  // Longest first, so that the last items are short and no thread waits long.
  if (uneven) {
    std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.cost > b.cost; });
  }
  return items;
}

template <typename T>
void attend(ffi::ThreadPool& pool, const Problem<T>& p) {
  const std::vector<Item> items = plan(p);
  int64_t cost = 0;
  for (const Item& item : items) cost += item.cost;
  const int64_t count = static_cast<int64_t>(items.size());
  const bool serial = cost * p.shape.head_size * static_cast<int64_t>(sizeof(T)) < kSerialBytes;
  const int64_t shares = serial ? 1 : std::min<int64_t>(count, pool.num_threads() * kSharesPerThread);
  // A thread prefetches for the next item of its run; uneven items are scheduled one by one instead.
  const int64_t runs = p.shape.tokens > p.shape.requests && !serial ? count : shares;
  parallel_for(pool, runs, [&](int64_t run) {
    thread_local Scratch scratch;
    TileShapes shapes;
    const int64_t end = count * (run + 1) / runs;
    for (int64_t index = count * run / runs; index < end; ++index) {
      Tile<T>(p, items[index], scratch, shapes).run(index + 1 < end ? &items[index + 1] : nullptr);
    }
  });
}

template <typename T>
void write_cache(const Shape& shape, const T* k, const T* v, const int32_t* slots, T* cache) {
  const int64_t size = shape.head_size;
  for (int64_t token = 0; token < shape.tokens; ++token) {
    const int64_t slot = slots[token];
    if (slot < 0 || slot >= shape.blocks * shape.block_size) continue;
    T* to = cache + slot * shape.slot_values();
    for (int64_t head = 0; head < shape.kv_heads; ++head, to += 2 * size) {
      std::memcpy(to, k + (token * shape.kv_heads + head) * size, size * sizeof(T));
      std::memcpy(to + size, v + (token * shape.kv_heads + head) * size, size * sizeof(T));
    }
  }
}

// Checks that every page to be read is in the cache and every row in the batch; rows of no request come last.
template <typename T>
void check_requests(const Problem<T>& p, Door& door) {
  const Shape& shape = p.shape;
  if (shape.requests > 0) {
    door.require(p.starts[0] == 0, [&] { return "query_start_loc begins at " + std::to_string(p.starts[0]) + ", not at 0"; });
  }
  for (int64_t request = 0; request < shape.requests && !door.failed(); ++request) {
    const auto where = [&] { return "request " + std::to_string(request) + ": "; };
    const int64_t begin = p.starts[request], end = p.starts[request + 1], length = p.seq_lens[request];
    door.require(0 <= begin && begin <= end && end <= shape.tokens, [&] {
      return where() + "rows " + std::to_string(begin) + " to " + std::to_string(end) + " of query_start_loc are not in a batch of " +
             std::to_string(shape.tokens);
    });
    if (begin == end || length <= 0 || door.failed()) continue;
    door.require(length <= shape.pages * shape.block_size, [&] {
      return where() + "seq_lens is " + std::to_string(length) + ", its block table holds " +
             std::to_string(shape.pages * shape.block_size) + " tokens";
    });
    if (door.failed()) return;
    const int64_t last = (length - 1) / shape.block_size;
    for (int64_t page = p.first_key(std::max<int64_t>(0, p.first_position(request))) / shape.block_size; page <= last; ++page) {
      const int32_t block = p.tables[request * shape.pages + page];
      door.require(0 <= block && block < shape.blocks, [&] {
        return where() + "entry " + std::to_string(page) + " of its block table is " + std::to_string(block) + ", the cache has " +
               std::to_string(shape.blocks) + " blocks";
      });
    }
  }
}

struct Operands {
  ffi::AnyBuffer q, k, v, cache, slots, tables, seq_lens, starts, sinks, slopes, out, updated;
};

Shape read_shape(const Operands& o, Door& door) {
  constexpr int64_t any = kAnySize;
  door.check("query", o.q, {ffi::F32, ffi::BF16, ffi::F16}, {any, any, any});
  const ffi::DataType type = o.q.element_type();
  door.check("key", o.k, {type}, {any, any, any}).check("kv_cache", o.cache, {type}, {any, any, any, any});
  door.check("block_tables", o.tables, {ffi::S32}, {any, any});
  if (door.failed()) return {};
  const auto q = o.q.dimensions(), k = o.k.dimensions(), cache = o.cache.dimensions(), tables = o.tables.dimensions();
  const Shape shape = {q[0], q[1], k[1], q[2], cache[0], cache[1], tables[0], tables[1]};
  door.require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, [&] {
    return Door::described("query", o.q) + ", whose heads are no multiple of the " + std::to_string(shape.kv_heads) + " KV heads";
  });
  door.require(shape.head_size <= kMaxHeadSize, [&] {
    return Door::described("query", o.q) + "; head sizes go up to " + std::to_string(kMaxHeadSize);
  });
  door.check("key", o.k, {type}, {shape.tokens, shape.kv_heads, shape.head_size});
  door.check("value", o.v, {type}, {shape.tokens, shape.kv_heads, shape.head_size});
  door.check("kv_cache", o.cache, {type}, {shape.blocks, shape.block_size, 2 * shape.kv_heads, shape.head_size});
  door.check("slot_mapping", o.slots, {ffi::S32}, {shape.tokens}).check("seq_lens", o.seq_lens, {ffi::S32}, {shape.requests});
  door.check("query_start_loc", o.starts, {ffi::S32}, {shape.requests + 1});
  for (const auto& [name, numbers] : {std::pair{"sinks", &o.sinks}, std::pair{"alibi_slopes", &o.slopes}}) {
    const bool absent = numbers->dimensions().size() == 1 && numbers->dimensions()[0] == 0;
    door.check(name, *numbers, {ffi::F32}, {absent ? 0 : shape.heads});
  }
  door.check("the result", o.out, {type}, {shape.tokens, shape.heads, shape.head_size});
  door.check("the updated cache", o.updated, {type}, {shape.blocks, shape.block_size, 2 * shape.kv_heads, shape.head_size});
  return shape;
}

template <typename T>
ffi::Error run(ffi::ThreadPool& pool, const Operands& o, const Shape& shape, const Scoring& scoring, int64_t window, int64_t chunk,
               Door& door) {
  const Problem<T> p{shape, static_cast<const T*>(o.q.untyped_data()), static_cast<T*>(o.updated.untyped_data()),
                     data<int32_t>(o.tables), data<int32_t>(o.seq_lens), data<int32_t>(o.starts),
                     o.sinks.dimensions()[0] ? data<float>(o.sinks) : nullptr,
                     o.slopes.dimensions()[0] ? data<float>(o.slopes) : nullptr,
                     static_cast<T*>(o.out.untyped_data()), scoring, std::max<int64_t>(0, window), std::max<int64_t>(0, chunk)};
  check_requests(p, door);
  if (door.failed()) return door.error();
  if (o.cache.untyped_data() != o.updated.untyped_data()) {
    std::memcpy(o.updated.untyped_data(), o.cache.untyped_data(), o.cache.size_bytes());
  }
  write_cache(shape, static_cast<const T*>(o.k.untyped_data()), static_cast<const T*>(o.v.untyped_data()),
              data<int32_t>(o.slots), p.cache);
  const int64_t row = shape.heads * shape.head_size * sizeof(T);
  const int64_t first = shape.requests ? p.starts[0] : 0, last = shape.requests ? p.starts[shape.requests] : 0;
  char* out = static_cast<char*>(o.out.untyped_data());
  std::memset(out, 0, first * row);
  std::memset(out + last * row, 0, (shape.tokens - last) * row);
  attend(pool, p);
  return ffi::Error::Success();
}

ffi::Error ragged_paged_attention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v,
                                  ffi::AnyBuffer cache, ffi::AnyBuffer slots, ffi::AnyBuffer tables, ffi::AnyBuffer seq_lens,
                                  ffi::AnyBuffer starts, ffi::AnyBuffer sinks, ffi::AnyBuffer slopes,
                                  ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> updated, float scale,
                                  int64_t sliding_window, float soft_cap, int64_t chunk) {
  const Operands operands{q, k, v, cache, slots, tables, seq_lens, starts, sinks, slopes, *out, *updated};
  Door door(kName);
  const Shape shape = read_shape(operands, door);
  if (door.failed()) return door.error();
  const Scoring scoring{scale, soft_cap};
  return guarded(kName, [&] {
    switch (q.element_type()) {
      case ffi::F32: return run<float>(pool, operands, shape, scoring, sliding_window, chunk, door);
      case ffi::BF16: return run<BFloat16>(pool, operands, shape, scoring, sliding_window, chunk, door);
      default: return run<Half>(pool, operands, shape, scoring, sliding_window, chunk, door);
    }
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_ragged_paged_attention, fxhlo::ragged_paged_attention,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("sliding_window")
                                  .Attr<float>("soft_cap")
                                  .Attr<int64_t>("chunk"));

#pragma GCC visibility pop
