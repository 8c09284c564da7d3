// fxhlo_ragged_decayed_attention and fxhlo_ragged_gated_delta_rule: linear attention along each request's rows, continued from the
// state [V, K] of each head in the request's slot.
//
// Decayed attention (Mamba 2, lightning attention): q and k [T, G, K], each group for H / G heads; v [T, H, V]; rate, decay float32
// [T, H]; skip float32 [H] or [0]. state = decay state + (rate v) k', out = state q + skip v.
// Gated delta rule: q and k [T, G, K]; v [T, H, V]; g float32 [T, H] or [T, H, K], the decay's logarithm; beta float32 [T, H].
// state = exp(g) state, then state += beta (v - state k) k', out = scale state q. Attribute l2norm: queries and keys are divided by
// their length.
// Both: a step's operands (recurrent.h) with state [slots, H, V, K]. Results: out [T, H, V], the state.
//
// A row is taken after the other. Batch invariance: a value of the state sees the same operations whether its rows come in one step or
// in several; sums over K are those of sum_lanes. So a prompt in chunks gives the bits of the whole prompt where the state is float32.
#include <cmath>

#include "recurrent.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kDecayed = "fxhlo_ragged_decayed_attention";
constexpr const char* kDelta = "fxhlo_ragged_gated_delta_rule";
constexpr int64_t kBlock = 16;   // rows whose operands are converted together
constexpr int kTogether = 4;     // rows of the state that share loaded keys and queries; divides kLanes
constexpr float kEpsilon = 1e-6f;  // of l2norm

struct Problem {
  Requests requests;
  Numbers q, k, v, state, out;
  const float* rate;   // or beta
  const float* decay;  // or g
  const float* skip;   // or null
  int64_t groups, heads, size, keys;  // size: of a value
  bool delta, channels;  // channels: g has a number per value of a key
  bool l2norm;
  float scale;

  int64_t group(int64_t head) const { return head / (heads / groups); }
};

// A block's operands of one head in float32, padded with zeros to whole vectors; and its state where that cannot be used in place.
struct Scratch {
  std::vector<float> q, k, v, decay, state;
};

// One block of rows of one head.
struct Block {
  int64_t rows, keys, values;  // keys, values: the strides of k and q, and of v
  const float* q;
  const float* k;
  const float* v;
  const float* decay;      // [rows] or, of channels, [rows, keys]
  const float* rate;       // [rows] with a stride of heads
  int64_t rate_stride;
  float product[kBlock];   // of each row's key and query
  float skip;
};

