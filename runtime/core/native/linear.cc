// fxhlo_linear, fxhlo_linear_bias: y[m, n] = sum over k of x[m, k] * w[n, k] (+ bias[n]), sums in float32.
//
// A panel of kPanel rows of w is regrouped so that each vector holds four words (16 bytes along k) of kLanes / 4
// different rows; four words of a row of x are broadcast. The first tile of rows of x regroups w in registers
// and keeps it for the following tiles, in a scratch that stays in the L2 cache.
//
// Batch invariance: an output is the sum of four partial sums, where word i along k is added to sum i mod 4, in order of k;
// `finish` adds them up. Tiles, blocks and threads determine what is computed together, never the order of additions.
#include <algorithm>
#include <cstdint>
#include <vector>

#include "door.h"
#include "linear_tiles.h"
#include "parallel.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_linear";
constexpr int kPanel = kTileVectors * kLanes / 4;  // rows of w, columns of y
constexpr int64_t kBlockBytes = 256 << 10;         // of x per chunk, so that it stays in the L2 cache,
constexpr int64_t kBlockRows = 128;                // but enough rows to amortize regrouping w
constexpr int64_t kSerialBytes = 96 << 10;         // a smaller weight is read faster than a thread wakes up
constexpr int64_t kChunksPerThread = 4;            // to balance threads that the system preempts
static_assert(kTileVectors == 4, "finish() interleaves four vectors");

// Four words, a step along k.
struct Quad {
  char bytes[16];
};
template <typename T>
constexpr int kStep = sizeof(Quad) / sizeof(PackedOf<T>);  // values along k per quad

template <typename T>
struct Problem {
  const T* x;
  const T* w;
  const T* bias;  // or null
  void* y;        // T, or float if `wide`: only write_as is templated on it, or everything would be compiled twice
  bool wide;
  int64_t m, n, k;
  int64_t steps() const { return (k + kStep<T> - 1) / kStep<T>; }
};

// Rows of w of one panel: lanes 4 * i to 4 * i + 3 of vector v hold row 4 * i + v; rows past the last repeat it.
template <typename T>
struct Panel {
  const T* rows[kPanel];
  Panel(const Problem<T>& p, int64_t column) {
    for (int i = 0; i < kPanel; ++i) rows[i] = p.w + std::min<int64_t>(column + i, p.n - 1) * p.k;
  }
};

// One vector of a panel at k = at; count < kStep at the end of a row, the rest zero.
template <typename T>
inline Words regroup(const Panel<T>& panel, int vector, int64_t at, int count) {
  PackedOf<T> values[kLanes * kPerWord<PackedOf<T>>] = {};
  for (int i = 0; i < kLanes / 4; ++i) convert(panel.rows[4 * i + vector] + at, values + i * kStep<T>, count);
  return load<Words>(values);
}

constexpr int kSpan = 4;  // quads along k regrouped at a time: one cache line of each row

// regroup for kSpan consecutive full quads.
template <typename T>
inline void regroup_span(const Panel<T>& panel, int vector, int64_t at, Words* out) {
#if defined(FXHLO_AVX512)
  if constexpr (std::is_same_v<T, PackedOf<T>>) {
    const __m512i a = load<__m512i>(panel.rows[vector] + at), b = load<__m512i>(panel.rows[4 + vector] + at);
    const __m512i c = load<__m512i>(panel.rows[8 + vector] + at), d = load<__m512i>(panel.rows[12 + vector] + at);
    const __m512i ab_low = _mm512_shuffle_i32x4(a, b, 0x44), ab_high = _mm512_shuffle_i32x4(a, b, 0xee);
    const __m512i cd_low = _mm512_shuffle_i32x4(c, d, 0x44), cd_high = _mm512_shuffle_i32x4(c, d, 0xee);
    out[0] = (Words)_mm512_shuffle_i32x4(ab_low, cd_low, 0x88);
    out[1] = (Words)_mm512_shuffle_i32x4(ab_low, cd_low, 0xdd);
    out[2] = (Words)_mm512_shuffle_i32x4(ab_high, cd_high, 0x88);
    out[3] = (Words)_mm512_shuffle_i32x4(ab_high, cd_high, 0xdd);
    return;
  }
#endif
  for (int quad = 0; quad < kSpan; ++quad) out[quad] = regroup(panel, vector, at + quad * kStep<T>, kStep<T>);
}

