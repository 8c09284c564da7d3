// limits THREADS SECONDS: what the processor does at most, a line for each: "name rate", in bytes or operations a second.
//
//   bandwidth  reads of memory that no cache holds, on huge pages where the system has them
//   float32    fused multiply-adds of vectors that stay in registers
//   bfloat16   dot products of pairs, where the instruction set that this is compiled for has them
//
// Each is the best of rounds, all threads together.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace {

constexpr int64_t kBytes = int64_t{1} << 30;
constexpr int kChains = 12;  // independent sums: as many as hide an instruction's latency, and registers hold
constexpr int64_t kSteps = 1 << 21;

double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// The best rate of `work`, which each thread does once a round; `amount` of one thread.
double rate(int threads, double limit, double amount, const std::function<void(int)>& work) {
  double best = 0;
  for (const double end = seconds() + limit; best == 0 || seconds() < end;) {
    std::vector<std::thread> running;
    const double begun = seconds();
    for (int thread = 0; thread < threads; ++thread) running.emplace_back(work, thread);
    for (auto& one : running) one.join();
    best = std::max(best, threads * amount / (seconds() - begun));
  }
  return best;
}

volatile float kept;

#if defined(__AVX512F__)
using Floats = __m512;
Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__AVX2__) && defined(__FMA__)
using Floats = __m256;
Floats multiply_add(Floats a, Floats b, Floats c) { return _mm256_fmadd_ps(a, b, c); }
#else
typedef float Floats __attribute__((vector_size(16)));
Floats multiply_add(Floats a, Floats b, Floats c) { return a * b + c; }
#endif

// The compiler must not see that chains compute the same: it would leave all but one out.
template <typename Vector, typename... Others>
void make_opaque(Vector (&sums)[kChains], Others&... others) {
  for (auto& sum : sums) asm volatile("" : "+x"(sum));
  (([&] { asm volatile("" : "+x"(others)); }()), ...);
}

void multiply_adds(int) {
  Floats sums[kChains] = {}, a{}, b{};
  make_opaque(sums, a, b);
  for (int64_t step = 0; step < kSteps; ++step) {
    for (auto& sum : sums) sum = multiply_add(a, b, sum);
    asm volatile("" : "+x"(a), "+x"(b));
  }
  for (auto& sum : sums) kept = sum[0];
}

#if defined(__AVX512BF16__)
void dot_products(int) {
  __m512 sums[kChains] = {};
  __m512i a{}, b{};
  make_opaque(sums, a, b);
  for (int64_t step = 0; step < kSteps; ++step) {
    for (auto& sum : sums) sum = _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
    asm volatile("" : "+x"(a), "+x"(b));
  }
  for (auto& sum : sums) kept = sum[0];
}
#endif

// Reads in the order of the native products: panels of 16 rows of 2 KiB, the next panel prefetched.
void read(const char* from, int64_t bytes) {
  constexpr int64_t kRow = 2048, kRows = 16, kLine = 64;
  uint64_t sum = 0;
  for (int64_t panel = 0; panel + 2 * kRow * kRows <= bytes; panel += kRow * kRows) {
    for (int64_t line = 0; line < kRow; line += kLine) {
      for (int64_t row = 0; row < kRows; ++row) {
        const char* at = from + panel + row * kRow + line;
        __builtin_prefetch(at + kRow * kRows, 0, 2);
#if defined(__AVX512F__)
        const __m512i values = _mm512_load_si512(at);
        asm volatile("" ::"x"(values));
#else
        for (int64_t word = 0; word < kLine; word += 8) {
          uint64_t value;
          std::memcpy(&value, at + word, sizeof(value));
          sum += value;
        }
#endif
      }
    }
  }
  kept = static_cast<float>(sum);
}

}  // namespace

int main(int count, char** given) {
  const int threads = count > 1 ? std::atoi(given[1]) : 1;
  const double limit = count > 2 ? std::atof(given[2]) : 1.0;
  void* memory = nullptr;
  if (threads < 1 || posix_memalign(&memory, 2 << 20, kBytes) != 0) return 1;
#if defined(MADV_HUGEPAGE)
  madvise(memory, kBytes, MADV_HUGEPAGE);
#endif
  std::memset(memory, 1, kBytes);
  const int64_t share = kBytes / threads / 4096 * 4096;
  const char* first = static_cast<const char*>(memory);
  std::printf("bandwidth %.6g\n", rate(threads, limit, share, [&](int thread) { read(first + thread * share, share); }));
  const double operations = 2.0 * kChains * kSteps * (sizeof(Floats) / sizeof(float));
  std::printf("float32 %.6g\n", rate(threads, limit, operations, multiply_adds));
#if defined(__AVX512BF16__)
  std::printf("bfloat16 %.6g\n", rate(threads, limit, 2 * operations, dot_products));
#endif
  return 0;
}
