// fxhlo_ragged_paged_latent_attention: writes a step's latents into a paged cache and attends causally to it.
//
// Operands: q [T, N, D], latent [T, D], kv_cache [blocks, block_size, D], slot_mapping [T], block_tables [R, P], seq_lens [R]
// (this step's tokens included), query_start_loc [R + 1], all int32. Results: out [T, N, value_size], kv_cache, which should be
// aliased to the operand, and is copied otherwise. Rows of `out` that belong to no request are zero.
//
// All heads share one key per token, whose first value_size elements are its value: keys and values are read from memory once.
// Heads are split into parts, each a KV head of its own to attention_walk.h, where there are too many for a tile, or fewer
// requests than threads.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>

#include "attention_pages.h"
#include "door.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

constexpr const char* kName = "fxhlo_ragged_paged_latent_attention";

struct Shape {
  int64_t tokens, heads, kv_heads, head_size, requests, blocks, block_size, pages, values;
  int64_t value_size() const { return values; }
};

template <typename T>
struct Problem : Shape {
  using Value = T;
  const T* q;
  T* cache;
  const int32_t* tables;
  const int32_t* seq_lens;
  const int32_t* starts;
  T* out;
  Scoring scoring;
  int64_t window;  // 0: none
  const float* sinks = nullptr;
  const float* slopes = nullptr;

  int64_t first_position(int64_t request) const { return seq_lens[request] - (starts[request + 1] - starts[request]); }
  int64_t first_key(int64_t position) const { return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0; }
  int64_t end_key(int32_t, int64_t position) const { return position + 1; }
  void find_keys(const Item& item, int64_t block, int64_t first, int64_t last, const T** keys) const {
    find_paged_keys(*this, item, block, first, last, static_cast<const T*>(cache), head_size, keys);
  }
  void prefetch(const T* const* keys) const {
    for (int key = 0; key < kKeys; ++key) prefetch_bytes(keys[key], head_size);
  }
  void to_values(const T**) const {}  // a value begins where its key does
};

// The smallest number of parts of the heads that gives every thread a tile, none larger than the walk's.
int64_t parts_of(int64_t heads, int64_t rows, int64_t threads) {
  for (int64_t parts = 1; parts < heads; ++parts) {
    if (heads % parts == 0 && heads / parts <= kTileQueries && rows * parts >= threads) return parts;
  }
  return heads;
}

struct Operands {
  ffi::AnyBuffer q, latent, cache, slots, tables, seq_lens, starts, out, updated;
};

Shape read_shape(const Operands& o, int64_t value_size, Door& door) {
  constexpr int64_t any = kAnySize;
  door.check("query", o.q, {ffi::F32, ffi::BF16, ffi::F16}, {any, any, any});
  const ffi::DataType type = o.q.element_type();
  door.check("kv_cache", o.cache, {type}, {any, any, any}).check("block_tables", o.tables, {ffi::S32}, {any, any});
  if (door.failed()) return {};
  const auto q = o.q.dimensions(), cache = o.cache.dimensions(), tables = o.tables.dimensions();
  const Shape shape = {q[0], q[1], q[1], q[2], tables[0], cache[0], cache[1], tables[1], value_size};
  door.require(shape.heads > 0, [&] { return Door::described("query", o.q) + ", which has no heads"; });
  door.require(shape.head_size <= kMaxHeadSize, [&] {
    return Door::described("query", o.q) + "; a latent has up to " + std::to_string(kMaxHeadSize) + " elements";
  });
  door.require(0 < value_size && value_size <= shape.head_size, [&] {
    return "value_size is " + std::to_string(value_size) + ", a latent has " + std::to_string(shape.head_size) + " elements";
  });
  door.check("latent", o.latent, {type}, {shape.tokens, shape.head_size});
  door.check("kv_cache", o.cache, {type}, {shape.blocks, shape.block_size, shape.head_size});
  door.check("slot_mapping", o.slots, {ffi::S32}, {shape.tokens}).check("seq_lens", o.seq_lens, {ffi::S32}, {shape.requests});
  door.check("query_start_loc", o.starts, {ffi::S32}, {shape.requests + 1});
  door.check("the result", o.out, {type}, {shape.tokens, shape.heads, value_size});
  door.check("the updated cache", o.updated, {type}, {shape.blocks, shape.block_size, shape.head_size});
  return shape;
}

template <typename T>
ffi::Error run(ffi::ThreadPool& pool, const Operands& o, const Shape& shape, float scale, int64_t window, Door& door) {
  Problem<T> p{shape, static_cast<const T*>(o.q.untyped_data()), static_cast<T*>(o.updated.untyped_data()),
               data<int32_t>(o.tables), data<int32_t>(o.seq_lens), data<int32_t>(o.starts),
               static_cast<T*>(o.out.untyped_data()), Scoring{scale, 0.0f}, std::max<int64_t>(0, window)};
  check_requests(p, door);
  if (door.failed()) return door.error();
  if (o.cache.untyped_data() != o.updated.untyped_data()) {
    std::memcpy(o.updated.untyped_data(), o.cache.untyped_data(), o.cache.size_bytes());
  }
  const T* latent = static_cast<const T*>(o.latent.untyped_data());
  const int32_t* slots = data<int32_t>(o.slots);
  for (int64_t token = 0; token < shape.tokens; ++token) {
    if (slots[token] < 0 || slots[token] >= shape.blocks * shape.block_size) continue;
    std::memcpy(p.cache + slots[token] * shape.head_size, latent + token * shape.head_size, shape.head_size * sizeof(T));
  }
  zero_other_rows(p);
  p.kv_heads = parts_of(shape.heads, shape.requests ? p.starts[shape.requests] : 0, pool.num_threads());
  attend(pool, p);
  return ffi::Error::Success();
}

ffi::Error ragged_paged_latent_attention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer latent, ffi::AnyBuffer cache,
                                         ffi::AnyBuffer slots, ffi::AnyBuffer tables, ffi::AnyBuffer seq_lens, ffi::AnyBuffer starts,
                                         ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> updated, int64_t value_size,
                                         float scale, int64_t sliding_window) {
  const Operands operands{q, latent, cache, slots, tables, seq_lens, starts, *out, *updated};
  Door door(kName);
  const Shape shape = read_shape(operands, value_size, door);
  if (door.failed()) return door.error();
  return guarded(kName, [&] {
    switch (q.element_type()) {
      case ffi::F32: return run<float>(pool, operands, shape, scale, sliding_window, door);
      case ffi::BF16: return run<BFloat16>(pool, operands, shape, scale, sliding_window, door);
      default: return run<Half>(pool, operands, shape, scale, sliding_window, door);
    }
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_ragged_paged_latent_attention, fxhlo::ragged_paged_latent_attention,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("value_size")
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("sliding_window"));

#pragma GCC visibility pop
