// fxhlo_ragged_selective_scan: Mamba's selective state space along each request's rows, continued from the state in its slot.
//
// Operands: x [T, D], step float32 [T, D] (softplus applied), a float32 [D, N], b and c [T, N], d float32 [D], and a step's
// (recurrent.h) with state [slots, D, N]. Results: out [T, D], the state. For each channel and row:
// state = exp(step a) state + (step x) b, out = state c + d x.
//
// A lane is a channel: the state is transposed when it is read and written. Batch invariance: sums are over the state's values in
// order, row after row.
#include "recurrent.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_ragged_selective_scan";
constexpr int64_t kBlock = 16;  // rows whose operands are converted together

struct Problem {
  Requests requests;
  Numbers x, b, c, state, out;
  const float* step;
  const float* a;
  const float* d;
  int64_t channels, size;
};

struct Scratch {
  std::vector<float> b, c, state, rate, turned;
};

// from [kLanes, size] -> to [size, kLanes].
void turn(const float* from, int64_t size, float* to) {
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) {
    Floats rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = load<Floats>(from + i * size + at);
    transpose(rows);
    for (int i = 0; i < kLanes; ++i) store(to + (at + i) * kLanes, rows[i]);
  }
  for (; at < size; ++at) {
    for (int i = 0; i < kLanes; ++i) to[at * kLanes + i] = from[i * size + at];
  }
}

// from [size, kLanes] -> to [kLanes, size].
void turn_back(const float* from, int64_t size, float* to) {
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) {
    Floats rows[kLanes];
    for (int i = 0; i < kLanes; ++i) rows[i] = load<Floats>(from + (at + i) * kLanes);
    transpose(rows);
    for (int i = 0; i < kLanes; ++i) store(to + i * size + at, rows[i]);
  }
  for (; at < size; ++at) {
    for (int i = 0; i < kLanes; ++i) to[i * size + at] = from[at * kLanes + i];
  }
}

// One row of kLanes channels: state, rate [N, kLanes]; b, c [N].
Floats row(const float* rate, const float* b, const float* c, int64_t size, Floats step, Floats x, float* state) {
  const Floats scaled = step * x;
  Floats total{};
  for (int64_t n = 0; n < size; ++n) {
    const Floats decay = decay_of(step * load<Floats>(rate + n * kLanes));
    const Floats next = fma(scaled, broadcast(b[n]), load<Floats>(state + n * kLanes) * decay);
    store(state + n * kLanes, next);
    total = fma(next, broadcast(c[n]), total);
  }
  return total;
}

// Channels [first, first + count), at most kLanes, of `rows` rows from `at` on, whose b and c are in the scratch.
void lanes_of(const Problem& p, int64_t at, int64_t rows, int64_t first, int64_t count, float* state, const float* rate, const Scratch& s) {
  float step[kLanes] = {}, x[kLanes] = {}, d[kLanes] = {}, made[kLanes];
  std::copy_n(p.d + first, count, d);
  for (int64_t i = 0; i < rows; ++i) {
    const int64_t place = (at + i) * p.channels + first;
    std::copy_n(p.step + place, count, step);
    p.x.read(place, count, x);
    const Floats total = row(rate, s.b.data() + i * p.size, s.c.data() + i * p.size, p.size, load<Floats>(step), load<Floats>(x), state);
    store(made, fma(load<Floats>(d), load<Floats>(x), total));
    p.out.write(place, count, made);
  }
}

