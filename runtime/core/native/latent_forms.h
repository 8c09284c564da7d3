// The two forms of latent attention over a paged cache of latents.
//
// Absorbed: a row's query is projected into the latents' space, all heads share one key per token, its latent, and what they
// attend to is projected to the heads' values. Decompressed: each head's keys and values are made of the latents first.
// The projections of the one are per row, those of the other per key; per row and key the other multiplies less.
//
// A row's result depends on its own request alone; in one form it is the same bit for bit however its prompt is cut into chunks.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "attention_pages.h"
#include "attention_walk.h"
#include "latent_products.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace fxhlo {

constexpr int64_t kGroupBytes = 8 << 20;  // of scratch: more requests or heads are processed in groups
constexpr int64_t kGroupRows = 64;        // rows of a group in the absorbed form, at least: each reads all projections
constexpr int64_t kRowsPerShare = 256;    // rows or keys that one thread projects with a matrix that it packed

struct LatentShape {
  int64_t tokens, heads, nope, rotary, latent, values;
  int64_t requests, blocks, block_size, pages;

  int64_t query_size() const { return nope + rotary; }
  int64_t slot_size() const { return latent + rotary; }
  int64_t value_size() const { return values; }
};

// A step: its requests, and where their queries and latents are.
template <typename T>
struct LatentStep : LatentShape {
  using Value = T;
  const T* q;     // [tokens, heads, nope + rotary]
  const T* w_uk;  // [heads, nope, latent]
  const T* w_uv;  // [heads, latent, value_size]
  T* cache;       // [blocks, block_size, latent + rotary]
  const int32_t* tables;
  const int32_t* seq_lens;
  const int32_t* starts;
  T* out;  // [tokens, heads, value_size]
  Scoring scoring;
  int64_t window;  // 0: none

  int64_t rows(int64_t request) const { return starts[request + 1] - starts[request]; }
  int64_t first_position(int64_t request) const { return seq_lens[request] - rows(request); }
  int64_t first_key(int64_t position) const { return window > 0 ? std::max<int64_t>(0, position - window + 1) : 0; }
  int64_t end_key(int32_t, int64_t position) const { return position + 1; }
  const int32_t* table(int64_t request) const { return tables + request * pages; }
  const T* slot(int64_t request, int64_t position) const {
    return cache + (table(request)[position / block_size] * block_size + position % block_size) * slot_size();
  }
};

// ---- absorbed ----------------------------------------------------------------------------------------------

struct Piece {
  int32_t request, row, rows;  // row: the first, counted from the request's first of this step
};

// Some rows of a step with their queries in the latents' space, as attention_walk.h takes them: a request is one piece.
template <typename T>
struct Absorbed {
  using Value = T;
  const LatentStep<T>& step;
  const std::vector<Piece>& pieces;
  int64_t tokens, heads, kv_heads, head_size, requests, block_size;
  const T* q;             // [tokens, heads, latent + rotary]
  T* out;                 // [tokens, heads, latent]
  const int32_t* starts;  // of the pieces
  Scoring scoring;
  const float* sinks = nullptr;
  const float* slopes = nullptr;

  int64_t value_size() const { return step.latent; }
  int64_t first_position(int64_t piece) const { return step.first_position(pieces[piece].request) + pieces[piece].row; }
  int64_t first_key(int64_t position) const { return step.first_key(position); }
  int64_t end_key(int32_t, int64_t position) const { return position + 1; }
  const int32_t* table(int64_t piece) const { return step.table(pieces[piece].request); }
  void find_keys(const Item& item, int64_t block, int64_t first, int64_t last, const T** keys) const {
    find_paged_keys(*this, item, block, first, last, static_cast<const T*>(step.cache), head_size, keys);
  }
  void prefetch(const T* const* keys) const {
    for (int key = 0; key < kKeys; ++key) prefetch_bytes(keys[key], head_size);
  }
  void to_values(const T**) const {}  // a value begins where its key does
};

// The smallest number of parts of the heads that gives every thread a tile, none larger than the walk's.
inline int64_t parts_of(int64_t heads, int64_t rows, int64_t threads) {
  for (int64_t parts = 1; parts < heads; ++parts) {
    if (heads % parts == 0 && heads / parts <= kTileQueries && rows * parts >= threads) return parts;
  }
  return heads;
}

// Calls body(head, first row, end row, products, scratch) for all heads and rows, shares of the rows on XLA's threads.
template <typename T, typename Body>
void for_heads(ffi::ThreadPool& pool, int64_t heads, int64_t rows, const Body& body) {
  const int64_t shares = (rows + kRowsPerShare - 1) / kRowsPerShare;
  parallel_for(pool, heads * shares, [&](int64_t index) {
    thread_local LatentScratch scratch;
    TileShapes shapes;
    RowsTimesMatrix<T> products(scratch, shapes);
    const int64_t share = index % shares;
    body(index / shares, rows * share / shares, rows * (share + 1) / shares, products, scratch);
  });
}

