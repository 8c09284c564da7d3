// fxhlo_moe: the experts of a mixture. Row t of y is the sum over j of weights[t, j] * (act(x[t] w13[e]^T + b13[e]) w2[e]^T + b2[e]),
// e = ids[t, j]; an id that names no expert contributes nothing. Sums in float32; act's result is rounded to x's dtype.
//
// Choices (a row and one of its experts) are sorted by expert. Only experts that were chosen are read, and each of their weights
// once for kBlockRows of their rows. The first pass computes the experts' inner values, a chunk for each block of rows of an
// expert and range of columns; the second has a chunk for each range of columns of y, goes through all blocks, and sums.
//
// With Intel AMX, products are those of linear_tiles.h, and the inner values are rows instead of packed quads.
//
// Batch invariance: products are those of panels.h, or of tiles.h; a row's experts are summed in order of their number.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "activations.h"
#include "door.h"
#include "linear_tiles.h"
#include "panels.h"
#include "parallel.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {
namespace {

namespace ffi = xla::ffi;

constexpr const char* kName = "fxhlo_moe";
constexpr int64_t kBlockBytes = 256 << 10;   // of a block's rows, so that they stay in the L2 cache,
constexpr int64_t kBlockRows = 128;          // but enough rows to amortize regrouping the weight
constexpr int64_t kChunksPerThread = 4;      // to balance threads that the system preempts
static_assert(kPanel == kLanes, "a panel's sums of one row are a vector");

std::atomic<int64_t> weight_bytes{0};  // read since the process began, for tests

struct Activation {
  enum Kind { kSilu, kGelu, kGeluTanh, kRelu2, kSwigluStep, kSitu } kind;
  bool gated, interleaved;  // a gate and an up projection; their rows take turns
  float limit, alpha, beta;

  Floats of_one(Floats x) const {
    switch (kind) {
      case kGelu: return gelu(x);
      case kGeluTanh: return gelu_tanh(x);
      case kRelu2: return relu2(x);
      default: return silu(x);
    }
  }

  Floats of_both(Floats gate, Floats up) const {
    const auto at_most = [&](Floats x) { return limit > 0 && kind != kSitu ? (x > limit ? broadcast(limit) : x) : x; };
    const auto within = [&](Floats x) { return limit > 0 && kind != kSitu ? at_most(x < -limit ? broadcast(-limit) : x) : x; };
    switch (kind) {
      case kSilu: return sloped_silu(at_most(gate), alpha) * (within(up) + beta);
      case kSwigluStep: return at_most(silu(gate)) * within(up);
      case kSitu: return alpha * tanh(gate / alpha) * sigmoid(gate) * (beta > 0 ? beta * tanh(up / beta) : up);
      default: return of_one(gate) * up;
    }
  }
};

// False for a name that is no activation's.
bool parse(std::string_view name, Activation& into) {
  constexpr std::string_view kPlain = "_no_mul";
  into.interleaved = name == "swigluoai";
  into.gated = name.size() < kPlain.size() || name.substr(name.size() - kPlain.size()) != kPlain;
  if (!into.gated) name.remove_suffix(kPlain.size());
  const struct {
    std::string_view name;
    Activation::Kind kind;
    bool both_forms;
  } known[] = {
      {"silu", Activation::kSilu, true},           {"gelu", Activation::kGelu, true},
      {"gelu_tanh", Activation::kGeluTanh, true},  {"relu2", Activation::kRelu2, true},
      {"swigluoai", Activation::kSilu, false},     {"swiglustep", Activation::kSwigluStep, false},
      {"situ", Activation::kSitu, false},
  };
  for (const auto& one : known) {
    if (one.name != name || (!into.gated && !one.both_forms)) continue;
    into.kind = one.kind;
    return true;
  }
  return false;
}

template <typename T>
struct Problem {
  const T *x, *w13, *w2, *b13, *b2;  // biases may be null
  const float* weights;
  const int32_t* ids;
  T* y;
  int64_t rows, top, experts, hidden, inner;
  Activation activation;
  bool on_input;
  int64_t width() const { return inner * (activation.gated ? 2 : 1); }
};

// Consecutive choices of one expert, in order of their rows.
struct Block {
  int64_t expert, first, count;
};

// All choices of an expert that exists, sorted by expert, and their blocks.
struct Plan {
  std::vector<int64_t> choices;  // row * top + j
  std::vector<Block> blocks;
  int64_t most = 0;  // rows of the largest block

