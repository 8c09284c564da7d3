// fxhlo_ragged_paged_attention: writes a step's keys and values into a paged cache and attends causally to it.
//
// Operands: q [T, Hq, D], k and v [T, Hkv, D], kv_cache [blocks, block_size, 2 * Hkv, D] (key of head h at 2h, value at
// 2h + 1), slot_mapping [T], block_tables [R, P], seq_lens [R] (this step's tokens included), query_start_loc
// [R + 1], all int32; sinks and alibi_slopes float32, [Hq] or [0]. Results: out [T, Hq, D], kv_cache, which should
// be aliased to the operand, and is copied otherwise. Rows of `out` that belong to no request are zero.
#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>

#include "attention_pages.h"
#include "door.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

constexpr const char* kName = "fxhlo_ragged_paged_attention";

struct Shape {
  int64_t tokens, heads, kv_heads, head_size, requests, blocks, block_size, pages;
  int64_t slot_values() const { return 2 * kv_heads * head_size; }
  int64_t value_size() const { return head_size; }
};

template <typename T>
struct Problem : Shape {
  using Value = T;
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

  int64_t first_position(int64_t request) const {
    return seq_lens[request] - (starts[request + 1] - starts[request]);
  }
  int64_t first_key(int64_t position) const {
    const int64_t in_window = window > 0 ? position - window + 1 : 0, in_chunk = chunk > 0 ? position - position % chunk : 0;
    return std::max<int64_t>({0, in_window, in_chunk});
  }
  int64_t end_key(int32_t, int64_t position) const { return position + 1; }
  const int32_t* table(int64_t request) const { return tables + request * pages; }

  void find_keys(const Item& item, int64_t block, int64_t first, int64_t last, const T** keys) const {
    find_paged_keys(*this, item, block, first, last, cache + 2 * item.head * head_size, slot_values(), keys);
  }
  void prefetch(const T* const* keys) const {
    for (int key = 0; key < kKeys; ++key) prefetch_bytes(keys[key], 2 * head_size);
  }
  void to_values(const T** keys) const {  // a value follows its key
    for (int key = 0; key < kKeys; ++key) keys[key] += head_size;
  }
};

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
  const Shape shape = {q[0], q[1], k[1], q[2], tables[0], cache[0], cache[1], tables[1]};
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
  zero_other_rows(p);
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
  return guarded(kName, q.element_type(), [&](auto value) {
    return run<decltype(value)>(pool, operands, shape, scoring, sliding_window, chunk, door);
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