// item.first, item.last: groups of kLanes channels.
void scan(const Problem& p, const Item& item, Scratch& s) {
  const int64_t groups = item.last - item.first, lanes = p.size * kLanes, first_row = p.requests.first(item.request);
  s.b.resize(kBlock * p.size), s.c.resize(kBlock * p.size), s.turned.assign(lanes, 0.0f);
  s.state.resize(groups * lanes), s.rate.resize(groups * lanes);
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = (item.first + g) * kLanes, count = std::min<int64_t>(kLanes, p.channels - first);
    std::copy_n(p.a + first * p.size, count * p.size, s.turned.data());
    turn(s.turned.data(), p.size, s.rate.data() + g * lanes);
    if (p.requests.fresh(item.request)) {
      std::fill_n(s.state.data() + g * lanes, lanes, 0.0f);
    } else {
      p.state.read(p.requests.state_at(item.request) + first * p.size, count * p.size, s.turned.data());
      turn(s.turned.data(), p.size, s.state.data() + g * lanes);
    }
  }
  for (int64_t done = 0; done < p.requests.rows(item.request); done += kBlock) {
    const int64_t rows = std::min(kBlock, p.requests.rows(item.request) - done);
    p.b.read((first_row + done) * p.size, rows * p.size, s.b.data());
    p.c.read((first_row + done) * p.size, rows * p.size, s.c.data());
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t first = (item.first + g) * kLanes, count = std::min<int64_t>(kLanes, p.channels - first);
      lanes_of(p, first_row + done, rows, first, count, s.state.data() + g * lanes, s.rate.data() + g * lanes, s);
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t first = (item.first + g) * kLanes, count = std::min<int64_t>(kLanes, p.channels - first);
    turn_back(s.state.data() + g * lanes, p.size, s.turned.data());
    p.state.write(p.requests.state_at(item.request) + first * p.size, count * p.size, s.turned.data());
  }
}

void run(ffi::ThreadPool& pool, const Problem& p) {
  const int64_t groups = (p.channels + kLanes - 1) / kLanes;
  const std::vector<Item> items = items_of(p.requests, groups, units_per_item(p.requests, groups, kLanes * p.size, pool.num_threads()));
  parallel_for(pool, static_cast<int64_t>(items.size()), [&](int64_t index) {
    thread_local Scratch scratch;
    scan(p, items[index], scratch);
  });
}

ffi::Error selective_scan(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer step, ffi::AnyBuffer a, ffi::AnyBuffer b,
                          ffi::AnyBuffer c, ffi::AnyBuffer d, ffi::AnyBuffer state, ffi::AnyBuffer state_slots,
                          ffi::AnyBuffer seq_lens, ffi::AnyBuffer starts, ffi::Result<ffi::AnyBuffer> out,
                          ffi::Result<ffi::AnyBuffer> updated) {
  Door door(kName);
  door.check("x", x, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, kAnySize});
  if (door.failed()) return door.error();
  const int64_t tokens = x.dimensions()[0], channels = x.dimensions()[1];
  door.check("step", step, {ffi::F32}, {tokens, channels}).check("a", a, {ffi::F32}, {channels, kAnySize});
  if (door.failed()) return door.error();
  const int64_t size = a.dimensions()[1];
  door.check("b", b, {ffi::F32, ffi::BF16, ffi::F16}, {tokens, size}).check("c", c, {ffi::F32, ffi::BF16, ffi::F16}, {tokens, size});
  door.check("d", d, {ffi::F32}, {channels});
  door.check("state", state, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, channels, size});
  if (door.failed()) return door.error();
  door.check("the result", *out, {x.element_type()}, {tokens, channels});
  door.check("the updated state", *updated, {state.element_type()}, {state.dimensions()[0], channels, size});
  const StepOperands operands{state, state_slots, seq_lens, starts, *out, *updated};
  const Requests requests = door.failed() ? Requests{} : read_requests(operands, tokens, door);
  if (door.failed()) return door.error();
  return guarded(kName, [&] {
    begin_step(operands, requests);
    run(pool, {requests, Numbers(x), Numbers(b), Numbers(c), Numbers(*updated), Numbers(*out), data<float>(step), data<float>(a),
               data<float>(d), channels, size});
    return ffi::Error::Success();
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_ragged_selective_scan, fxhlo::selective_scan,
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
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>());

#pragma GCC visibility pop