  template <typename T>
  explicit Plan(const Problem<T>& p) {
    const int64_t total = p.rows * p.top;
    const auto exists = [&](int64_t choice) { return p.ids[choice] >= 0 && p.ids[choice] < p.experts; };
    std::vector<int64_t> ends(p.experts + 1, 0);
    for (int64_t choice = 0; choice < total; ++choice) ends[exists(choice) ? p.ids[choice] + 1 : 0] += exists(choice);
    for (int64_t expert = 0; expert < p.experts; ++expert) ends[expert + 1] += ends[expert];
    choices.resize(ends[p.experts]);
    for (int64_t choice = 0; choice < total; ++choice) {
      if (exists(choice)) choices[ends[p.ids[choice]]++] = choice;
    }
    const int64_t row_bytes = std::max<int64_t>(1, std::max(p.hidden, p.inner) * sizeof(T));
    const int64_t limit = std::max(kBlockRows, kBlockBytes / row_bytes);
    for (int64_t expert = 0, first = 0; expert < p.experts; first = ends[expert++]) {
      const int64_t count = ends[expert] - first, pieces = (count + limit - 1) / limit;
      for (int64_t piece = 0; piece < pieces; ++piece) {
        const int64_t begin = count * piece / pieces, end = count * (piece + 1) / pieces;
        blocks.push_back({expert, first + begin, end - begin});
        most = std::max(most, end - begin);
      }
    }
  }
};

// A thread's buffers, kept between calls.
template <typename T>
struct Scratch {
  std::vector<Quad> x;
  std::vector<Words> kept;
  std::vector<T> rows;
  std::vector<float> sums, more, total;
};

template <typename T>
class Mixture {
 public:
  Mixture(const Problem<T>& problem, const Plan& plan)
      : p_(problem), plan_(plan), steps_(steps_of<T>(problem.inner)), inner_(new Quad[plan.choices.size() * steps_]) {}

  void compute(ffi::ThreadPool& pool) const {
    const int64_t blocks = plan_.blocks.size(), wanted = pool.num_threads() * kChunksPerThread;
    const int64_t unit = tiled<T>() ? kTilePanel : kPanel, panels = (p_.inner + unit - 1) / unit;
    const int64_t pieces = blocks == 0 ? 0 : std::clamp<int64_t>(wanted / blocks, 1, panels);
    parallel_for(pool, blocks * pieces, [&](int64_t chunk) {
      const int64_t piece = chunk % pieces;
      const int64_t column = unit * (panels * piece / pieces), end = std::min(p_.inner, unit * (panels * (piece + 1) / pieces));
      tiled<T>() ? tiled_inner_values(plan_.blocks[chunk / pieces], column, end) : inner_values(plan_.blocks[chunk / pieces], column, end);
    });
    const int64_t columns = (p_.hidden + unit - 1) / unit, chunks = std::min(columns, wanted);
    parallel_for(pool, chunks, [&](int64_t chunk) {
      results(unit * (columns * chunk / chunks), std::min(p_.hidden, unit * (columns * (chunk + 1) / chunks)));
    });
  }

 private:
  static int64_t panels_of(int64_t columns) { return (columns + kPanel - 1) / kPanel; }

  static Scratch<T>& scratch() {
    thread_local Scratch<T> made;
    return made;
  }

  const T* row_of_x(const Block& block, int64_t r) const { return p_.x + plan_.choices[block.first + r] / p_.top * p_.hidden; }

  // Copies of the block's rows of x, scaled by the router's weights if those are on the input.
  void copy_rows(const Block& block, std::vector<T>& to) const {
    to.resize(block.count * p_.hidden);
    for (int64_t r = 0; r < block.count; ++r) {
      const T* from = row_of_x(block, r);
      T* into = to.data() + r * p_.hidden;
      if (!p_.on_input) {
        std::copy_n(from, p_.hidden, into);
        continue;
      }
      const float weight = p_.weights[plan_.choices[block.first + r]];
      for (int64_t i = 0; i < p_.hidden; ++i) into[i] = from_float<T>(to_float(from[i]) * weight);
    }
  }

  void pack(const Block& block, Scratch<T>& to) const {
    const TiledRows rows{block.count};
    to.x.resize(block.count * steps_of<T>(p_.hidden));
    if (!p_.on_input) return pack_rows<T>(rows, p_.hidden, [&](int64_t r) { return row_of_x(block, r); }, to.x.data());
    copy_rows(block, to.rows);
    pack_rows<T>(rows, p_.hidden, [&](int64_t r) { return to.rows.data() + r * p_.hidden; }, to.x.data());
  }