// Attention of one group of pieces in the absorbed form.
template <typename T>
void attend_absorbed(ffi::ThreadPool& pool, const LatentStep<T>& step, const std::vector<Piece>& pieces) {
  thread_local std::vector<T> queries, attended;
  std::vector<int32_t> starts{0}, tokens;
  for (const Piece& piece : pieces) {
    starts.push_back(starts.back() + piece.rows);
    for (int32_t row = 0; row < piece.rows; ++row) tokens.push_back(step.starts[piece.request] + piece.row + row);
  }
  const int64_t rows = starts.back(), heads = step.heads, size = step.slot_size();
  queries.resize(rows * heads * size), attended.resize(rows * heads * step.latent);
  T *const q = queries.data(), *const out = attended.data();
  for_heads<T>(pool, heads, rows, [&](int64_t head, int64_t first, int64_t end, RowsTimesMatrix<T>& products, LatentScratch& s) {
    const Packing packing = pack_straight(step.w_uk + head * step.nope * step.latent, step.nope, step.latent, s.matrix);
    for (int64_t row = first; row < end; row += kLatentRows) {
      const int count = static_cast<int>(std::min<int64_t>(kLatentRows, end - row));
      const auto from = [&](int at) { return step.q + (tokens[row + at] * heads + head) * step.query_size(); };
      const auto to = [&](int at) { return q + ((row + at) * heads + head) * size; };
      products.load(count, step.nope, from);
      products.multiply(s.matrix, packing, step.latent, to);
      for (int at = 0; at < count; ++at) std::memcpy(to(at) + step.latent, from(at) + step.nope, step.rotary * sizeof(T));
    }
  });
  const int64_t parts = parts_of(heads, rows, pool.num_threads());
  attend(pool, Absorbed<T>{step, pieces, rows, heads, parts, size, static_cast<int64_t>(pieces.size()), step.block_size, q, out,
                           starts.data(), step.scoring});
  for_heads<T>(pool, heads, rows, [&](int64_t head, int64_t first, int64_t end, RowsTimesMatrix<T>& products, LatentScratch& s) {
    const Packing packing = pack_straight(step.w_uv + head * step.latent * step.value_size(), step.latent, step.value_size(), s.matrix);
    for (int64_t row = first; row < end; row += kLatentRows) {
      const int count = static_cast<int>(std::min<int64_t>(kLatentRows, end - row));
      products.load(count, step.latent, [&](int at) { return out + ((row + at) * heads + head) * step.latent; });
      products.multiply(s.matrix, packing, step.value_size(),
                        [&](int at) { return step.out + (tokens[row + at] * heads + head) * step.value_size(); });
    }
  });
}

// Attention of the rows of `requests` in the absorbed form.
template <typename T>
void attend_absorbed_in_groups(ffi::ThreadPool& pool, const LatentStep<T>& step, const std::vector<int32_t>& requests) {
  const int64_t bytes = step.heads * (step.slot_size() + step.latent) * static_cast<int64_t>(sizeof(T));
  const int64_t most = std::max(kGroupRows, kGroupBytes / bytes);
  std::vector<Piece> pieces;
  int64_t held = 0;
  const auto flush = [&] {
    if (held > 0) attend_absorbed(pool, step, pieces);
    pieces.clear(), held = 0;
  };
  for (const int32_t request : requests) {
    for (int64_t row = 0, rows = 0; row < step.rows(request); row += rows) {
      rows = std::min(step.rows(request) - row, most - held);
      pieces.push_back({request, static_cast<int32_t>(row), static_cast<int32_t>(rows)});
      held += rows;
      if (held == most) flush();
    }
  }
  flush();
}

// ---- decompressed ------------------------------------------------------------------------------------------

// Keys and values of one head of one request, [keys, nope + rotary + value_size] from position `first` on.
struct Unit {
  int32_t request, head;
  int64_t first, keys, offset;  // offset: into the group's scratch
};

template <typename T>
struct Decompressed {
  using Value = T;
  const LatentStep<T>& step;
  const std::vector<Unit>& units;  // in order of request and head
  int64_t tokens, heads, kv_heads, head_size, requests;
  const T* q;
  T* out;
  const int32_t* starts;
  Scoring scoring;
  const T* held;
  const float* sinks = nullptr;
  const float* slopes = nullptr;

