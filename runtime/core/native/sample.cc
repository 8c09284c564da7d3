// fxhlo_sample: operands and result as in kernels/sample/reference.py; one row (request) per task.
//
// Tokens are the reference's, bit for bit: the float32 operations are its operations in its order (hence
// -ffp-contract=off), everything else is integer arithmetic. Sorts are replaced by selection among few candidates, and no
// noise is drawn for tokens that cannot win.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "convert.h"
#include "door.h"
#include "parallel.h"
#include "sampling.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

// Constants of kernels/sample/reference.py.
constexpr float kEpsilon = 1e-5f;
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kFiltered = 1000.0f;
constexpr float kWeightOne = 0x1p30f;
constexpr int kSumBits = 31, kTopPBits = 24;
constexpr float kLogSeries[] = {1.44269645f,  0.72108072f,   0.489001334f, 0.270075679f,
                                0.755991936f, -0.923568487f, 1.43126285f};
constexpr float kExpSeries[] = {-0.693146944f, 0.240214869f, -0.0554094501f, 0.00934564881f, -0.00100433733f};
constexpr uint32_t kParity = 0x1BD11BDA;
constexpr int kRotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};

// A token whose probability is 2^-kHopeless of the best cannot win: the noise is in (-33, 5.1).
constexpr float kHopeless = 39.0f;
constexpr int64_t kBlock = 512;  // tokens processed together

inline Floats product(Floats a, Floats b) {
  return reinterpret_cast<Floats>(reinterpret_cast<Words>(a * b) & ~1u);
}

template <int N>
inline Floats series(Floats x, const float (&coefficients)[N]) {
  Floats value = product(x, broadcast(coefficients[N - 1])) + coefficients[N - 2];
#pragma GCC unroll 8
  for (int i = N - 3; i >= 0; --i) value = product(value, x) + coefficients[i];
  return value;
}

// x = 2^exponent * (1 - g), g in (0, 0.5], for positive normal x.
inline Floats split(Floats x, Floats* g) {
  const Words bits = reinterpret_cast<Words>(x);
  *g = 1.0f - reinterpret_cast<Floats>((bits & 0x7fffffu) | 0x3f000000u);
  return __builtin_convertvector(reinterpret_cast<Ints>(bits >> 23) - 126, Floats);
}

// First word of Threefry-2x32-20 for the counter (step, token).
inline Words threefry(const uint32_t (&key)[2], uint32_t step, Words token) {
  const uint32_t keys[3] = {key[0], key[1], key[0] ^ key[1] ^ kParity};
  Words x = (step + keys[0]) - Words{}, y = token + keys[1];
#pragma GCC unroll 5
  for (int block = 0; block < 5; ++block) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int rotation = kRotations[block % 2][i];
      x += y;
      y = ((y << rotation) | (y >> (32 - rotation))) ^ x;
    }
    x += keys[(block + 1) % 3];
    y += keys[(block + 2) % 3] + static_cast<uint32_t>(block + 1);
  }
  return x;
}

// log2 of a standard exponential, up to a factor common to all tokens.
inline Floats noise(Words bits) {
  const Ints small = reinterpret_cast<Ints>(bits) < 0;
  const Floats u = (__builtin_convertvector(reinterpret_cast<Ints>(bits & 0x7fffffffu), Floats) + 0.5f) * 0x1p-32f;
  Floats g, rest;
  const Floats exponent = split(u, &g);
  g = small ? g : u;
  const Floats exponential = product(g, series(g, kLogSeries)) - (small ? exponent : Floats{});
  const Floats whole = split(exponential, &rest);
  return whole - product(rest, series(rest, kLogSeries));
}

// floor(2^30 * 2^-z), for z >= 0.
inline Ints weight(Floats z) {
  z = z < 31.0f ? z : broadcast(31.0f);
  const Ints whole = __builtin_convertvector(z, Ints);
  const Floats fraction = z - __builtin_convertvector(whole, Floats);
  const Floats power = product(fraction, series(fraction, kExpSeries)) + 1.0f;
  return __builtin_convertvector(power * kWeightOne, Ints) >> whole;
}

inline float clamped(float value, float low, float high) { return value < low ? low : value > high ? high : value; }

// The lowest token with the highest logit; `best` is set to that logit, cleaned.
template <typename T>
int32_t greedy(const T* logits, int64_t size, float* best) {
  int32_t highest = std::numeric_limits<int32_t>::min();
  int64_t where = 0;
  for (int64_t start = 0; start < size; start += kBlock) {
    const int64_t end = std::min(start + kBlock, size);
    int32_t block = std::numeric_limits<int32_t>::min();
    for (int64_t i = start; i < end; ++i) block = std::max(block, order(cleaned(to_float(logits[i]))));
    if (block > highest) highest = block, where = start;
  }
  while (order(cleaned(to_float(logits[where]))) != highest) ++where;
  *best = unorder(highest);
  return static_cast<int32_t>(where);
}