  static void count_read(int64_t columns, int64_t matrices, int64_t k) {
    weight_bytes.fetch_add(columns * matrices * k * static_cast<int64_t>(sizeof(T)), std::memory_order_relaxed);
  }

  // y [rows][columns] = rows of k values times as many rows of a weight, with AMX.
  static void multiply_tiled(const T* x, const T* w, int64_t rows, int64_t columns, int64_t k, float* y) {
#if defined(FXHLO_TILES)
    if constexpr (std::is_same_v<T, BFloat16>) TiledLinear(x, w, nullptr, y, true, columns, k).block(0, rows, 0, columns);
#endif
  }

  // inner_values with AMX: rows of the block, one after the other.
  void tiled_inner_values(const Block& block, int64_t column, int64_t end) const {
    Scratch<T>& use = scratch();
    const bool turns = p_.activation.interleaved;
    const int64_t k = p_.hidden, columns = end - column, stride = turns ? 2 * columns : columns;
    const T* weight = p_.w13 + block.expert * p_.width() * k;
    copy_rows(block, use.rows);
    use.sums.resize(block.count * stride);
    use.more.resize(p_.activation.gated && !turns ? block.count * columns : 0);
    count_read(columns, p_.activation.gated ? 2 : 1, k);
    multiply_tiled(use.rows.data(), weight + (turns ? 2 * column : column) * k, block.count, stride, k, use.sums.data());
    if (!use.more.empty()) multiply_tiled(use.rows.data(), weight + (p_.inner + column) * k, block.count, columns, k, use.more.data());
    for (int64_t at = 0; at < columns; at += kPanel) {
      const int64_t valid = std::min<int64_t>(kPanel, columns - at);
      const Floats gate_bias = bias(block.expert, column + at, valid, 0), up_bias = bias(block.expert, column + at, valid, 1);
      for (int64_t r = 0; r < block.count; ++r) {
        float gate[kPanel] = {}, up[kPanel] = {};
        const float* from = use.sums.data() + r * stride + (turns ? 2 * at : at);
        for (int64_t i = 0; i < valid; ++i) gate[i] = from[turns ? 2 * i : i];
        const float* more = turns ? from + 1 : use.more.data() + r * columns + at;
        for (int64_t i = 0; i < valid && p_.activation.gated; ++i) up[i] = more[turns ? 2 * i : i];
        T rounded[kPanel];
        activated(load<Floats>(gate) + gate_bias, load<Floats>(up) + up_bias, rounded);
        std::copy_n(rounded, valid, tiled_row(block, r) + column + at);
      }
    }
  }

  // Inner values of a row of the block, where they are not packed.
  T* tiled_row(const Block& block, int64_t r) const {
    return reinterpret_cast<T*>(inner_.get()) + (block.first + r) * p_.inner;
  }

  void activated(Floats gate, Floats up, T* rounded) const {
    store_as(rounded, p_.activation.gated ? p_.activation.of_both(gate, up) : p_.activation.of_one(gate));
  }

  // Columns [column, end) of the block's inner values.
  void inner_values(const Block& block, int64_t column, int64_t end) const {
    Scratch<T>& use = scratch();
    const TiledRows rows{block.count};
    const int64_t k = p_.hidden, stride = p_.activation.interleaved ? 2 * k : k, to_up = p_.activation.interleaved ? k : p_.inner * k;
    pack(block, use);
    use.kept.resize(rows.tiles() > 1 ? steps_of<T>(k) * kTileVectors : 0);
    use.sums.resize(block.count * kPanel);
    use.more.resize(p_.activation.gated ? block.count * kPanel : 0);
    count_read(end - column, p_.activation.gated ? 2 : 1, k);
    for (; column < end; column += kPanel) {
      const int64_t valid = std::min<int64_t>(kPanel, p_.inner - column);
      const T* first = p_.w13 + block.expert * p_.width() * k + column * stride;
      const int64_t to_next = column + kPanel < end ? kPanel * stride : 0;
      Panel<T> gate(first, stride, valid);
      gate.next = p_.activation.gated ? to_up : to_next;
      product_of_panel(gate, k, rows, use.x.data(), use.kept.data(), use.sums.data());
      if (p_.activation.gated) {
        Panel<T> up(first + to_up, stride, valid);
        up.next = to_next == 0 ? 0 : to_next - to_up;
        product_of_panel(up, k, rows, use.x.data(), use.kept.data(), use.more.data());
      }
      activate(block, column, valid, use);
    }
  }