  int64_t value_size() const { return step.value_size(); }
  int64_t stride() const { return head_size + step.value_size(); }
  int64_t first_position(int64_t request) const { return step.first_position(request); }
  int64_t first_key(int64_t position) const { return step.first_key(position); }
  int64_t end_key(int32_t, int64_t position) const { return position + 1; }
  void find_keys(const Item& item, int64_t block, int64_t first, int64_t last, const T** keys) const {
    const auto before = [](const Unit& unit, const Item& one) {
      return unit.request != one.request ? unit.request < one.request : unit.head < one.head;
    };
    const Unit& unit = *std::lower_bound(units.begin(), units.end(), item, before);
    std::fill(keys, keys + kKeys, zeros<T>());
    const T* from = held + unit.offset - unit.first * stride();
    for (int64_t at = std::max(first, block); at < std::min(last, block + kKeys); ++at) keys[at - block] = from + at * stride();
  }
  void prefetch(const T* const* keys) const {
    for (int key = 0; key < kKeys; ++key) prefetch_bytes(keys[key], stride());
  }
  void to_values(const T** keys) const {
    for (int key = 0; key < kKeys; ++key) keys[key] += head_size;
  }
};

// Keys [first, end) of a unit, counted from its first, from the latents in the cache.
template <typename T>
void decompress(const LatentStep<T>& step, const Unit& unit, int64_t first, int64_t end, T* held) {
  thread_local LatentScratch scratch;
  TileShapes shapes;
  RowsTimesMatrix<T> products(scratch, shapes);
  const int64_t stride = step.query_size() + step.value_size(), head = unit.head;
  const Packing keys = pack_transposed(step.w_uk + head * step.nope * step.latent, step.latent, step.nope, scratch.matrix);
  const Packing values = pack_straight(step.w_uv + head * step.latent * step.value_size(), step.latent, step.value_size(), scratch.other);
  for (int64_t key = first; key < end; key += kLatentRows) {
    const int count = static_cast<int>(std::min<int64_t>(kLatentRows, end - key));
    const auto from = [&](int at) { return step.slot(unit.request, unit.first + key + at); };
    const auto to = [&](int at) { return held + unit.offset + (key + at) * stride; };
    products.load(count, step.latent, from);
    products.multiply(scratch.matrix, keys, step.nope, to);
    products.multiply(scratch.other, values, step.value_size(), [&](int at) { return to(at) + step.query_size(); });
    for (int at = 0; at < count; ++at) std::memcpy(to(at) + step.nope, from(at) + step.latent, step.rotary * sizeof(T));
  }
}

// Attention of one group of units.
template <typename T>
void attend_decompressed(ffi::ThreadPool& pool, const LatentStep<T>& step, const std::vector<Unit>& units) {
  thread_local std::vector<T> scratch;
  struct Share {
    const Unit* unit;
    int64_t first, end;
  };
  std::vector<Share> shares;
  std::vector<Item> items;
  const int64_t stride = step.query_size() + step.value_size();
  scratch.resize(units.back().offset + units.back().keys * stride);
  T* const held = scratch.data();
  const Decompressed<T> problem{step, units, step.tokens, step.heads, step.heads, step.query_size(), step.requests, step.q, step.out,
                                step.starts, step.scoring, held};
  for (const Unit& unit : units) {
    for (int64_t first = 0; first < unit.keys; first += kRowsPerShare) {
      shares.push_back({&unit, first, std::min(unit.keys, first + kRowsPerShare)});
    }
    plan(problem, unit.request, unit.head, unit.head + 1, items);
  }
  parallel_for(pool, static_cast<int64_t>(shares.size()), [&](int64_t index) {
    decompress(step, *shares[index].unit, shares[index].first, shares[index].end, held);
  });
  attend(pool, problem, std::move(items));
}

// Attention of the rows of `requests` in the decompressed form.
template <typename T>
void attend_decompressed_in_groups(ffi::ThreadPool& pool, const LatentStep<T>& step, const std::vector<int32_t>& requests) {
  const int64_t stride = step.query_size() + step.value_size(), most = kGroupBytes / static_cast<int64_t>(sizeof(T));
  std::vector<Unit> units;
  int64_t held = 0;
  for (const int32_t request : requests) {
    const int64_t first = step.first_key(step.first_position(request)), keys = step.seq_lens[request] - first;
    for (int32_t head = 0; head < step.heads; ++head) {
      if (!units.empty() && held + keys * stride > most) {
        attend_decompressed(pool, step, units);
        units.clear(), held = 0;
      }
      units.push_back({request, head, first, keys, held});
      held += keys * stride;
    }
  }
  if (!units.empty()) attend_decompressed(pool, step, units);
}

}  // namespace fxhlo