// kPanel outputs of one row: lane 4 * i + v is the sum of the four lanes from 4 * i of vector v.
inline Floats finish(const Floats* sums, float* out) {
#if defined(FXHLO_AVX512)
  const __m512 a = sums[0], b = sums[1], c = sums[2], d = sums[3];
  const __m512d ab = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512d cd = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  store(out, _mm512_add_ps((__m512)_mm512_unpacklo_pd(ab, cd), (__m512)_mm512_unpackhi_pd(ab, cd)));
#else
  for (int i = 0; i < kLanes / 4; ++i) {
    for (int v = 0; v < kTileVectors; ++v) {
      out[4 * i + v] = (sums[v][4 * i] + sums[v][4 * i + 2]) + (sums[v][4 * i + 1] + sums[v][4 * i + 3]);
    }
  }
#endif
  return load<Floats>(out);
}

template <int Rows, typename Out, typename T>
inline void write_as(const Problem<T>& p, int64_t row, int64_t column, const Floats (*sums)[kTileVectors]) {
  const int valid = static_cast<int>(std::min<int64_t>(kPanel, p.n - column));
  float bias[kPanel] = {};
  if (p.bias != nullptr) convert(p.bias + column, bias, valid);
  for (int r = 0; r < Rows; ++r) {
    float out[kPanel];
    finish(sums[r], out);
    Out* y = static_cast<Out*>(p.y) + (row + r) * p.n + column;
    Out rounded[kPanel];
    for (int v = 0; v < kPanel; v += kLanes) {
      Floats values = load<Floats>(out + v);
      if (p.bias != nullptr) values += load<Floats>(bias + v);
      store_as(valid == kPanel ? y + v : rounded + v, values);
    }
    if (valid < kPanel) std::memcpy(y, rounded, valid * sizeof(Out));
  }
}

template <int Rows, typename T>
inline void write(const Problem<T>& p, int64_t row, int64_t column, const Floats (*sums)[kTileVectors]) {
  p.wide ? write_as<Rows, float>(p, row, column, sums) : write_as<Rows, T>(p, row, column, sums);
}

// Rows [row, row + count) of x -> [steps][count] quads, zero past the end of k. A tile reads them sequentially,
// and rows that are a power of two apart do not compete for the same lines of the L1 cache.
template <typename T>
void pack_rows(const Problem<T>& p, int64_t row, int64_t count, Quad* out) {
  for (int64_t r = 0; r < count; ++r) {
    const T* from = p.x + (row + r) * p.k;
    Quad* to = out + r;
    int64_t at = 0;
    for (; at + kStep<T> <= p.k; at += kStep<T>, to += count) {
      PackedOf<T> values[kStep<T>];
      convert(from + at, values, kStep<T>);
      std::memcpy(to, values, sizeof(Quad));
    }
    if (at < p.k) {
      PackedOf<T> values[kStep<T>] = {};
      convert(from + at, values, p.k - at);
      std::memcpy(to, values, sizeof(Quad));
    }
  }
}

// Computes rows [row, row + Rows) of y for one panel, which is regrouped on the fly and kept in `kept`,
// [steps][kTileVectors], unless that is null. x: the rows, packed by pack_rows. Prefetches the next panel: hardware may not
// detect so many streams, and a virtual machine with prefetchers off read w at a tenth of the speed.
template <int Rows, typename T>
void streamed_tile(const Problem<T>& p, int64_t row, int64_t column, const Quad* x, Words* kept) {
  const Panel<T> panel(p, column);
  Floats sums[Rows][kTileVectors] = {};
  int64_t at = 0;
  for (; at + kSpan * kStep<T> <= p.k; at += kSpan * kStep<T>, x += kSpan * Rows) {
    for (int i = 0; i < kPanel; ++i) __builtin_prefetch(panel.rows[i] + kPanel * p.k + at, 0, 2);
    for (int v = 0; v < kTileVectors; ++v) {
      Words quads[kSpan];
      regroup_span(panel, v, at, quads);
      for (int quad = 0; quad < kSpan; ++quad) {
        if (kept != nullptr) kept[quad * kTileVectors + v] = quads[quad];
        for (int r = 0; r < Rows; ++r) {
          sums[r][v] = multiply_add<PackedOf<T>>(broadcast_quad(x + quad * Rows + r), quads[quad], sums[r][v]);
        }
      }
    }
    if (kept != nullptr) kept += kSpan * kTileVectors;
  }
  for (; at < p.k; at += kStep<T>, x += Rows) {
    for (int v = 0; v < kTileVectors; ++v) {
      const Words words = regroup(panel, v, at, static_cast<int>(std::min<int64_t>(kStep<T>, p.k - at)));
      for (int r = 0; r < Rows; ++r) sums[r][v] = multiply_add<PackedOf<T>>(broadcast_quad(x + r), words, sums[r][v]);
      if (kept != nullptr) *kept++ = words;
    }
  }
  write<Rows>(p, row, column, sums);
}

