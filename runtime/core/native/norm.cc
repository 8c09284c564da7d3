// fxhlo_rms_norm: y[m, i] = round(x[m, i] / sqrt(mean over i of x[m, i]^2 + epsilon)) * w[i].
//
// Batch invariance: a row's sum of squares is kLanes partial sums, where value i is added to sum i mod kLanes in order of i;
// they are added up by halves.
#include <algorithm>
#include <cmath>
#include <cstdint>

#include "door.h"
#include "parallel.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_rms_norm";
constexpr int64_t kShareValues = 32 << 10;  // per thread: fewer are computed before another thread wakes up

template <typename T, typename Out>
void row(const T* x, const Out* weight, int64_t size, float epsilon, Out* y) {
  const int64_t whole = size / kLanes * kLanes;
  Floats squares{};
  T rest[kLanes] = {};
  std::copy(x + whole, x + size, rest);
  for (int64_t at = 0; at < whole; at += kLanes) {
    const Floats values = load_as(x + at);
    squares = fma(values, values, squares);
  }
  squares = fma(load_as(rest), load_as(rest), squares);
  const float scale = 1.0f / std::sqrt(sum_lanes(squares) / static_cast<float>(size) + epsilon);
  const auto scaled = [&](const T* from, const Out* by, Out* to) {
    Out rounded[kLanes];
    store_as(rounded, load_as(from) * scale);
    store_as(to, load_as(rounded) * load_as(by));
  };
  for (int64_t at = 0; at < whole; at += kLanes) scaled(x + at, weight + at, y + at);
  if (whole < size) {
    Out by[kLanes] = {}, out[kLanes];
    std::copy(weight + whole, weight + size, by);
    scaled(rest, by, out);
    std::copy(out, out + (size - whole), y + whole);
  }
}

template <typename T, typename Out>
ffi::Error run(ffi::ThreadPool& pool, ffi::AnyBuffer x, ffi::AnyBuffer w, float epsilon, ffi::AnyBuffer y) {
  const int64_t size = w.dimensions()[0], rows = size == 0 ? 0 : static_cast<int64_t>(x.element_count()) / size;
  const T* from = static_cast<const T*>(x.untyped_data());
  const Out* weight = static_cast<const Out*>(w.untyped_data());
  Out* to = static_cast<Out*>(y.untyped_data());
  const int64_t shares = std::clamp<int64_t>(rows * size / kShareValues, 1, std::max<int64_t>(1, rows));
  parallel_for(pool, shares, [&](int64_t share) {
    for (int64_t r = rows * share / shares; r < rows * (share + 1) / shares; ++r) {
      row(from + r * size, weight, size, epsilon, to + r * size);
    }
  });
  return ffi::Error::Success();
}

ffi::Error rms_norm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::Result<ffi::AnyBuffer> y, float epsilon) {
  const auto xs = x.dimensions(), ys = y->dimensions();
  const ffi::DataType type = x.element_type(), out = w.element_type();
  Door door(kName);
  door.check("weight", w, {ffi::F32, ffi::BF16, ffi::F16}, {xs.size() == 0 ? kAnySize : xs.back()});
  door.require(xs.size() > 0 && (type == ffi::F32 || type == out),
               [&] { return Door::described("values", x) + ", not float32 or " + name_of(out) + " [..., K]"; });
  door.require(std::equal(xs.begin(), xs.end(), ys.begin(), ys.end()) && y->element_type() == out,
               [&] { return Door::described("the result", *y) + ", not " + name_of(out) + " " + shape_text(xs); });
  if (door.failed()) return door.error();
  return guarded(kName, [&] {
    if (out == ffi::F32) return run<float, float>(pool, x, w, epsilon, *y);
    if (type == ffi::F32 && out == ffi::BF16) return run<float, BFloat16>(pool, x, w, epsilon, *y);
    if (type == ffi::F32) return run<float, Half>(pool, x, w, epsilon, *y);
    if (type == ffi::BF16) return run<BFloat16, BFloat16>(pool, x, w, epsilon, *y);
    return run<Half, Half>(pool, x, w, epsilon, *y);
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_rms_norm, fxhlo::rms_norm,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("epsilon"));

#pragma GCC visibility pop
