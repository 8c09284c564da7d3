// fxhlo_linear, fxhlo_linear_bias, fxhlo_linear_used: y[m, n] = sum over k of x[m, k] * w[n, k] (+ bias[n]), sums in float32.
//
// fxhlo_linear_used computes the first `used` rows alone, and the others are zero: a step's program has more rows than the step.
//
// panels.h says how, and why a row has the same bits in any batch: blocks and threads determine what is computed together, never
// the order of additions.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "door.h"
#include "linear_tiles.h"
#include "panels.h"
#include "parallel.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_linear";
constexpr int64_t kBlockBytes = 256 << 10;         // of x per chunk, so that it stays in the L2 cache,
constexpr int64_t kBlockRows = 128;                // but enough rows to amortize regrouping w
constexpr int64_t kSerialBytes = 96 << 10;         // a smaller weight is read faster than a thread wakes up
constexpr int64_t kChunksPerThread = 4;            // to balance threads that the system preempts

template <typename T>
struct Problem {
  const T* x;
  const T* w;
  const T* bias;  // or null
  void* y;        // T, or float if `wide`: only write_as is templated on it, or everything would be compiled twice
  bool wide;
  int64_t m, n, k;
};

// Stores sums [count][kPanel] as rows [row, row + count) of y, from `column` on.
template <typename Out, typename T>
inline void write_as(const Problem<T>& p, int64_t row, int64_t count, int64_t column, const float* sums) {
  const int valid = static_cast<int>(std::min<int64_t>(kPanel, p.n - column));
  float bias[kPanel] = {};
  if (p.bias != nullptr) convert(p.bias + column, bias, valid);
  for (int64_t r = 0; r < count; ++r, sums += kPanel) {
    Out* y = static_cast<Out*>(p.y) + (row + r) * p.n + column;
    Out rounded[kPanel];
    for (int v = 0; v < kPanel; v += kLanes) {
      Floats values = load<Floats>(sums + v);
      if (p.bias != nullptr) values += load<Floats>(bias + v);
      store_as(valid == kPanel ? y + v : rounded + v, values);
    }
    if (valid < kPanel) std::memcpy(y, rounded, valid * sizeof(Out));
  }
}

// Computes rows [row, row_end) and columns [column, column_end) of y: loops over panels of w, and all rows of x for each.
template <typename T>
void block(const Problem<T>& p, int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
  const TiledRows rows{row_end - row};
  const int64_t steps = steps_of<T>(p.k);
  thread_local std::vector<Quad> x;
  thread_local std::vector<Words> kept;
  thread_local std::vector<float> sums;
  x.resize(rows.count * steps);
  kept.resize(rows.tiles() > 1 ? steps * kTileVectors : 0);
  sums.resize(rows.count * kPanel);
  pack_rows<T>(rows, p.k, [&](int64_t r) { return p.x + (row + r) * p.k; }, x.data());
  for (; column < column_end; column += kPanel) {
    Panel<T> panel(p.w + column * p.k, p.k, p.n - column);
    panel.next = column + kPanel < p.n ? kPanel * p.k : 0;
    product_of_panel(panel, p.k, rows, x.data(), kept.data(), sums.data());
    p.wide ? write_as<float>(p, row, rows.count, column, sums.data()) : write_as<T>(p, row, rows.count, column, sums.data());
  }
}

