// Attention over a paged cache: where a block's keys are, and the check that every page to be read is there.
//
// A `Problem` of attention_walk.h, with these members as well:
//   int64_t blocks, block_size, pages; const int32_t *seq_lens [requests], *starts [requests + 1]
//   const int32_t* table(request): its pages
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "attention_walk.h"
#include "door.h"

namespace fxhlo {

// Pointers to the keys of one block; to zeros for keys outside [first, last). cache: the key of slot 0; stride: values per slot.
template <typename Problem, typename T>
void find_paged_keys(const Problem& p, const Item& item, int64_t block, int64_t first, int64_t last, const T* cache, int64_t stride,
                     const T** keys) {
  const int32_t* table = p.table(item.request);
  std::fill(keys, keys + kKeys, zeros<T>());
  const int64_t begin = std::max(first, block), end = std::min(last, block + kKeys);
  if (begin >= end) return;
  int64_t page = begin / p.block_size, offset = begin % p.block_size;
  for (int64_t at = begin; at < end; ++page, offset = 0) {
    const T* slot = cache + (table[page] * p.block_size + offset) * stride;
    for (; at < end && offset < p.block_size; ++at, ++offset, slot += stride) keys[at - block] = slot;
  }
}

// Checks that every page to be read is in the cache and every row in the batch; rows of no request come last.
template <typename Problem>
void check_requests(const Problem& p, Door& door) {
  check_rows(p.starts, p.requests, p.tokens, door);
  for (int64_t request = 0; request < p.requests && !door.failed(); ++request) {
    const auto where = [&] { return "request " + std::to_string(request) + ": "; };
    const int64_t length = p.seq_lens[request];
    if (p.starts[request] == p.starts[request + 1] || length <= 0) continue;
    door.require(length <= p.pages * p.block_size, [&] {
      return where() + "seq_lens is " + std::to_string(length) + ", its block table holds " +
             std::to_string(p.pages * p.block_size) + " tokens";
    });
    if (door.failed()) return;
    const int64_t last = (length - 1) / p.block_size;
    for (int64_t page = p.first_key(std::max<int64_t>(0, p.first_position(request))) / p.block_size; page <= last; ++page) {
      const int32_t block = p.table(request)[page];
      door.require(0 <= block && block < p.blocks, [&] {
        return where() + "entry " + std::to_string(page) + " of its block table is " + std::to_string(block) + ", the cache has " +
               std::to_string(p.blocks) + " blocks";
      });
    }
  }
}

}  // namespace fxhlo
