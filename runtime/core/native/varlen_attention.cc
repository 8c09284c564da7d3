// fxhlo_varlen_attention: attention of each request's own rows, without a cache; all of them, or the earlier ones (causal).
//
// Operands: q [T, Hq, D], k and v [T, Hkv, D], query_start_loc int32 [R + 1], sinks float32 [Hq] or [0]. Result: out [T, Hq, D],
// zero in rows that belong to no request. sliding_window: keys less than so many positions away, on both sides (0: all).
#include <algorithm>
#include <cstdint>
#include <string>

#include "attention_walk.h"
#include "door.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

constexpr const char* kName = "fxhlo_varlen_attention";

struct Shape {
  int64_t tokens, heads, kv_heads, head_size, requests;
  int64_t value_size() const { return head_size; }
};

struct Masking {
  int64_t window;  // 0: none
  bool causal;
};

template <typename T>
struct Problem : Shape {
  using Value = T;
  const T* q;
  const T* k;
  const T* v;
  const int32_t* starts;
  const float* sinks;  // or null
  T* out;
  Scoring scoring;
  Masking masking;
  const float* slopes = nullptr;

  int64_t first_position(int64_t) const { return 0; }
  int64_t first_key(int64_t position) const {
    return masking.window > 0 ? std::max<int64_t>(0, position - masking.window + 1) : 0;
  }
  int64_t end_key(int32_t request, int64_t position) const {
    const int64_t length = starts[request + 1] - starts[request];
    if (masking.causal) return position + 1;
    return masking.window > 0 ? std::min(length, position + masking.window) : length;
  }

  void find_keys(const Item& item, int64_t block, int64_t first, int64_t last, const T** keys) const {
    std::fill(keys, keys + kKeys, zeros<T>());
    const int64_t begin = std::max(first, block), end = std::min(last, block + kKeys);
    for (int64_t at = begin; at < end; ++at) {
      keys[at - block] = k + ((starts[item.request] + at) * kv_heads + item.head) * head_size;
    }
  }
  void prefetch(const T* const* keys) const {
    for (int key = 0; key < kKeys; ++key) {
      prefetch_bytes(keys[key], head_size);
      prefetch_bytes(value_of(keys[key]), head_size);
    }
  }
  void to_values(const T** keys) const {
    for (int key = 0; key < kKeys; ++key) keys[key] = value_of(keys[key]);
  }

 private:
  const T* value_of(const T* key) const { return key == zeros<T>() ? key : v + (key - k); }
};

struct Operands {
  ffi::AnyBuffer q, k, v, starts, sinks, out;
};

Shape read_shape(const Operands& o, Door& door) {
  constexpr int64_t any = kAnySize;
  door.check("query", o.q, {ffi::F32, ffi::BF16, ffi::F16}, {any, any, any});
  const ffi::DataType type = o.q.element_type();
  door.check("key", o.k, {type}, {any, any, any}).check("query_start_loc", o.starts, {ffi::S32}, {any});
  if (door.failed()) return {};
  const auto q = o.q.dimensions(), k = o.k.dimensions();
  const Shape shape = {q[0], q[1], k[1], q[2], o.starts.dimensions()[0] - 1};
  door.require(shape.requests >= 0, [&] { return Door::described("query_start_loc", o.starts) + ", which has no last entry"; });
  door.require(shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0, [&] {
    return Door::described("query", o.q) + ", whose heads are no multiple of the " + std::to_string(shape.kv_heads) + " KV heads";
  });
  door.require(shape.head_size <= kMaxHeadSize, [&] {
    return Door::described("query", o.q) + "; head sizes go up to " + std::to_string(kMaxHeadSize);
  });
  door.check("key", o.k, {type}, {shape.tokens, shape.kv_heads, shape.head_size});
  door.check("value", o.v, {type}, {shape.tokens, shape.kv_heads, shape.head_size});
  const bool absent = o.sinks.dimensions().size() == 1 && o.sinks.dimensions()[0] == 0;
  door.check("sinks", o.sinks, {ffi::F32}, {absent ? 0 : shape.heads});
  door.check("the result", o.out, {type}, {shape.tokens, shape.heads, shape.head_size});
  return shape;
}

template <typename T>
ffi::Error run(ffi::ThreadPool& pool, const Operands& o, const Shape& shape, const Scoring& scoring, const Masking& masking, Door& door) {
  const Problem<T> p{shape,
                     static_cast<const T*>(o.q.untyped_data()),
                     static_cast<const T*>(o.k.untyped_data()),
                     static_cast<const T*>(o.v.untyped_data()),
                     data<int32_t>(o.starts),
                     o.sinks.dimensions()[0] ? data<float>(o.sinks) : nullptr,
                     static_cast<T*>(o.out.untyped_data()),
                     scoring,
                     masking};
  check_rows(p.starts, p.requests, p.tokens, door);
  if (door.failed()) return door.error();
  zero_other_rows(p);
  attend(pool, p);
  return ffi::Error::Success();
}

ffi::Error varlen_attention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer starts,
                            ffi::AnyBuffer sinks, ffi::Result<ffi::AnyBuffer> out, float scale, int64_t sliding_window,
                            float soft_cap, bool causal) {
  const Operands operands{q, k, v, starts, sinks, *out};
  Door door(kName);
  const Shape shape = read_shape(operands, door);
  if (door.failed()) return door.error();
  const Scoring scoring{scale, soft_cap};
  const Masking masking{std::max<int64_t>(0, sliding_window), causal};
  return guarded(kName, q.element_type(), [&](auto value) {
    return run<decltype(value)>(pool, operands, shape, scoring, masking, door);
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_varlen_attention, fxhlo::varlen_attention,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("sliding_window")
                                  .Attr<float>("soft_cap")
                                  .Attr<bool>("causal"));

#pragma GCC visibility pop