// Rows of the state [first, first + kTogether) for one row of the batch. Each vector of the state is read and written once.
template <int kRows>
inline void decayed_rows(float* state, int64_t stride, const Block& b, int64_t row, const float* value, float decay, Floats* sums) {
  const float* k = b.k + row * b.keys;
  const float* q = b.q + row * b.keys;
  Floats total[kRows] = {};
  for (int64_t at = 0; at < b.keys; at += kLanes) {
    const Floats key = load<Floats>(k + at), query = load<Floats>(q + at);
    for (int r = 0; r < kRows; ++r) {
      float* place = state + r * stride + at;
      const Floats next = fma(broadcast(value[r]), key, load<Floats>(place) * decay);
      store(place, next);
      total[r] = fma(next, query, total[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) sums[r] = total[r];
}

// As decayed_rows; first adds the correction of the row before, `correction` times its key, unless `before` is null.
template <int kRows, bool kChannels>
inline void delta_rows(float* state, int64_t stride, const Block& b, int64_t row, const float* before, const float* correction,
                       Floats* held, Floats* read) {
  const float* k = b.k + row * b.keys;
  const float* q = b.q + row * b.keys;
  const float* decay = b.decay + (kChannels ? row * b.keys : row);
  Floats keyed[kRows] = {}, queried[kRows] = {};
  for (int64_t at = 0; at < b.keys; at += kLanes) {
    const Floats key = load<Floats>(k + at), query = load<Floats>(q + at);
    const Floats shrink = kChannels ? load<Floats>(decay + at) : broadcast(*decay);
    const Floats last = before == nullptr ? Floats{} : load<Floats>(before + at);
    for (int r = 0; r < kRows; ++r) {
      float* place = state + r * stride + at;
      Floats value = load<Floats>(place);
      if (before != nullptr) value = fma(broadcast(correction[r]), last, value);
      value *= shrink;
      store(place, value);
      keyed[r] = fma(value, key, keyed[r]);
      queried[r] = fma(value, query, queried[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) held[r] = keyed[r], read[r] = queried[r];
}

// Calls f(first, std::integral_constant<int, rows>) for `count` rows, kTogether at a time.
template <typename F>
inline void together(int64_t count, const F& f) {
  int64_t at = 0;
  for (; at + kTogether <= count; at += kTogether) f(at, std::integral_constant<int, kTogether>());
  for (; at < count; ++at) f(at, std::integral_constant<int, 1>());
}

// `count` rows of the state, at most kLanes, over a block; made: [rows, kLanes].
void decayed_block(float* state, int64_t stride, int64_t count, int64_t first, const Block& b, float* made) {
  for (int64_t row = 0; row < b.rows; ++row) {
    const float* v = b.v + row * b.values + first;
    float scaled[kLanes];
    store(scaled, load<Floats>(v) * b.rate[row * b.rate_stride]);
    Floats sums[kLanes] = {};
    together(count, [&](int64_t at, auto rows) {
      decayed_rows<decltype(rows)::value>(state + at * stride, stride, b, row, scaled + at, b.decay[row], sums + at);
    });
    store(made + row * kLanes, fma(broadcast(b.skip), load<Floats>(v), sum_each(sums)));
  }
}

template <bool kChannels>
void delta_block(float* state, int64_t stride, int64_t count, int64_t first, const Block& b, float* made) {
  float correction[kLanes];
  const float* before = nullptr;
  for (int64_t row = 0; row < b.rows; ++row) {
    Floats held[kLanes] = {}, read[kLanes] = {};
    together(count, [&](int64_t at, auto rows) {
      delta_rows<decltype(rows)::value, kChannels>(state + at * stride, stride, b, row, before, correction + at, held + at, read + at);
    });
    const Floats wanted = load<Floats>(b.v + row * b.values + first) - sum_each(held);
    const Floats change = wanted * b.rate[row * b.rate_stride];
    store(correction, change);
    store(made + row * kLanes, fma(change, broadcast(b.product[row]), sum_each(read)));
    before = b.k + row * b.keys;
  }
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t at = 0; at < b.keys; at += kLanes) {
      float* place = state + r * stride + at;
      store(place, fma(broadcast(correction[r]), load<Floats>(before + at), load<Floats>(place)));
    }
  }
}

float dot(const float* a, const float* b, int64_t count) {
  Floats total{};
  for (int64_t at = 0; at < count; at += kLanes) total = fma(load<Floats>(a + at), load<Floats>(b + at), total);
  return sum_lanes(total);
}

void scale_row(float* row, int64_t count, float scale) {
  for (int64_t at = 0; at < count; at += kLanes) store(row + at, load<Floats>(row + at) * scale);
}

float unit(const float* row, int64_t count) { return 1.0f / std::sqrt(dot(row, row, count) + kEpsilon); }

// Converts the operands of rows [at, at + b.rows) of a head.
void read_block(const Problem& p, int64_t head, int64_t at, Block& b, Scratch& s) {
  for (int64_t row = 0; row < b.rows; ++row) {
    const int64_t place = ((at + row) * p.groups + p.group(head)) * p.keys, number = (at + row) * p.heads + head;
    float* q = s.q.data() + row * b.keys;
    float* k = s.k.data() + row * b.keys;
    p.q.read(place, p.keys, q);
    p.k.read(place, p.keys, k);
    p.v.read(number * p.size, p.size, s.v.data() + row * b.values);
    if (!p.delta) {
      s.decay[row] = p.decay[number];
      continue;
    }
    scale_row(q, b.keys, p.l2norm ? unit(q, b.keys) * p.scale : p.scale);
    if (p.l2norm) scale_row(k, b.keys, unit(k, b.keys));
    b.product[row] = dot(k, q, b.keys);
    if (!p.channels) {
      s.decay[row] = decay_of(broadcast(p.decay[number]))[0];
      continue;
    }
    float* decay = s.decay.data() + row * b.keys;
    std::copy_n(p.decay + number * p.keys, p.keys, decay);
    for (int64_t i = 0; i < b.keys; i += kLanes) store(decay + i, decay_of(load<Floats>(decay + i)));
  }
}

// Rows [first, first + count) of a head's state, of which a unit of the items has kLanes.
void attend(const Problem& p, int64_t request, int64_t head, int64_t first, int64_t count, Scratch& s) {
  const int64_t keys = whole_lanes(p.keys), values = whole_lanes(p.size);
  const int64_t most = std::min(kBlock, p.requests.rows(request));
  s.q.assign(most * keys, 0.0f), s.k.assign(most * keys, 0.0f), s.v.assign(most * values, 0.0f);
  s.decay.assign(most * (p.channels ? keys : 1), 0.0f);
  const int64_t place = p.requests.state_at(request) + (head * p.size + first) * p.keys;
  const bool in_place = p.state.type == ffi::F32 && keys == p.keys, fresh = p.requests.fresh(request);
  float* state = static_cast<float*>(p.state.memory) + place;
  if (!in_place) {
    s.state.assign(count * keys, 0.0f);
    state = s.state.data();
    for (int64_t r = 0; r < count && !fresh; ++r) p.state.read(place + r * p.keys, p.keys, state + r * keys);
  } else if (fresh) {
    std::fill_n(state, count * keys, 0.0f);
  }
  float made[kBlock * kLanes];
  for (int64_t done = 0; done < p.requests.rows(request); done += kBlock) {
    const int64_t at = p.requests.first(request) + done;
    Block b{std::min(kBlock, p.requests.rows(request) - done), keys, values, s.q.data(), s.k.data(), s.v.data(), s.decay.data(),
            p.rate + at * p.heads + head, p.heads, {}, p.skip == nullptr ? 0.0f : p.skip[head]};
    read_block(p, head, at, b, s);
    for (int64_t r = 0; r < count; r += kLanes) {
      const int64_t rows = std::min<int64_t>(kLanes, count - r);
      if (!p.delta) {
        decayed_block(state + r * keys, keys, rows, first + r, b, made);
      } else if (p.channels) {
        delta_block<true>(state + r * keys, keys, rows, first + r, b, made);
      } else {
        delta_block<false>(state + r * keys, keys, rows, first + r, b, made);
      }
      for (int64_t i = 0; i < b.rows; ++i) {
        p.out.write(((at + i) * p.heads + head) * p.size + first + r, rows, made + i * kLanes);
      }
    }
  }
  for (int64_t r = 0; r < count && !in_place; ++r) p.state.write(place + r * p.keys, p.keys, state + r * keys);
}

void run(ffi::ThreadPool& pool, const Problem& p) {
  const int64_t parts = (p.size + kLanes - 1) / kLanes, units = p.heads * parts;
  int64_t most = units_per_item(p.requests, units, kLanes * p.keys, pool.num_threads());
  if (most > parts) most = most / parts * parts;  // whole heads
  const std::vector<Item> items = items_of(p.requests, units, most);
  parallel_for(pool, static_cast<int64_t>(items.size()), [&](int64_t index) {
    thread_local Scratch scratch;
    const Item& item = items[index];
    for (int64_t unit = item.first; unit < item.last;) {
      const int64_t head = unit / parts, part = unit % parts, end = std::min(item.last, (head + 1) * parts);
      const int64_t first = part * kLanes, count = std::min(p.size, (part + end - unit) * kLanes) - first;
      attend(p, item.request, head, first, count, scratch);
      unit = end;
    }
  });
}

// ---- the door --------------------------------------------------------------------------------------------------

struct Operands {
  ffi::AnyBuffer q, k, v;
  StepOperands step;
};

// Checks the operands that both have, and fills in what it reads of them.
bool read_operands(const Operands& o, Door& door, int64_t* groups, int64_t* tokens, int64_t* heads, int64_t* size, int64_t* keys) {
  constexpr int64_t any = kAnySize;
  door.check("q", o.q, {ffi::F32, ffi::BF16, ffi::F16}, {any, any, any}).check("v", o.v, {ffi::F32, ffi::BF16, ffi::F16}, {any, any, any});
  if (door.failed()) return false;
  const auto q = o.q.dimensions(), v = o.v.dimensions();
  *groups = q[1], *tokens = v[0], *heads = v[1], *size = v[2], *keys = q[2];
  door.check("q", o.q, {o.q.element_type()}, {*tokens, *groups, *keys});
  door.check("k", o.k, {ffi::F32, ffi::BF16, ffi::F16}, {*tokens, *groups, *keys});
  door.require(*groups > 0 && *heads % *groups == 0, [&] {
    return Door::described("v", o.v) + ", whose heads are no multiple of the " + std::to_string(*groups) + " of keys";
  });
  door.check("state", o.step.state, {ffi::F32, ffi::BF16, ffi::F16}, {any, *heads, *size, *keys});
  if (door.failed()) return false;
  door.check("the result", o.step.out, {o.v.element_type()}, {*tokens, *heads, *size});
  door.check("the updated state", o.step.updated, {o.step.state.element_type()}, {o.step.state.dimensions()[0], *heads, *size, *keys});
  return !door.failed();
}

ffi::Error decayed_attention(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer rate,
                             ffi::AnyBuffer decay, ffi::AnyBuffer skip, ffi::AnyBuffer state, ffi::AnyBuffer state_slots,
                             ffi::AnyBuffer seq_lens, ffi::AnyBuffer starts, ffi::Result<ffi::AnyBuffer> out,
                             ffi::Result<ffi::AnyBuffer> updated) {
  Door door(kDecayed);
  const Operands operands{q, k, v, {state, state_slots, seq_lens, starts, *out, *updated}};
  int64_t groups, tokens, heads, size, keys;
  if (!read_operands(operands, door, &groups, &tokens, &heads, &size, &keys)) return door.error();
  const bool absent = skip.dimensions().size() == 1 && skip.dimensions()[0] == 0;
  door.check("rate", rate, {ffi::F32}, {tokens, heads}).check("decay", decay, {ffi::F32}, {tokens, heads});
  door.check("skip", skip, {ffi::F32}, {absent ? 0 : heads});
  const Requests requests = door.failed() ? Requests{} : read_requests(operands.step, tokens, door);
  if (door.failed()) return door.error();
  return guarded(kDecayed, [&] {
    begin_step(operands.step, requests);
    run(pool, {requests, Numbers(q), Numbers(k), Numbers(v), Numbers(*updated), Numbers(*out), data<float>(rate), data<float>(decay),
               absent ? nullptr : data<float>(skip), groups, heads, size, keys, false, false, false, 1.0f});
    return ffi::Error::Success();
  });
}

ffi::Error gated_delta_rule(ffi::ThreadPool pool, ffi::AnyBuffer q, ffi::AnyBuffer k, ffi::AnyBuffer v, ffi::AnyBuffer g,
                            ffi::AnyBuffer beta, ffi::AnyBuffer state, ffi::AnyBuffer state_slots, ffi::AnyBuffer seq_lens,
                            ffi::AnyBuffer starts, ffi::Result<ffi::AnyBuffer> out, ffi::Result<ffi::AnyBuffer> updated, float scale,
                            int64_t l2norm) {
  Door door(kDelta);
  const Operands operands{q, k, v, {state, state_slots, seq_lens, starts, *out, *updated}};
  int64_t groups, tokens, heads, size, keys;
  if (!read_operands(operands, door, &groups, &tokens, &heads, &size, &keys)) return door.error();
  const bool channels = g.dimensions().size() == 3;
  if (channels) {
    door.check("g", g, {ffi::F32}, {tokens, heads, keys});
  } else {
    door.check("g", g, {ffi::F32}, {tokens, heads});
  }
  door.check("beta", beta, {ffi::F32}, {tokens, heads});
  const Requests requests = door.failed() ? Requests{} : read_requests(operands.step, tokens, door);
  if (door.failed()) return door.error();
  return guarded(kDelta, [&] {
    begin_step(operands.step, requests);
    run(pool, {requests, Numbers(q), Numbers(k), Numbers(v), Numbers(*updated), Numbers(*out), data<float>(beta), data<float>(g), nullptr,
               groups, heads, size, keys, true, channels, l2norm != 0, scale});
    return ffi::Error::Success();
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_ragged_decayed_attention, fxhlo::decayed_attention,
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

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_ragged_gated_delta_rule, fxhlo::gated_delta_rule,
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
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Ret<xla::ffi::AnyBuffer>()
                                  .Attr<float>("scale")
                                  .Attr<int64_t>("l2norm"));

#pragma GCC visibility pop