  // The activation of a panel's sums, packed as the second product takes it.
  void activate(const Block& block, int64_t column, int64_t valid, const Scratch<T>& from) const {
    constexpr int kQuads = kPanel / kStep<T>;
    static_assert(kPanel % kStep<T> == 0, "no quad is in two panels");
    const TiledRows rows{block.count};
    const int64_t step = column / kStep<T>, quads = std::min<int64_t>(kQuads, steps_ - step);
    const Floats gate_bias = bias(block.expert, column, valid, 0), up_bias = bias(block.expert, column, valid, 1);
    for (int64_t tile = 0; tile < rows.tiles(); ++tile) {
      const int64_t first = rows.first(tile), count = rows.first(tile + 1) - first;
      Quad* to = inner_.get() + (block.first + first) * steps_ + step * count;
      for (int64_t r = 0; r < count; ++r) {
        const Floats gate = load<Floats>(&from.sums[(first + r) * kPanel]) + gate_bias;
        const Floats up = p_.activation.gated ? load<Floats>(&from.more[(first + r) * kPanel]) + up_bias : Floats{};
        T rounded[kPanel];
        activated(gate, up, rounded);
        PackedOf<T> packed[kPanel] = {};
        convert(rounded, packed, valid);
        for (int64_t quad = 0; quad < quads; ++quad) std::memcpy(to + quad * count + r, packed + quad * kStep<T>, sizeof(Quad));
      }
    }
  }

  // which: 0 of the gate, 1 of up.
  Floats bias(int64_t expert, int64_t column, int64_t valid, int which) const {
    float values[kPanel] = {};
    if (p_.b13 == nullptr || (which == 1 && !p_.activation.gated)) return load<Floats>(values);
    const bool turns = p_.activation.interleaved;
    const T* from = p_.b13 + expert * p_.width() + (turns ? 2 * column + which : column + which * p_.inner);
    for (int64_t i = 0; i < valid; ++i) values[i] = to_float(from[turns ? 2 * i : i]);
    return load<Floats>(values);
  }

  // Columns [begin, end) of y.
  void results(int64_t begin, int64_t end) const {
    Scratch<T>& use = scratch();
    const int64_t k = p_.inner, width = kPanel * panels_of(end - begin);
    use.total.assign(p_.rows * width, 0.0f);
    for (size_t at = 0; at < plan_.blocks.size(); ++at) {
      tiled<T>() ? add_tiled(plan_.blocks[at], begin, end, use) : add_panels(at, begin, end, use);
    }
    count_read(end - begin, static_cast<int64_t>(plan_.blocks.size()), k);
    for (int64_t row = 0; row < p_.rows; ++row) {
      T rounded[kPanel];
      for (int64_t column = begin; column < end; column += kPanel) {
        store_as(rounded, load<Floats>(&use.total[row * width + column - begin]));
        std::memcpy(p_.y + row * p_.hidden + column, rounded, std::min<int64_t>(kPanel, end - column) * sizeof(T));
      }
    }
  }

  // Adds the results of block `at` to use.total.
  void add_panels(size_t at, int64_t begin, int64_t end, Scratch<T>& use) const {
    const Block& block = plan_.blocks[at];
    const int64_t k = p_.inner, width = kPanel * panels_of(end - begin);
    use.kept.resize(plan_.most > kTileRows ? steps_ * kTileVectors : 0);
    use.sums.resize(plan_.most * kPanel);
    for (int64_t column = begin; column < end; column += kPanel) {
      Panel<T> panel(p_.w2 + (block.expert * p_.hidden + column) * k, k, p_.hidden - column);
      if (column + kPanel < end) {
        panel.next = kPanel * k;
      } else if (at + 1 < plan_.blocks.size()) {
        panel.next = ((plan_.blocks[at + 1].expert - block.expert) * p_.hidden + begin - column) * k;
      }
      product_of_panel(panel, k, TiledRows{block.count}, inner_.get() + block.first * steps_, use.kept.data(), use.sums.data());
      add(block, column, use.sums.data(), kPanel, use.total.data() + (column - begin), width);
    }
  }

  // add_panels with AMX.
  void add_tiled(const Block& block, int64_t begin, int64_t end, Scratch<T>& use) const {
    const int64_t k = p_.inner, columns = end - begin, width = kPanel * panels_of(columns);
    use.sums.resize(block.count * columns + kPanel);  // the last panel may be read past its end
    multiply_tiled(tiled_row(block, 0), p_.w2 + (block.expert * p_.hidden + begin) * k, block.count, columns, k, use.sums.data());
    for (int64_t at = 0; at < columns; at += kPanel) {
      add(block, begin + at, use.sums.data() + at, columns, use.total.data() + at, width);
    }
  }

