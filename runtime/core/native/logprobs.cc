// fxhlo_logprobs: operands and results as in kernels/logprobs/reference.py; one row per task.
//
// ids and ranks are the reference's; the values differ by rounding: the sum here is in float64, in token order.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "convert.h"
#include "door.h"
#include "parallel.h"
#include "sampling.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_logprobs";
constexpr int64_t kFew = 64;  // up to this count, tokens are kept sorted as they are found; above it, selected and sorted at the end

// A token and its logit's order image in one number that sorts as the results do: highest logit first, then lowest token.
inline uint64_t key_of(int32_t order, int64_t token) {
  return uint64_t{~(static_cast<uint32_t>(order) ^ 0x80000000u)} << 32 | static_cast<uint64_t>(token);
}
inline int32_t token_of(uint64_t key) { return static_cast<int32_t>(key & 0xffffffffu); }

// Sets `keys` to the `count` smallest keys of a row, sorted: its top tokens.
template <typename T>
void best_keys(const T* logits, int64_t size, int64_t count, std::vector<uint64_t>& keys) {
  keys.clear();
  if (count <= kFew) {
    int32_t least = std::numeric_limits<int32_t>::min();  // order image of the last kept token, once `count` are kept
    for (int64_t i = 0; count > 0 && i < size; ++i) {
      const int32_t value = order(cleaned(to_float(logits[i])));
      const bool full = static_cast<int64_t>(keys.size()) == count;
      if (full && value <= least) continue;  // equal logits sort after the kept ones
      if (full) keys.pop_back();
      const uint64_t here = key_of(value, i);
      keys.insert(std::upper_bound(keys.begin(), keys.end(), here), here);
      least = order(cleaned(to_float(logits[token_of(keys.back())])));
    }
    return;
  }
  keys.resize(size);
  for (int64_t i = 0; i < size; ++i) keys[i] = key_of(order(cleaned(to_float(logits[i]))), i);
  if (count < size) {
    std::nth_element(keys.begin(), keys.begin() + count, keys.end());
    keys.resize(count);
  }
  std::sort(keys.begin(), keys.end());
}

// One row: the sampled token and the `count` tokens of highest logit, their log-probabilities, the sampled token's rank.
template <typename T>
void row_logprobs(const T* logits, int64_t size, int32_t chosen, int64_t count, int32_t* ids, float* values, int32_t* rank) {
  const int32_t bar = order(cleaned(to_float(logits[chosen])));
  int32_t at_least = 0, highest = std::numeric_limits<int32_t>::min();
  for (int64_t i = 0; i < size; ++i) {
    const int32_t value = order(cleaned(to_float(logits[i])));
    at_least += value >= bar;
    highest = std::max(highest, value);
  }
  const float best = unorder(highest);
  double sum = 0.0;
  for (int64_t i = 0; i < size; ++i) sum += std::exp(to_float(logits[i]) - best);
  const float log_sum = std::log(static_cast<float>(sum));
  thread_local std::vector<uint64_t> keys;
  best_keys(logits, size, count, keys);
  ids[0] = chosen;
  for (int64_t i = 0; i < count; ++i) ids[i + 1] = token_of(keys[i]);
  for (int64_t i = 0; i <= count; ++i) values[i] = (to_float(logits[ids[i]]) - best) - log_sum;
  *rank = at_least;
}

// Whether a row's mask forbids any token: most rows' masks do not, and need no copy.
inline bool forbids(const uint32_t* allowed, int64_t words) {
  return std::any_of(allowed, allowed + words, [](uint32_t word) { return word != ~uint32_t{0}; });
}

// allowed_mask: int32 [rows, ceil(size / 32)], or [rows, 0] if absent.
ffi::Error logprobs(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer tokens, ffi::AnyBuffer enabled,
                    ffi::AnyBuffer allowed_mask, ffi::Result<ffi::AnyBuffer> ids, ffi::Result<ffi::AnyBuffer> values,
                    ffi::Result<ffi::AnyBuffer> ranks) {
  Door door(kName);
  door.check("logits", logits, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, kAnySize});
  if (door.failed()) return door.error();
  const int64_t rows = logits.dimensions()[0], size = logits.dimensions()[1];
  door.require(size <= kMostTokens, [&] { return Door::described("logits", logits) + ", which is no vocabulary"; });
  door.check("tokens", tokens, {ffi::S32}, {rows}).check("enabled", enabled, {ffi::S32}, {});
  door.check("allowed_mask", allowed_mask, {ffi::S32}, {rows, kAnySize});
  door.check("the ids", *ids, {ffi::S32}, {rows, kAnySize});
  if (door.failed()) return door.error();
  const int64_t width = ids->dimensions()[1], words = allowed_mask.dimensions()[1];
  door.require(words == 0 || words == (size + 31) / 32, [&] {
    return Door::described("allowed_mask", allowed_mask) + ", which has not a bit for each of " + std::to_string(size) + " tokens";
  });
  door.check("the values", *values, {ffi::F32}, {rows, width}).check("the ranks", *ranks, {ffi::S32}, {rows});
  door.require(0 < width && width - 1 <= size, [&] {
    return Door::described("the ids", *ids) + ": a row has the chosen token and at most " + std::to_string(size) + " others";
  });
  if (door.failed()) return door.error();
  if (*data<int32_t>(enabled) == 0) {
    std::memset(ids->untyped_data(), 0, ids->size_bytes());
    std::memset(values->untyped_data(), 0, values->size_bytes());
    std::memset(ranks->untyped_data(), 0, ranks->size_bytes());
    return ffi::Error::Success();
  }
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t token = data<int32_t>(tokens)[row];
    door.require(0 <= token && token < size, [&] {
      return "row " + std::to_string(row) + ": token " + std::to_string(token) + " is not in a vocabulary of " + std::to_string(size);
    });
  }
  if (door.failed()) return door.error();
  const auto call = [&](auto type) {
    parallel_for(pool, rows, [&](int64_t row) {
      const auto* x = data<decltype(type)>(logits) + row * size;
      const uint32_t* allowed = data<uint32_t>(allowed_mask) + row * words;
      const auto answer = [&](const auto* shown) {
        row_logprobs(shown, size, data<int32_t>(tokens)[row], width - 1, data<int32_t>(ids) + row * width,
                     data<float>(values) + row * width, data<int32_t>(ranks) + row);
      };
      if (!forbids(allowed, words)) return answer(x);
      thread_local std::vector<float> masked;
      masked.resize(size);
      for (int64_t i = 0; i < size; ++i) masked[i] = (allowed[i / 32] >> (i % 32)) & 1u ? to_float(x[i]) : -kInfinity;
      answer(masked.data());
    });
    return ffi::Error::Success();
  };
  return guarded(kName, logits.element_type(), call);
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_logprobs, fxhlo::logprobs,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

#pragma GCC visibility pop
