// fxhlo_ragged_paged_latent_attention: writes a step's latents into a paged cache and attends causally to it.
//
// Operands: q [T, N, P + R], latent [T, L + R], w_uk [N, P, L], w_uv [N, L, V], kv_cache [blocks, block_size, L + R],
// slot_mapping [T], block_tables [R, P], seq_lens [R] (this step's tokens included), query_start_loc [R + 1], all int32. Results:
// out [T, N, V], kv_cache, which should be aliased to the operand, and is copied otherwise. Rows of `out` that belong to no
// request are zero. form: 0 takes the cheaper form for each request, 1 the absorbed, 2 the decompressed one (latent_forms.h).
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "door.h"
#include "latent_forms.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

constexpr const char* kName = "fxhlo_ragged_paged_latent_attention";
constexpr int64_t kCheaper = 0, kDecompressed = 2;

struct Operands {
  ffi::AnyBuffer q, latent, w_uk, w_uv, cache, slots, tables, seq_lens, starts, out, updated;
};

LatentShape read_shape(const Operands& o, Door& door) {
  constexpr int64_t any = kAnySize;
  door.check("query", o.q, {ffi::F32, ffi::BF16, ffi::F16}, {any, any, any});
  const ffi::DataType type = o.q.element_type();
  door.check("w_uk", o.w_uk, {type}, {any, any, any}).check("w_uv", o.w_uv, {type}, {any, any, any});
  door.check("kv_cache", o.cache, {type}, {any, any, any}).check("block_tables", o.tables, {ffi::S32}, {any, any});
  if (door.failed()) return {};
  const auto q = o.q.dimensions(), k = o.w_uk.dimensions(), v = o.w_uv.dimensions(), cache = o.cache.dimensions();
  const auto tables = o.tables.dimensions();
  const LatentShape shape = {q[0], q[1], k[1], q[2] - k[1], k[2], v[2], tables[0], cache[0], cache[1], tables[1]};
  door.require(shape.heads > 0, [&] { return Door::described("query", o.q) + ", which has no heads"; });
  door.require(shape.nope > 0 && shape.rotary >= 0 && shape.latent > 0, [&] {
    return Door::described("query", o.q) + ", which " + Door::described("w_uk", o.w_uk) + " cannot be applied to";
  });
  for (const int64_t size : {shape.query_size(), shape.slot_size(), shape.value_size()}) {
    door.require(0 < size && size <= kMaxHeadSize, [&] {
      return Door::described("w_uv", o.w_uv) + "; queries, latents and values have up to " + std::to_string(kMaxHeadSize) + " elements, not " +
             std::to_string(size);
    });
  }
  door.check("w_uk", o.w_uk, {type}, {shape.heads, shape.nope, shape.latent});
  door.check("w_uv", o.w_uv, {type}, {shape.heads, shape.latent, shape.value_size()});
  door.check("latent", o.latent, {type}, {shape.tokens, shape.slot_size()});
  door.check("kv_cache", o.cache, {type}, {shape.blocks, shape.block_size, shape.slot_size()});
  door.check("slot_mapping", o.slots, {ffi::S32}, {shape.tokens}).check("seq_lens", o.seq_lens, {ffi::S32}, {shape.requests});
  door.check("query_start_loc", o.starts, {ffi::S32}, {shape.requests + 1});
  door.check("the result", o.out, {type}, {shape.tokens, shape.heads, shape.value_size()});
  door.check("the updated cache", o.updated, {type}, {shape.blocks, shape.block_size, shape.slot_size()});
  return shape;
}

template <typename T>
void write_cache(const LatentStep<T>& step, const T* latent, const int32_t* slots) {
  const int64_t size = step.slot_size();
  for (int64_t token = 0; token < step.tokens; ++token) {
    if (slots[token] < 0 || slots[token] >= step.blocks * step.block_size) continue;
    std::memcpy(step.cache + slots[token] * size, latent + token * size, size * sizeof(T));
  }
}

// Whether the decompressed form multiplies less for this request: its projections are per key, not per row.
template <typename T>
bool cheaper_decompressed(const LatentStep<T>& step, int64_t request) {
  const int64_t rows = step.rows(request), position = step.first_position(request);
  if (rows < 2 || position < 0) return false;
  const int64_t keys = step.seq_lens[request] - step.first_key(position);
  int64_t seen = 0;
  for (int64_t row = position; row < position + rows; ++row) seen += row + 1 - step.first_key(row);
  const int64_t projections = step.latent * (step.nope + step.value_size());
  const int64_t absorbed = rows * projections + seen * (step.slot_size() + step.latent);
  return keys * projections + seen * (step.query_size() + step.value_size()) < absorbed;
}

template <typename T>
ffi::Error run(ffi::ThreadPool& pool, const Operands& o, const LatentShape& shape, float scale, int64_t window, int64_t form, Door& door) {
  const LatentStep<T> step{shape, data<T>(o.q), data<T>(o.w_uk), data<T>(o.w_uv), static_cast<T*>(o.updated.untyped_data()),
                           data<int32_t>(o.tables), data<int32_t>(o.seq_lens), data<int32_t>(o.starts),
                           static_cast<T*>(o.out.untyped_data()), Scoring{scale, 0.0f}, std::max<int64_t>(0, window)};
  check_requests(step, door);
  if (door.failed()) return door.error();
  if (o.cache.untyped_data() != o.updated.untyped_data()) {
    std::memcpy(o.updated.untyped_data(), o.cache.untyped_data(), o.cache.size_bytes());
  }
  write_cache(step, data<T>(o.latent), data<int32_t>(o.slots));
  zero_other_rows(step);
  std::vector<int32_t> absorbed, decompressed;
  for (int32_t request = 0; request < shape.requests; ++request) {
    const bool whole = form == kCheaper ? cheaper_decompressed(step, request) : form == kDecompressed && step.first_position(request) >= 0;
    if (step.rows(request) > 0) (whole ? decompressed : absorbed).push_back(request);
  }
  attend_absorbed_in_groups(pool, step, absorbed);
  attend_decompressed_in_groups(pool, step, decompressed);
  return ffi::Error::Success();
}

ffi::Error ragged_paged_latent_attention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer latent, ffi::AnyBuffer w_uk,
                                         ffi::AnyBuffer w_uv, ffi::AnyBuffer cache, ffi::AnyBuffer slots, ffi::AnyBuffer tables,
                                         ffi::AnyBuffer seq_lens, ffi::AnyBuffer starts, ffi::Result<ffi::AnyBuffer> out,
                                         ffi::Result<ffi::AnyBuffer> updated, float scale, int64_t sliding_window, int64_t form) {
  const Operands operands{q, latent, w_uk, w_uv, cache, slots, tables, seq_lens, starts, *out, *updated};
  Door door(kName);
  const LatentShape shape = read_shape(operands, door);
  if (door.failed()) return door.error();
  return guarded(kName, q.element_type(), [&](auto value) {
    return run<decltype(value)>(pool, operands, shape, scale, sliding_window, form, door);
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
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("sliding_window")
                                  .Attr<int64_t>("form"));

#pragma GCC visibility pop