struct Parameters {
  float temperature;
  int32_t top_k;
  float top_p, min_p;
  uint32_t seed[2];
  uint32_t step;
};

// Per-thread scratch for a row: y, z and the weights, padded to whole vectors with tokens that cannot be drawn.
struct Scratch {
  std::vector<float> y, z;
  std::vector<int32_t> weights, found;
};

// The k-th largest of `size` values. At least k values reach the k-th largest block maximum (one in each of k blocks): only
// those, which are few for a small k, are candidates.
float kth_largest(const float* values, int64_t size, int64_t k, std::vector<int32_t>& found) {
  constexpr int64_t kSpan = 64;
  const int64_t blocks = (size + kSpan - 1) / kSpan;
  std::vector<int32_t>& maxima = found;
  maxima.assign(blocks, std::numeric_limits<int32_t>::min());
  for (int64_t block = 0; block < blocks; ++block) {
    const int64_t end = std::min(size, (block + 1) * kSpan);
    for (int64_t i = block * kSpan; i < end; ++i) maxima[block] = std::max(maxima[block], order(values[i]));
  }
  int32_t bound = std::numeric_limits<int32_t>::min();
  if (k <= blocks) {
    std::nth_element(maxima.begin(), maxima.begin() + (k - 1), maxima.end(), std::greater<int32_t>());
    bound = maxima[k - 1];
  }
  found.clear();
  for (int64_t start = 0; start < size; start += kSpan) {
    const int64_t end = std::min(size, start + kSpan);
    int32_t highest = std::numeric_limits<int32_t>::min();
    for (int64_t i = start; i < end; ++i) highest = std::max(highest, order(values[i]));
    if (highest < bound) continue;
    for (int64_t i = start; i < end; ++i) {
      if (order(values[i]) >= bound) found.push_back(order(values[i]));
    }
  }
  std::nth_element(found.begin(), found.begin() + (k - 1), found.end(), std::greater<int32_t>());
  return unorder(found[k - 1]);
}

// The largest t such that the weights >= t sum to at least `target`; the sum of all weights does.
int32_t heaviest(const std::vector<int32_t>& weights, int64_t target, std::vector<int32_t>& found) {
  constexpr int kShift = 19, kBins = 512;  // sixteen per octave
  int64_t masses[kBins] = {};
  const auto bin = [](int32_t value) {
    return static_cast<int64_t>(bit_cast<uint32_t>(static_cast<float>(value)) >> kShift) - (127 << 4);
  };
  for (const int32_t value : weights) {
    if (value > 0) masses[bin(value)] += value;
  }
  int64_t chosen = kBins - 1;
  for (; masses[chosen] < target; --chosen) target -= masses[chosen];
  found.clear();
  for (const int32_t value : weights) {
    if (value > 0 && bin(value) == chosen) found.push_back(value);
  }
  std::sort(found.begin(), found.end(), std::greater<int32_t>());
  size_t at = 0;
  for (; found[at] < target; ++at) target -= found[at];
  return found[at];
}

// Sets z to kFiltered for tokens that min-p, top-k or top-p drop.
void filter(const Parameters& p, int64_t size, Scratch& s) {
  const int64_t padded = static_cast<int64_t>(s.z.size());
  const bool top_k = p.top_k > 0 && p.top_k < size, top_p = p.top_p < 1.0f, min_p = p.min_p > 0.0f;
  if (top_k) {
    const float least = kth_largest(s.y.data(), size, p.top_k, s.found);
    for (int64_t i = 0; i < padded; ++i) s.z[i] = s.y[i] >= least ? s.z[i] : kFiltered;
  }
  if (!top_p && !min_p) return;
  s.weights.resize(padded);
  for (int64_t i = 0; i < padded; i += kLanes) store(&s.weights[i], weight(load<Floats>(&s.z[i])));
  if (min_p) {
    const int32_t least = static_cast<int32_t>(std::ceil(clamped(p.min_p, 0.0f, 1.0f) * kWeightOne));
    for (int64_t i = 0; i < padded; ++i) {
      const bool keep = s.weights[i] >= least;
      s.z[i] = keep ? s.z[i] : kFiltered;
      s.weights[i] = keep ? s.weights[i] : 0;
    }
  }
  if (!top_p) return;
  int64_t total = 0, sum = 0;
  for (int64_t i = 0; i < padded; ++i) total += s.weights[i];
  int shift = 0;
  while (total >> (kSumBits + shift)) ++shift;
  for (int64_t i = 0; i < padded; ++i) sum += s.weights[i] >>= shift;
  const int64_t fraction = static_cast<int64_t>(clamped(p.top_p, 0.0f, 1.0f) * static_cast<float>(1 << kTopPBits));
  const int64_t target = (sum * fraction + ((1 << kTopPBits) - 1)) >> kTopPBits;
  const int32_t least = heaviest(s.weights, std::max<int64_t>(target, 1), s.found);
  for (int64_t i = 0; i < padded; ++i) s.z[i] = s.weights[i] >= least ? s.z[i] : kFiltered;
}