template <typename T>
void multiply(ffi::ThreadPool& pool, const Problem<T>& p) {
  const int64_t row_bytes = std::max<int64_t>(1, p.k * sizeof(T));
  const bool tiles = tiled<T>();
  const int64_t most_rows = std::max(kBlockRows, (tiles ? kTileBlockBytes : kBlockBytes) / row_bytes);
  const int64_t row_blocks = (p.m + most_rows - 1) / most_rows;
  const int64_t panel = tiles ? kTilePanel : kPanel, panels = (p.n + panel - 1) / panel;
  int64_t column_blocks = 1;
  if (p.n * row_bytes > kSerialBytes || p.m > kTileRows) {
    column_blocks = (pool.num_threads() * (tiles ? kTileChunksPerThread : kChunksPerThread) + row_blocks - 1) / row_blocks;
  }
  column_blocks = std::min(column_blocks, panels);
  parallel_for(pool, row_blocks * column_blocks, [&](int64_t chunk) {
    const int64_t rb = chunk / column_blocks, cb = chunk % column_blocks;
    const int64_t column = panel * (panels * cb / column_blocks);
    const int64_t column_end = std::min(p.n, panel * (panels * (cb + 1) / column_blocks));
    const int64_t row = p.m * rb / row_blocks, row_end = p.m * (rb + 1) / row_blocks;
#if defined(FXHLO_TILES)
    if constexpr (std::is_same_v<T, BFloat16>) {
      if (tiles) return TiledLinear(p.x, p.w, p.bias, p.y, p.wide, p.n, p.k).block(row, row_end, column, column_end);
    }
#endif
    block(p, row, row_end, column, column_end);
  });
}

// rows: of x that are computed.
template <typename T>
ffi::Error run(ffi::ThreadPool& pool, ffi::AnyBuffer x, ffi::AnyBuffer w, const void* bias, int64_t rows, ffi::AnyBuffer y) {
  const int64_t m = rows, k = x.dimensions()[1], n = w.dimensions()[0];
  const int64_t row_bytes = n * static_cast<int64_t>(ffi::ByteWidth(y.element_type()));
  std::memset(static_cast<char*>(y.untyped_data()) + m * row_bytes, 0, (x.dimensions()[0] - m) * row_bytes);
  if (m == 0 || n == 0) return ffi::Error::Success();
  multiply(pool, Problem<T>{static_cast<const T*>(x.untyped_data()), static_cast<const T*>(w.untyped_data()),
                            static_cast<const T*>(bias), y.untyped_data(), y.element_type() != x.element_type(), m, n, k});
  return ffi::Error::Success();
}

// bias, used: may be null.
ffi::Error dispatch(ffi::ThreadPool& pool, ffi::AnyBuffer x, ffi::AnyBuffer w, const ffi::AnyBuffer* bias,
                    const ffi::AnyBuffer* used, ffi::AnyBuffer y) {
  const ffi::DataType type = x.element_type();
  Door door(kName);
  door.check("values", x, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, kAnySize});
  if (door.failed()) return door.error();
  door.check("weight", w, {type}, {kAnySize, x.dimensions()[1]});
  if (door.failed()) return door.error();
  if (bias != nullptr) door.check("bias", *bias, {type}, {w.dimensions()[0]});
  if (used != nullptr) door.check("used", *used, {ffi::S32}, {1});
  door.check("the result", y, {type, ffi::F32}, {x.dimensions()[0], w.dimensions()[0]});
  if (door.failed()) return door.error();
  const int64_t all = x.dimensions()[0], rows = used == nullptr ? all : data<int32_t>(*used)[0];
  door.require(rows >= 0 && rows <= all, [&] { return "used is " + std::to_string(rows) + ", of " + std::to_string(all) + " rows"; });
  if (door.failed()) return door.error();
  const void* added = bias == nullptr ? nullptr : bias->untyped_data();
  return guarded(kName, type, [&](auto value) { return run<decltype(value)>(pool, x, w, added, rows, y); });
}

ffi::Error linear(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::Result<ffi::AnyBuffer> y) {
  return dispatch(pool, x, w, nullptr, nullptr, *y);
}

ffi::Error linear_bias(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer bias,
                       ffi::Result<ffi::AnyBuffer> y) {
  return dispatch(pool, x, w, &bias, nullptr, *y);
}

ffi::Error linear_used(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer bias, ffi::AnyBuffer used,
                       ffi::Result<ffi::AnyBuffer> y) {
  const bool absent = bias.dimensions().size() == 1 && bias.dimensions()[0] == 0;
  return dispatch(pool, x, w, absent ? nullptr : &bias, &used, *y);
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_linear, fxhlo::linear,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_linear_bias, fxhlo::linear_bias,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_linear_used, fxhlo::linear_used,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

#pragma GCC visibility pop
