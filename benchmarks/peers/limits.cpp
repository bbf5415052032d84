// What this machine can do at most, with N threads: ./limits THREADS prints one JSON object.
//
// read_gb_s: every thread reads its own part of 512 MiB (far more than any cache) with four independent sums.
// *_gops: independent accumulators in registers, two operations for each multiply-add; nothing touches memory. The
// bfloat16 and int8 rates are those of dpbf16ps and dpbusd, and 0 where the CPU has no such instruction. The compiler
// is given -march=native, so without AVX-512 the float32 loop is vectorised to whatever there is.

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <immintrin.h>
#include <thread>
#include <vector>

namespace {

using Clock = std::chrono::steady_clock;
constexpr int kRepeats = 15;

// Operations or bytes per second of `work`, which returns how many it did: the best of several, all threads together.
double best_rate(int threads, const std::function<double(int)>& work) {
  double best = 0;
  for (int repeat = 0; repeat < kRepeats; ++repeat) {
    std::vector<std::thread> pool;
    std::vector<double> done(threads);
    const auto start = Clock::now();
    for (int t = 0; t < threads; ++t) pool.emplace_back([&, t] { done[t] = work(t); });
    for (auto& thread : pool) thread.join();
    const double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    double sum = 0;
    for (double d : done) sum += d;
    if (sum / seconds > best) best = sum / seconds;
  }
  return best;
}

std::atomic<float> sink{0};  // keeps the results, so that no loop is optimised away

double read_memory(const std::vector<float>& memory, int threads, int t) {
  const size_t part = memory.size() / threads;
  const float* p = memory.data() + part * t;
  float sums[64] = {};
  for (size_t i = 0; i + 64 <= part; i += 64)
    for (int j = 0; j < 64; ++j) sums[j] += p[i + j];
  sink = sink + sums[t];
  return static_cast<double>(part) * sizeof(float);
}

constexpr long kSteps = 4'000'000;
constexpr int kAccumulators = 12;  // latency 4-5 cycles times two units, and some to spare

#ifdef __AVX512F__
double float32_products(int) {
  __m512 sums[kAccumulators], a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(1e-9f);
  for (auto& s : sums) s = _mm512_setzero_ps();
  for (long i = 0; i < kSteps; ++i) {
    for (auto& s : sums) s = _mm512_fmadd_ps(a, b, s);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  float total = 0;
  for (auto& s : sums) total += _mm512_reduce_add_ps(s);
  sink = sink + total;
  return 2.0 * 16 * kAccumulators * kSteps;
}
#else
double float32_products(int) {
  float sums[8 * kAccumulators] = {}, a = 1.0f, b = 1e-9f;
  for (long i = 0; i < kSteps; ++i) {
    for (auto& s : sums) s += a * b;
    asm volatile("" : "+m"(a), "+m"(b));
  }
  for (auto s : sums) sink = sink + s;
  return 2.0 * 8 * kAccumulators * kSteps;
}
#endif

double int8_products(int) {
#ifdef __AVX512VNNI__
  __m512i sums[kAccumulators], a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
  for (auto& s : sums) s = _mm512_setzero_si512();
  for (long i = 0; i < kSteps; ++i) {
    for (auto& s : sums) s = _mm512_dpbusd_epi32(s, a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  int total = 0;
  for (auto& s : sums) total += _mm512_reduce_add_epi32(s);
  sink = sink + static_cast<float>(total);
  return 2.0 * 64 * kAccumulators * kSteps;
#else
  return 0;
#endif
}

double bfloat16_products(int) {
#ifdef __AVX512BF16__
  __m512 sums[kAccumulators];
  __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(1.0f), _mm512_set1_ps(1.0f));
  __m512bh b = a;
  for (auto& s : sums) s = _mm512_setzero_ps();
  for (long i = 0; i < kSteps; ++i) {
    for (auto& s : sums) s = _mm512_dpbf16_ps(s, a, b);
    asm volatile("" : "+v"(a), "+v"(b));
  }
  float total = 0;
  for (auto& s : sums) total += _mm512_reduce_add_ps(s);
  sink = sink + total;
  return 2.0 * 32 * kAccumulators * kSteps;
#else
  return 0;
#endif
}

}  // namespace

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 1;
  const std::vector<float> memory(128u << 20, 1.0f);
  const double read = best_rate(threads, [&](int t) { return read_memory(memory, threads, t); });
  std::printf(
      "{\"read_gb_s\": %.2f, \"float32_gops\": %.1f, \"bfloat16_gops\": %.1f, \"int8_gops\": %.1f}\n", read / 1e9,
      best_rate(threads, float32_products) / 1e9, best_rate(threads, bfloat16_products) / 1e9,
      best_rate(threads, int8_products) / 1e9);
}