  // Adds a panel's sums, [count][stride], to those of their rows, [rows][width].
  void add(const Block& block, int64_t column, const float* sums, int64_t stride, float* total, int64_t width) const {
    float added[kPanel] = {};
    if (p_.b2 != nullptr) convert(p_.b2 + block.expert * p_.hidden + column, added, std::min<int64_t>(kPanel, p_.hidden - column));
    const Floats bias = load<Floats>(added);
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t choice = plan_.choices[block.first + r];
      Floats values = load<Floats>(sums + r * stride) + bias;
      if (!p_.on_input) values *= broadcast(p_.weights[choice]);
      float* to = total + choice / p_.top * width;
      store(to, load<Floats>(to) + values);
    }
  }

  const Problem<T>& p_;
  const Plan& plan_;
  const int64_t steps_;                 // of the second product
  const std::unique_ptr<Quad[]> inner_;  // for each block: packed rows
};

struct Call {
  ffi::AnyBuffer x, w13, w2, weights, ids, b13, b2, y;
  Activation activation;
  bool on_input;
};

template <typename T>
ffi::Error run(ffi::ThreadPool& pool, const Call& call) {
  const auto shape = call.w2.dimensions();
  const auto bias = [](const ffi::AnyBuffer& given) { return given.element_count() == 0 ? nullptr : data<T>(given); };
  const Problem<T> problem{data<T>(call.x), data<T>(call.w13), data<T>(call.w2), bias(call.b13), bias(call.b2),
                           data<float>(call.weights), data<int32_t>(call.ids), static_cast<T*>(call.y.untyped_data()),
                           call.x.dimensions()[0], call.ids.dimensions()[1], shape[0], shape[1], shape[2],
                           call.activation, call.on_input};
  const Plan plan(problem);
  Mixture<T>(problem, plan).compute(pool);
  return ffi::Error::Success();
}

ffi::Error moe(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer w13, ffi::AnyBuffer w2, ffi::AnyBuffer weights,
               ffi::AnyBuffer ids, ffi::AnyBuffer b13, ffi::AnyBuffer b2, ffi::Result<ffi::AnyBuffer> y, std::string_view name,
               float limit, float alpha, float beta, bool on_input) {
  const ffi::DataType type = x.element_type();
  Door door(kName);
  Activation activation{};
  activation.limit = limit, activation.alpha = alpha, activation.beta = beta;
  door.require(parse(name, activation), [&] { return "activation is " + std::string(name) + ", which no expert has"; });
  door.check("x", x, {ffi::F32, ffi::BF16, ffi::F16}, {kAnySize, kAnySize}).check("w2", w2, {type}, {kAnySize, kAnySize, kAnySize});
  if (door.failed()) return door.error();
  const int64_t rows = x.dimensions()[0], hidden = x.dimensions()[1];
  const int64_t experts = w2.dimensions()[0], width = w2.dimensions()[2] * (activation.gated ? 2 : 1);
  door.check("w2", w2, {type}, {experts, hidden, kAnySize}).check("w13", w13, {type}, {experts, width, hidden});
  door.check("topk_ids", ids, {ffi::S32}, {rows, kAnySize});
  if (door.failed()) return door.error();
  door.check("topk_weights", weights, {ffi::F32}, {rows, ids.dimensions()[1]});
  // An absent bias has no experts.
  const auto check_bias = [&](const char* which, const ffi::AnyBuffer& bias, int64_t size) {
    const bool absent = bias.dimensions().size() == 2 && bias.dimensions()[0] == 0;
    door.check(which, bias, {type}, {absent ? 0 : experts, size});
  };
  check_bias("w13_bias", b13, width), check_bias("w2_bias", b2, hidden);
  door.check("the result", *y, {type}, {rows, hidden});
  if (door.failed()) return door.error();
  return guarded(kName, type, [&](auto value) {
    return run<decltype(value)>(pool, Call{x, w13, w2, weights, ids, b13, b2, *y, activation, on_input});
  });
}

}  // namespace
}  // namespace fxhlo

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(fxhlo_moe, fxhlo::moe,
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
                                  .Attr<std::string_view>("activation")
                                  .Attr<float>("limit")
                                  .Attr<float>("alpha")
                                  .Attr<float>("beta")
                                  .Attr<bool>("weight_on_input"));

// Bytes of experts' weights that were read since the process began.
extern "C" int64_t fxhlo_moe_weight_bytes() { return fxhlo::weight_bytes.load(); }

#pragma GCC visibility pop
