// Splitting one FFI call over XLA's intra-op thread pool.
//
// The calling thread works through the chunks itself and helpers join it, so a busy pool costs time but never
// a deadlock: what no helper has claimed the caller does, and it waits only for chunks already being worked on.
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

// What caller and helpers share. Helpers own it too: one that starts after the call has returned finds no chunk
// left and never touches `body`, which lives on the caller's stack.
template <typename Body>
struct SharedWork {
  SharedWork(const Body* body, int64_t chunks) : body(body), chunks(chunks) {}

  void work() {
    for (int64_t chunk; (chunk = next.fetch_add(1, std::memory_order_relaxed)) < chunks;) {
      attempt(chunk);
      done.fetch_add(1, std::memory_order_release);
    }
  }

  // An exception that left a thread of the pool would end the process: the first one is kept for the caller, and what
  // has not begun by then is left out.
  void attempt(int64_t chunk) noexcept {
    if (failed.load(std::memory_order_relaxed)) return;
    try {
      (*body)(chunk);
    } catch (...) {
      if (!failed.exchange(true, std::memory_order_relaxed)) problem = std::current_exception();
    }
  }

  void wait() const {
    // A chunk takes microseconds, a futex as long: spin, and give the core away only where that takes long.
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
  std::exception_ptr problem;  // written before the `done` of its chunk, read after all of them
};

// Calls body(chunk) for every chunk in [0, chunks), in any order and on any thread; returns when all are done. Throws the
// first exception that a body has thrown.
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
    // Those that are scheduled already use the caller's body: go on with fewer.
  }
  shared->work();
  shared->wait();
  if (shared->problem) std::rethrow_exception(shared->problem);
}

}  // namespace fxhlo
