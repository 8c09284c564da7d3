// fxhlo_ragged_causal_conv1d: a depthwise convolution along each request's rows, continued from the rows that its slot holds.
//
// Operands: values [T, C], weight [C, K], bias float32 [C] or [0], and a step's (recurrent.h) with state [slots, K - 1, C], the newest
// row last. Results: out [T, C], the state. Attribute silu: 0 or 1.
//
// Batch invariance: a value is the bias plus its K products from the oldest row on, whatever else is in the step.
#include "activations.h"
#include "recurrent.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_ragged_causal_conv1d";
constexpr int64_t kStrip = 64;   // channels that are processed together, a multiple of kLanes
constexpr int64_t kBlock = 32;   // rows

struct Problem {
  Requests requests;
  Numbers values, weight, state, out;
  const float* bias;  // or null
  int64_t channels, taps;
  bool silu;
};

struct Scratch {
  std::vector<float> weight, rows, made;
};

// Channels [first, first + count) of one request. s.weight: [K, kStrip].
void convolve(const Problem& p, int64_t request, int64_t first, int64_t count, Scratch& s) {
  const int64_t kept = p.taps - 1, state = p.requests.state_at(request) + first, rows = p.requests.rows(request);
  float* history = s.rows.data();  // kept rows, then a block of this step's
  for (int64_t i = 0; i < kept; ++i) {
    if (p.requests.fresh(request)) {
      std::fill_n(history + i * kStrip, count, 0.0f);
    } else {
      p.state.read(state + i * p.channels, count, history + i * kStrip);
    }
  }
  for (int64_t done = 0; done < rows; done += kBlock) {
    const int64_t size = std::min(kBlock, rows - done), at = (p.requests.first(request) + done) * p.channels + first;
    for (int64_t i = 0; i < size; ++i) p.values.read(at + i * p.channels, count, history + (kept + i) * kStrip);
    for (int64_t i = 0; i < size; ++i) {
      for (int64_t lane = 0; lane < kStrip; lane += kLanes) {
        Floats total = load<Floats>(s.weight.data() + p.taps * kStrip + lane);  // the bias
        for (int64_t tap = 0; tap < p.taps; ++tap) {
          total = fma(load<Floats>(history + (i + tap) * kStrip + lane), load<Floats>(s.weight.data() + tap * kStrip + lane), total);
        }
        store(s.made.data() + lane, p.silu ? silu(total) : total);
      }
      p.out.write(at + i * p.channels, count, s.made.data());
    }
    std::memmove(history, history + size * kStrip, kept * kStrip * sizeof(float));
  }
  for (int64_t i = 0; i < kept; ++i) p.state.write(state + i * p.channels, count, history + i * kStrip);
}

// The weights of a strip, by tap, and its bias behind them.
void read_weight(const Problem& p, int64_t first, int64_t count, Scratch& s) {
  s.weight.assign((p.taps + 1) * kStrip, 0.0f);
  s.rows.assign((p.taps - 1 + kBlock) * kStrip, 0.0f);
  s.made.resize(std::max(kStrip * p.taps, kStrip));
  p.weight.read(first * p.taps, count * p.taps, s.made.data());
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t tap = 0; tap < p.taps; ++tap) s.weight[tap * kStrip + i] = s.made[i * p.taps + tap];
  }
  if (p.bias != nullptr) std::copy_n(p.bias + first, count, s.weight.data() + p.taps * kStrip);
}

void run(ffi::ThreadPool& pool, const Problem& p) {
  const int64_t strips = (p.channels + kStrip - 1) / kStrip;
  const int64_t least = std::max<int64_t>(1, (16 << 10) / std::max<int64_t>(1, p.requests.tokens * kStrip));  // strips of a thread
  const int64_t shares = std::clamp<int64_t>(strips / least, 1, std::max<int64_t>(1, strips));
  parallel_for(pool, shares, [&](int64_t share) {
    thread_local Scratch scratch;
    for (int64_t strip = strips * share / shares; strip < strips * (share + 1) / shares; ++strip) {
      const int64_t first = strip * kStrip, count = std::min(kStrip, p.channels - first);
      read_weight(p, first, count, scratch);
      for (int64_t request = 0; request < p.requests.count; ++request) {
        if (p.requests.rows(request) > 0) convolve(p, request, first, count, scratch);
      }
    }
  });
}

ffi::Error causal_conv1d(ffi::ThreadPool pool, ffi::AnyBuffer values, ffi::AnyBuffer weight, ffi::AnyBuffer bias,
                         ffi::AnyBuffer state, ffi::AnyBuffer state_slots, ffi::AnyBuffer seq_lens, ffi::AnyBuffer starts,
                         ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> updated, int64_t silu) {
  Door door(kName);
  door.check("values", values, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, kAnySize});
  if (door.failed()) return door.error();
  const int64_t tokens = values.dimensions()[0], channels = values.dimensions()[1];
  door.check("weight", weight, {ffi::F32, ffi::BF16, ffi::F16}, {channels, kAnySize});
  if (door.failed()) return door.error();
  const int64_t taps = weight.dimensions()[1];
  door.require(taps > 0, [&] { return Door::described("weight", weight) + ", which has no taps"; });
  const bool absent = bias.dimensions().size() == 1 && bias.dimensions()[0] == 0;
  door.check("bias", bias, {ffi::F32}, {absent ? 0 : channels});
  door.check("state", state, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, taps - 1, channels});
  if (door.failed()) return door.error();
  door.check("the result", *out, {values.element_type()}, {tokens, channels});
  door.check("the updated state", *updated, {state.element_type()}, {state.dimensions()[0], taps - 1, channels});
  const StepOperands step{state, state_slots, seq_lens, starts, *out, *updated};
  const Requests requests = door.failed() ? Requests{} : read_requests(step, tokens, door);
  if (door.failed()) return door.error();
  return guarded(kName, [&] {
    begin_step(step, requests);
    run(pool, {requests, Numbers(values), Numbers(weight), Numbers(*updated), Numbers(*out), absent ? nullptr : data<float>(bias),
               channels, taps, silu != 0});
    return ffi::Error::Success();
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_ragged_causal_conv1d, fxhlo::causal_conv1d,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Arg<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<int64_t>("silu"));

#pragma GCC visibility pop
