// fxhlo_silu_and_mul: y[m, i] = silu(x[m, i]) * x[m, n + i], silu in float32 and rounded to the dtype before the multiplication.
//
// A value depends only on its own two operands, not on batch, threads or vector width.
#include <algorithm>
#include <cstdint>

#include "activations.h"
#include "door.h"
#include "parallel.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_silu_and_mul";
constexpr int64_t kShareValues = 16 << 10;  // per thread: fewer are computed before another thread wakes up

template <typename T>
inline void vector_of(const T* gate, const T* up, T* out) {
  T rounded[kLanes];
  store_as(rounded, silu(load_as(gate)));
  store_as(out, load_as(rounded) * load_as(up));
}

template <typename T>
void row(const T* x, int64_t size, T* y) {
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) vector_of(x + at, x + size + at, y + at);
  if (at < size) {
    T gate[kLanes] = {}, up[kLanes] = {}, out[kLanes];
    std::copy(x + at, x + size, gate);
    std::copy(x + size + at, x + 2 * size, up);
    vector_of(gate, up, out);
    std::copy(out, out + (size - at), y + at);
  }
}

template <typename T>
ffi::Error run(ffi::ThreadPool& pool, ffi::AnyBuffer x, ffi::AnyBuffer y) {
  const int64_t rows = y.dimensions()[0], size = y.dimensions()[1];
  const T* from = static_cast<const T*>(x.untyped_data());
  T* to = static_cast<T*>(y.untyped_data());
  const int64_t shares = std::clamp<int64_t>(rows * size / kShareValues, 1, std::max<int64_t>(1, rows));
  parallel_for(pool, shares, [&](int64_t share) {
    for (int64_t r = rows * share / shares; r < rows * (share + 1) / shares; ++r) row(from + r * 2 * size, size, to + r * size);
  });
  return ffi::Error::Success();
}

ffi::Error silu_and_mul(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::Result<ffi::AnyBuffer> y) {
  Door door(kName);
  door.check("values", x, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, kAnySize});
  if (door.failed()) return door.error();
  const auto shape = x.dimensions();
  door.require(shape[1] % 2 == 0, [&] { return Door::described("values", x) + ", which has no two halves"; });
  door.check("the result", *y, {x.element_type()}, {shape[0], shape[1] / 2});
  if (door.failed()) return door.error();
  return guarded(kName, x.element_type(), [&](auto value) { return run<decltype(value)>(pool, x, *y); });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_silu_and_mul, fxhlo::silu_and_mul,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

#pragma GCC visibility pop
