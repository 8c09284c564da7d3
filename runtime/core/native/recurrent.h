// What the kernels with a state per request share: a step's requests, numbers of any floating dtype, and sums of rows.
//
// Operands of a step: state [slots, ...], state_slots and seq_lens int32 [R], query_start_loc int32 [R + 1]. The states are updated
// in place if the result is aliased to the operand, else they are copied first. Rows of no request give zeros.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "door.h"
#include "parallel.h"
#include "transpose.h"
#include "vector.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {

inline int64_t whole_lanes(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

// Memory of float32, bfloat16 or float16, read and written as float32.
struct Numbers {
  xla::ffi::DataType type;
  void* memory;

  explicit Numbers(const xla::ffi::AnyBuffer& buffer) : type(buffer.element_type()), memory(buffer.untyped_data()) {}

  void read(int64_t at, int64_t count, float* to) const {
    switch (type) {
      case xla::ffi::F32: return convert(static_cast<const float*>(memory) + at, to, count);
      case xla::ffi::BF16: return convert(static_cast<const BFloat16*>(memory) + at, to, count);
      default: return convert(static_cast<const Half*>(memory) + at, to, count);
    }
  }
  void write(int64_t at, int64_t count, const float* from) const {
    switch (type) {
      case xla::ffi::F32: return convert(from, static_cast<float*>(memory) + at, count);
      case xla::ffi::BF16: return convert(from, static_cast<BFloat16*>(memory) + at, count);
      default: return convert(from, static_cast<Half*>(memory) + at, count);
    }
  }
};

// The requests of a step, and the memory of their states.
struct Requests {
  int64_t tokens, count, slots;
  const int32_t* starts;
  const int32_t* seq_lens;
  const int32_t* state_slots;
  int64_t state_values;  // per slot

  int64_t first(int64_t request) const { return starts[request]; }
  int64_t rows(int64_t request) const { return starts[request + 1] - starts[request]; }
  // None of its tokens came before this step: its slot may hold anything.
  bool fresh(int64_t request) const { return seq_lens[request] == rows(request); }
  int64_t state_at(int64_t request) const { return state_slots[request] * state_values; }
};

struct StepOperands {
  xla::ffi::AnyBuffer state, state_slots, seq_lens, starts, out, updated;
};

// Checks a step's operands but for the state's shape; `tokens`: rows of the batch.
inline Requests read_requests(const StepOperands& o, int64_t tokens, Door& door) {
  namespace ffi = xla::ffi;
  door.check("state_slots", o.state_slots, {ffi::S32}, {kAnySize});
  if (door.failed()) return {};
  const int64_t count = o.state_slots.dimensions()[0];
  door.check("seq_lens", o.seq_lens, {ffi::S32}, {count}).check("query_start_loc", o.starts, {ffi::S32}, {count + 1});
  if (door.failed()) return {};
  const auto sizes = o.state.dimensions();
  Requests r{tokens, count, sizes[0], data<int32_t>(o.starts), data<int32_t>(o.seq_lens), data<int32_t>(o.state_slots), 1};
  for (size_t i = 1; i < sizes.size(); ++i) r.state_values *= sizes[i];
  if (count > 0) {
    door.require(r.starts[0] == 0, [&] { return "query_start_loc begins at " + std::to_string(r.starts[0]) + ", not at 0"; });
  }
  for (int64_t request = 0; request < count && !door.failed(); ++request) {
    const auto where = [&] { return "request " + std::to_string(request) + ": "; };
    const int64_t begin = r.starts[request], end = r.starts[request + 1], slot = r.state_slots[request];
    door.require(0 <= begin && begin <= end && end <= tokens, [&] {
      return where() + "rows " + std::to_string(begin) + " to " + std::to_string(end) + " of query_start_loc are not in a batch of " +
             std::to_string(tokens);
    });
    if (begin == end || door.failed()) continue;
    door.require(0 <= slot && slot < r.slots, [&] {
      return where() + "its state is in slot " + std::to_string(slot) + ", the state has " + std::to_string(r.slots) + " slots";
    });
    door.require(r.seq_lens[request] >= end - begin, [&] {
      return where() + "seq_lens is " + std::to_string(r.seq_lens[request]) + ", this step alone has " + std::to_string(end - begin) +
             " rows of it";
    });
  }
  return r;
}

// Copies the state where it is not updated in place, and clears the rows of no request.
inline void begin_step(const StepOperands& o, const Requests& r) {
  if (o.state.untyped_data() != o.updated.untyped_data()) {
    std::memcpy(o.updated.untyped_data(), o.state.untyped_data(), o.state.size_bytes());
  }
  const int64_t used = r.count > 0 ? r.starts[r.count] : 0;
  if (r.tokens == 0) return;
  const int64_t row = static_cast<int64_t>(o.out.size_bytes()) / r.tokens;
  std::memset(static_cast<char*>(o.out.untyped_data()) + used * row, 0, (r.tokens - used) * row);
}

// One request's share of heads or channels: [first, last), in units of the kernel's choice.
struct Item {
  int64_t request, first, last;
};

// Items of all requests that have rows, each with at most `most` of `units`.
inline std::vector<Item> items_of(const Requests& r, int64_t units, int64_t most) {
  std::vector<Item> items;
  for (int64_t request = 0; request < r.count; ++request) {
    if (r.rows(request) == 0) continue;
    for (int64_t first = 0; first < units; first += most) items.push_back({request, first, std::min(units, first + most)});
  }
  return items;
}

// Units per item so that every thread gets several items, but none is of less work than a thread takes to wake up.
inline int64_t units_per_item(const Requests& r, int64_t units, int64_t unit_work, int64_t threads) {
  constexpr int64_t kLeastWork = 32 << 10;  // state values times rows
  const int64_t used = r.count > 0 ? r.starts[r.count] : 0;
  if (used == 0 || units == 0) return 1;
  const int64_t rows_each = std::max<int64_t>(1, used / std::max<int64_t>(1, r.count));
  const int64_t least = std::max<int64_t>(1, kLeastWork / std::max<int64_t>(1, unit_work * rows_each));
  const int64_t even = std::max<int64_t>(1, units * r.count / (4 * std::max<int64_t>(1, threads)));
  return std::min(units, std::max(least, even));
}

// exp(x) of a decay's logarithm, which is at most 0; above 87 it is 2^126.
inline Floats decay_of(Floats x) {
  const Floats power = x * 1.44269504088896341f, most = broadcast(126.0f);
  return exp2(power > most ? most : power);
}

// The sums of the lanes of kLanes vectors, each as by sum_lanes.
inline Floats sum_each(Floats* vectors) {
  transpose(vectors);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) vectors[i] += vectors[i + half];
  }
  return vectors[0];
}

}  // namespace fxhlo