// The winner of the exponential race over cleaned logits, at least one of which is above -infinity.
int32_t draw(const float* logits, int64_t size, const Parameters& p, Scratch& s) {
  const int64_t padded = (size + kBlock - 1) / kBlock * kBlock;
  s.y.assign(padded, -kInfinity);
  s.z.resize(padded);
  std::memcpy(s.y.data(), logits, size * sizeof(float));
  Ints highest = std::numeric_limits<int32_t>::min() - Ints{};
  for (int64_t i = 0; i < padded; i += kLanes) {
    Floats y = cleaned(load<Floats>(&s.y[i])) / p.temperature;
    y = y > kLargest ? broadcast(kLargest) : y;
    y = y >= -kLargest ? y : broadcast(-kLargest);  // NaN too
    y = reinterpret_cast<Floats>(magnitude(y)) < kSmallestNormal ? Floats{} : y;
    store(&s.y[i], y);
    const Ints ordered = order(y);
    highest = ordered > highest ? ordered : highest;
  }
  int32_t top = highest[0];
  for (int lane = 1; lane < kLanes; ++lane) top = std::max<int32_t>(top, highest[lane]);
  const float best = unorder(top);
  for (int64_t i = 0; i < padded; i += kLanes) {
    const Floats z = product(best - load<Floats>(&s.y[i]), broadcast(kLog2E));
    store(&s.z[i], z < kFiltered ? z : broadcast(kFiltered));
  }
  for (int64_t i = size; i < padded; ++i) s.z[i] = kFiltered;
  filter(p, size, s);

  float least = kInfinity, scores[kBlock];
  int32_t winner = 0;
  for (int64_t start = 0; start < padded; start += kBlock) {
    Floats lowest = broadcast(kInfinity);
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      const Floats z = load<Floats>(&s.z[start + i]);
      lowest = z < lowest ? z : lowest;
    }
    if (-max_lanes(-lowest) >= kHopeless) continue;
    lowest = broadcast(kInfinity);
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      const Words tokens = reinterpret_cast<Words>(iota()) + static_cast<uint32_t>(start + i);
      const Floats score = load<Floats>(&s.z[start + i]) + noise(threefry(p.seed, p.step, tokens));
      store(scores + i, score);
      lowest = score < lowest ? score : lowest;
    }
    const float block = -max_lanes(-lowest);
    if (block < least) {
      least = block;
      winner = static_cast<int32_t>(start + (std::find(scores, scores + kBlock, least) - scores));
    }
  }
  return winner;
}

ffi::Error sample(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer temperature, ffi::AnyBuffer top_k,
                  ffi::AnyBuffer top_p, ffi::AnyBuffer min_p, ffi::AnyBuffer seeds, ffi::AnyBuffer steps,
                  ffi::Result<ffi::AnyBuffer> tokens) {
  Door door("fxhlo_sample");
  door.check("logits", logits, {ffi::F32}, {kAnySize, kAnySize});
  if (door.failed()) return door.error();
  const int64_t rows = logits.dimensions()[0], size = logits.dimensions()[1];
  door.require(0 < size && size <= kMostTokens, [&] { return Door::described("logits", logits) + ", which is no vocabulary"; });
  door.check("temperature", temperature, {ffi::F32}, {rows}).check("top_k", top_k, {ffi::S32}, {rows});
  door.check("top_p", top_p, {ffi::F32}, {rows}).check("min_p", min_p, {ffi::F32}, {rows});
  door.check("seeds", seeds, {ffi::S32}, {rows, 2}).check("steps", steps, {ffi::S32}, {rows});
  door.check("the result", *tokens, {ffi::S32}, {rows});
  if (door.failed()) return door.error();
  int32_t* out = data<int32_t>(tokens);
  return guarded("fxhlo_sample", [&] {
    parallel_for(pool, rows, [&](int64_t row) {
      const float* x = data<float>(logits) + row * size;
      float best;
      out[row] = greedy(x, size, &best);
      const float heat = data<float>(temperature)[row];
      if (!(heat >= kEpsilon) || best == -kInfinity) return;
      thread_local Scratch scratch;
      const uint32_t* seed = data<uint32_t>(seeds) + 2 * row;
      out[row] = draw(x, size,
                      Parameters{heat, data<int32_t>(top_k)[row], data<float>(top_p)[row], data<float>(min_p)[row],
                                 {seed[0], seed[1]}, data<uint32_t>(steps)[row]},
                      scratch);
    });
    return ffi::Error::Success();
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_sample, fxhlo::sample,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

#pragma GCC visibility pop
