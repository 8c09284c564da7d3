// fxhlo_process_logits: operands and result as in kernels/process_logits/reference.py, bit for bit; one row per task.
#include <cstdint>

#include "convert.h"
#include "door.h"
#include "parallel.h"
#include "sampling.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_process_logits";

template <typename T>
ffi::Error process(ffi::ThreadPool& pool, ffi::AnyBuffer logits, const int32_t* flags, ffi::AnyBuffer mask,
                   ffi::AnyBuffer bias_ids, ffi::AnyBuffer bias_values, ffi::AnyBuffer seen_ids,
                   ffi::AnyBuffer seen_counts, ffi::AnyBuffer repetition, ffi::AnyBuffer frequency,
                   ffi::AnyBuffer presence, float* out) {
  const int64_t rows = logits.dimensions()[0], size = logits.dimensions()[1], words = mask.dimensions()[1];
  const int64_t biases = bias_ids.dimensions()[1], seen = seen_ids.dimensions()[1];
  parallel_for(pool, rows, [&](int64_t row) {
    const T* from = data<T>(logits) + row * size;
    float* x = out + row * size;
    for (int64_t i = 0; i < size; ++i) x[i] = to_float(from[i]);
    if (flags[0] != 0) {
      const uint32_t* allowed = data<uint32_t>(mask) + row * words;
      for (int64_t i = 0; i < size; ++i) x[i] = (allowed[i / 32] >> (i % 32)) & 1u ? x[i] : -kInfinity;
    }
    if (flags[1] != 0) {
      const int32_t* ids = data<int32_t>(bias_ids) + row * biases;
      const float* values = data<float>(bias_values) + row * biases;
      for (int64_t i = 0; i < biases; ++i) {
        if (ids[i] >= 0 && ids[i] < size) x[ids[i]] += values[i];
      }
    }
    if (flags[2] != 0) {
      const int32_t* ids = data<int32_t>(seen_ids) + row * seen;
      const int32_t* counts = data<int32_t>(seen_counts) + row * seen;
      const float repeated = data<float>(repetition)[row], inverse = 1.0f / repeated;
      const float often = data<float>(frequency)[row], present = data<float>(presence)[row];
      for (int64_t i = 0; i < seen; ++i) {
        if (ids[i] < 0 || ids[i] >= size) continue;
        float value = x[ids[i]];
        value = value * (value > 0.0f ? inverse : repeated);
        value = value - often * static_cast<float>(counts[i]);
        x[ids[i]] = value - (counts[i] > 0 ? present : 0.0f);
      }
    }
  });
  return ffi::Error::Success();
}

ffi::Error process_logits(ffi::ThreadPool pool, ffi::AnyBuffer logits, ffi::AnyBuffer flags, ffi::AnyBuffer mask,
                          ffi::AnyBuffer bias_ids, ffi::AnyBuffer bias_values, ffi::AnyBuffer seen_ids,
                          ffi::AnyBuffer seen_counts, ffi::AnyBuffer repetition, ffi::AnyBuffer frequency,
                          ffi::AnyBuffer presence, ffi::Result<ffi::AnyBuffer> processed) {
  Door door(kName);
  door.check("logits", logits, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, kAnySize});
  if (door.failed()) return door.error();
  const int64_t rows = logits.dimensions()[0], size = logits.dimensions()[1];
  door.check("flags", flags, {ffi::S32}, {3}).check("allowed_mask", mask, {ffi::S32}, {rows, (size + 31) / 32});
  door.check("bias_ids", bias_ids, {ffi::S32}, {rows, kAnySize}).check("seen_ids", seen_ids, {ffi::S32}, {rows, kAnySize});
  if (door.failed()) return door.error();
  door.check("bias_values", bias_values, {ffi::F32}, {rows, bias_ids.dimensions()[1]});
  door.check("seen_counts", seen_counts, {ffi::S32}, {rows, seen_ids.dimensions()[1]});
  door.check("repetition_penalty", repetition, {ffi::F32}, {rows}).check("frequency_penalty", frequency, {ffi::F32}, {rows});
  door.check("presence_penalty", presence, {ffi::F32}, {rows}).check("the result", *processed, {ffi::F32}, {rows, size});
  if (door.failed()) return door.error();
  const auto call = [&](auto type) {
    return process<decltype(type)>(pool, logits, data<int32_t>(flags), mask, bias_ids, bias_values, seen_ids,
                                   seen_counts, repetition, frequency, presence, data<float>(processed));
  };
  return guarded(kName, logits.element_type(), call);
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_process_logits, fxhlo::process_logits,
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
                                  .Ret<xla::ffi::AnyBuffer>());

#pragma GCC visibility pop
