// Splits one FFI call over XLA's intra-op thread pool.
//
// The calling thread processes chunks itself, and helpers join it, so that a busy pool costs time but cannot
// deadlock: the caller processes the chunks that no helper has claimed, and waits only for chunks already in progress.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <new>
#include <thread>

#include "xla/ffi/api/ffi.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif

namespace fxhlo {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// State shared by caller and helpers, owned by both: a helper that starts after the call has returned finds no chunk
// left and never accesses `body`, which is on the caller's stack.
template <typename Body>
struct SharedWork {
  SharedWork(const Body* body, int64_t chunks) : body(body), chunks(chunks) {}

  void work() {
    for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      attempt(chunk);
      done.fetch_add(1, std::memory_order_release);
    }
  }

  // An exception that escapes a pool thread would terminate the process: the first one is kept for the caller, and chunks
  // that have not started are skipped.
  void attempt(int64_t chunk) noexcept {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      (*body)(chunk);
    } catch (...) {
      if (!failed.exchange(true, std::memory_order_relaxed)) problem = std::current_exception();
    }
  }

  void wait() const {
    // A chunk takes microseconds, and so does a futex: spin first, and yield only if that takes long.
    for (int spins = 0; done.load(std::memory_order_acquire) < chunks; ++spins) {
      if (spins < 4096) {
        pause_briefly();
      } else {
        std::this_thread::yield();
      }
    }
  }

  const Body* body;
  const int64_t chunks;
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<int64_t> done{0};
  std::atomic<bool> failed{false};
  std::exception_ptr problem;  // written before its chunk's `done` increment, read after all of them
};

// Calls body(chunk) for every chunk in [0, chunks), in any order and on any thread; returns when all are done. Rethrows
// the first exception of a body.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t chunks, const Body& body) {
  const int64_t helpers = chunks < 2 ? 0 : std::min<int64_t>(pool.num_threads(), chunks) - 1;
  if (helpers <= 0) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) body(chunk);
    return;
  }
  auto shared = std::make_shared<SharedWork<Body>>(&body, chunks);
  try {
    for (int64_t helper = 0; helper < helpers; ++helper) pool.Schedule([shared] { shared->work(); });
  } catch (const std::bad_alloc&) {
    // Helpers already scheduled use the caller's body: continue with fewer.
  }
  shared->work();
  shared->wait();
  if (shared->problem) std::rethrow_exception(shared->problem);
}

}  // namespace fxhlo
