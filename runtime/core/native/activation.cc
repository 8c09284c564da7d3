// fxhlo_silu_and_mul: y[m, i] = silu(x[m, i]) * x[m, n + i], silu in float32 and rounded to the dtype before the product.
//
// A value depends on nothing but its own two operands: batch, threads and vector width do not show.
#include <algorithm>
#include <cstdint>
#include <string>

#include "parallel.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kShareValues = 16 << 10;  // of one thread: fewer are done before another one wakes up

// x / (1 + 2^(-x log2(e))). Where the exponent would be too large for exp2, the quotient is next to -0 already.
inline Floats silu(Floats x) {
  Floats power = x * -1.44269504088896341f;
  const Floats limit = broadcast(126.0f);
  power = power > limit ? limit : power;
  return x / (exp2(power) + 1.0f);
}

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
  const auto from = x.dimensions(), to = y->dimensions();
  const auto invalid = [](const char* message) { return ffi::Error::InvalidArgument(std::string("fxhlo_silu_and_mul: ") + message); };
  if (from.size() != 2 || to.size() != 2 || from[0] != to[0] || from[1] != 2 * to[1]) return invalid("shapes are [M, 2 N] -> [M, N]");
  if (x.element_type() != y->element_type()) return invalid("operand and result are of one dtype");
  switch (x.element_type()) {
    case ffi::DataType::F32: return run<float>(pool, x, *y);
    case ffi::DataType::BF16: return run<BFloat16>(pool, x, *y);
    case ffi::DataType::F16: return run<Half>(pool, x, *y);
    default: return invalid("the operand is float32, bfloat16 or float16");
  }
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
