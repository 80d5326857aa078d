// What this machine can do at most: float32 FMA, bf16 dot products, and reading memory, on N threads.
// Usage: limits THREADS; prints one JSON object of operations and bytes per second.
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <thread>
#include <vector>
#ifdef __AMX_BF16__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#ifdef __AVX512F__
constexpr int kBytes = 64;
#else
constexpr int kBytes = 32;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kAccumulators = 12;
// Named accumulators: GCC keeps an array of them in memory.
#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
volatile float sink;

static double now() {
  using clock = std::chrono::steady_clock;
  return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// A short run ends before the scheduler would spread the threads over the cores.
static void pin(int thread) {
  cpu_set_t allowed, one;
  sched_getaffinity(0, sizeof allowed, &allowed);
  CPU_ZERO(&one);
  for (int cpu = 0, seen = 0; cpu < CPU_SETSIZE; cpu++)
    if (CPU_ISSET(cpu, &allowed) && seen++ == thread) CPU_SET(cpu, &one);
  if (CPU_COUNT(&one)) pthread_setaffinity_np(pthread_self(), sizeof one, &one);
}

// Best of many short runs of `work(thread)` on all threads at once; work returns its operations.
// Short, because other programs may hold the cores most of the time; the best run had them free.
static double best_rate(int threads, const std::function<double(int)> &work) {
  double best = 0;
  for (int repeat = 0; repeat < 60; repeat++) {
    std::vector<double> done(threads), began(threads), ended(threads);
    std::vector<std::thread> pool;
    std::atomic<int> ready{0};
    for (int t = 0; t < threads; t++)
      pool.emplace_back([&, t] {
        pin(t);
        ready++;
        while (ready < threads) std::this_thread::yield();
        began[t] = now();
        done[t] = work(t);
        ended[t] = now();
      });
    for (auto &thread : pool) thread.join();
    double total = 0;
    for (double d : done) total += d;
    double seconds = *std::max_element(ended.begin(), ended.end()) -
                     *std::min_element(began.begin(), began.end());
    if (total / seconds > best) best = total / seconds;
  }
  return best;
}

static double fma_work(int) {
  Vector b, c;
  for (unsigned i = 0; i < kBytes / 4; i++) b[i] = 0.999f, c[i] = 1e-3f;
#define DECLARE(i) Vector a##i = c;
#define STEP(i) a##i = a##i * b + c; asm volatile("" : "+v"(a##i));
#define TAKE(i) sink = a##i[0];
  EACH(DECLARE)
  const long rounds = 400000;
  for (long r = 0; r < rounds; r++) {
    EACH(STEP)
  }
  EACH(TAKE)
#undef DECLARE
#undef STEP
  return 2.0 * rounds * kAccumulators * (kBytes / 4);
}

#ifdef __AVX512BF16__
static double bf16_work(int) {
  __m512bh b = (__m512bh)_mm512_set1_epi16(0x3f00), c = (__m512bh)_mm512_set1_epi16(0x3c00);
#define DECLARE(i) __m512 a##i = _mm512_set1_ps(0);
#define STEP(i) a##i = _mm512_dpbf16_ps(a##i, b, c); asm volatile("" : "+v"(a##i));
  EACH(DECLARE)
  const long rounds = 400000;
  for (long r = 0; r < rounds; r++) {
    EACH(STEP)
  }
  EACH(TAKE)
  return 4.0 * rounds * kAccumulators * 16;
}
#endif

#ifdef __AVX512VNNI__
static double int8_work(int) {
  __m512i b = _mm512_set1_epi8(1), c = _mm512_set1_epi8(2);
#define DECLARE_INT(i) __m512i a##i = _mm512_setzero_si512();
#define STEP_INT(i) a##i = _mm512_dpbusd_epi32(a##i, b, c); asm volatile("" : "+v"(a##i));
#define TAKE_INT(i) sink = float(_mm512_reduce_add_epi32(a##i));
  EACH(DECLARE_INT)
  const long rounds = 400000;
  for (long r = 0; r < rounds; r++) {
    EACH(STEP_INT)
  }
  EACH(TAKE_INT)
  return 8.0 * rounds * kAccumulators * 16;
}
#endif

#ifdef __AMX_BF16__
struct __attribute__((packed)) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t columns[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

static double amx_work(int) {
  TileConfig config;
  _tile_loadconfig(&config);
  _tile_zero(4);
  _tile_zero(5);
  _tile_zero(6);
  _tile_zero(7);
  const long rounds = 20000;
  for (long r = 0; r < rounds; r++) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4.0 * rounds * 16 * 16 * 64;
}
#endif

static double read_rate(int threads, size_t mebibytes) {
  size_t count = (mebibytes << 20) / threads / kBytes;
  std::vector<Vector *> data(threads);
  for (auto &p : data) {
    p = static_cast<Vector *>(aligned_alloc(4096, count * kBytes));
    for (size_t i = 0; i < count; i++) p[i] = Vector{} + 1.0f;
  }
  size_t passes = 1 + 32 / mebibytes;
  double rate = best_rate(threads, [&](int t) {
    Vector s0{}, s1{}, s2{}, s3{};
#define ADD(k) s##k += data[t][i + k]; asm volatile("" : "+v"(s##k));
    for (size_t pass = 0; pass < passes; pass++)
      for (size_t i = 0; i + 4 <= count; i += 4) {
        ADD(0) ADD(1) ADD(2) ADD(3)
      }
    sink = s0[0] + s1[0] + s2[0] + s3[0];
    return double(passes) * count * kBytes;
  });
  for (auto *p : data) free(p);
  return rate;
}

int main(int, char **arguments) {
  int threads = atoi(arguments[1]);
  double bf16 = 0;
#ifdef __AVX512BF16__
  bf16 = best_rate(threads, bf16_work);
#endif
#ifdef __AMX_BF16__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  if (syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0) bf16 = best_rate(threads, amx_work);
#endif
  double int8 = 0;
#ifdef __AVX512VNNI__
  int8 = best_rate(threads, int8_work);
#endif
  printf("{\"fp32\": %g, \"bf16\": %g, \"int8\": %g, \"read\": {", best_rate(threads, fma_work), bf16,
         int8);
  const size_t sizes[] = {16, 64, 256, 512};
  for (size_t s : sizes) printf("%s\"%zu\": %g", s == sizes[0] ? "" : ", ", s, read_rate(threads, s));
  printf("}}\n");
}