// streamed_tile with a panel that an earlier tile has kept.
template <int Rows, typename T>
void kept_tile(const Problem<T>& p, int64_t row, int64_t column, const Quad* x, const Words* kept) {
  Floats sums[Rows][kTileVectors] = {};
  for (int64_t step = p.steps(); step > 0; --step, x += Rows, kept += kTileVectors) {
    __builtin_prefetch(x + 32 * Rows);
    __builtin_prefetch(x + 32 * Rows + 4);
    for (int r = 0; r < Rows; ++r) {
      const Words words = broadcast_quad(x + r);
      for (int v = 0; v < kTileVectors; ++v) sums[r][v] = multiply_add<PackedOf<T>>(words, kept[v], sums[r][v]);
    }
  }
  write<Rows>(p, row, column, sums);
}

// Computes rows [row, row_end) and columns [column, column_end) of y: loops over panels of w, and all rows of x for each.
template <typename T>
void block(const Problem<T>& p, int64_t row, int64_t row_end, int64_t column, int64_t column_end) {
  const int64_t count = row_end - row, tiles = (count + kTileRows - 1) / kTileRows, steps = p.steps();
  // Rows are distributed evenly: 8 rows are two tiles of 4, not 6 and 2.
  const auto first_row = [&](int64_t tile) { return row + count * tile / tiles; };
  thread_local std::vector<Quad> x;
  thread_local std::vector<Words> kept;
  x.resize(count * steps);
  kept.resize(tiles > 1 ? steps * kTileVectors : 0);
  for (int64_t t = 0; t < tiles; ++t) {
    pack_rows(p, first_row(t), first_row(t + 1) - first_row(t), x.data() + (first_row(t) - row) * steps);
  }
  for (; column < column_end; column += kPanel) {
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = first_row(t);
      const Quad* rows_of_x = x.data() + (first - row) * steps;
      with_rows(first_row(t + 1) - first, [&](auto rows) {
        if (t == 0) {
          streamed_tile<rows()>(p, first, column, rows_of_x, tiles > 1 ? kept.data() : nullptr);
        } else {
          kept_tile<rows()>(p, first, column, rows_of_x, kept.data());
        }
      });
    }
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

template <typename T>
ffi::Error run(ffi::ThreadPool& pool, ffi::AnyBuffer x, ffi::AnyBuffer w, const void* bias, ffi::AnyBuffer y) {
  const int64_t m = x.dimensions()[0], k = x.dimensions()[1], n = w.dimensions()[0];
  if (m == 0 || n == 0) return ffi::Error::Success();
  multiply(pool, Problem<T>{static_cast<const T*>(x.untyped_data()), static_cast<const T*>(w.untyped_data()),
                            static_cast<const T*>(bias), y.untyped_data(), y.element_type() != x.element_type(), m, n, k});
  return ffi::Error::Success();
}

ffi::Error dispatch(ffi::ThreadPool& pool, ffi::AnyBuffer x, ffi::AnyBuffer w, const ffi::AnyBuffer* bias,
                    ffi::AnyBuffer y) {
  const ffi::DataType type = x.element_type();
  Door door(kName);
  door.check("values", x, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, kAnySize});
  if (door.failed()) return door.error();
  door.check("weight", w, {type}, {kAnySize, x.dimensions()[1]});
  if (door.failed()) return door.error();
  if (bias != nullptr) door.check("bias", *bias, {type}, {w.dimensions()[0]});
  door.check("the result", y, {type, ffi::F32}, {x.dimensions()[0], w.dimensions()[0]});
  if (door.failed()) return door.error();
  const void* added = bias == nullptr ? nullptr : bias->untyped_data();
  return guarded(kName, [&] {
    switch (type) {
      case ffi::F32: return run<float>(pool, x, w, added, y);
      case ffi::BF16: return run<BFloat16>(pool, x, w, added, y);
      default: return run<Half>(pool, x, w, added, y);
    }
  });
}

ffi::Error linear(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::Result<ffi::AnyBuffer> y) {
  return dispatch(pool, x, w, nullptr, *y);
}

ffi::Error linear_bias(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w, ffi::AnyBuffer bias,
                       ffi::Result<ffi::AnyBuffer> y) {
  return dispatch(pool, x, w, &bias, *y);
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

#pragma GCC visibility pop
