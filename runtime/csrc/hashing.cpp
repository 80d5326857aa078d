// SHA-256 (FIPS 180-4) of many pieces at once, on threads of its own while the caller goes on:
// sixteen pieces side by side in the lanes of AVX-512 registers, twice as fast as one after the
// other with the processor's own instructions for it.
// A library of its own: it is built for one level, and only loaded where the processor has that.

// GCC would put the sums into another order, and lengthen the chain from one round to the next.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("no-tree-reassoc")
#endif

#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace {

constexpr uint32_t SHA256_START[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
constexpr uint32_t SHA256_K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};

// Sixteen pieces under way. A lane without one reads `blank` over and over.
struct Lanes {
  alignas(64) uint32_t state[8][16];
  alignas(64) uint8_t tail[16][128];  // the last bytes of a piece with the padding behind them
  const uint8_t *at[16];
  int64_t blocks[16];  // left where `at` points
  int64_t last[16];    // blocks in `tail`; 0 when they are being read
  int64_t piece[16];   // -1: none
};

inline void start_lane(Lanes &l, int lane, int64_t piece, const uint8_t *data, int64_t size) {
  for (int i = 0; i < 8; i++) l.state[i][lane] = SHA256_START[i];
  const int64_t rest = size % 64;
  uint8_t *tail = l.tail[lane];
  memset(tail, 0, 128);
  if (rest) memcpy(tail, data + size - rest, rest);
  tail[rest] = 0x80;
  l.piece[lane] = piece;
  l.last[lane] = rest < 56 ? 1 : 2;
  for (int i = 0; i < 8; i++)
    tail[64 * l.last[lane] - 1 - i] = uint8_t(uint64_t(size) * 8 >> (8 * i));
  l.at[lane] = data;
  l.blocks[lane] = size / 64;
}

// Row i of a 16x16 matrix of words becomes column i.
inline void transpose(__m512i r[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; i++) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

#define XOR3(a, b, c) _mm512_ternarylogic_epi32(a, b, c, 0x96)

inline void run_blocks(Lanes &l, const int64_t step[16], int64_t count) {
  const __m512i swapped = _mm512_broadcast_i32x4(
      _mm_set_epi8(12, 13, 14, 15, 8, 9, 10, 11, 4, 5, 6, 7, 0, 1, 2, 3));
  __m512i s[8];
  for (int i = 0; i < 8; i++) s[i] = _mm512_load_si512(l.state[i]);
  for (int64_t block = 0; block < count; block++) {
    __m512i w[16];
    for (int i = 0; i < 16; i++) {
      w[i] = _mm512_shuffle_epi8(_mm512_loadu_si512(l.at[i]), swapped);
      l.at[i] += step[i];
    }
    transpose(w);
    __m512i a = s[0], b = s[1], c = s[2], d = s[3], e = s[4], f = s[5], g = s[6], h = s[7];
#pragma GCC unroll 64
    for (int t = 0; t < 64; t++) {
      if (t >= 16) {
        const __m512i x = w[(t + 1) & 15], y = w[(t + 14) & 15];
        const __m512i low = XOR3(_mm512_ror_epi32(x, 7), _mm512_ror_epi32(x, 18),
                                        _mm512_srli_epi32(x, 3));
        const __m512i high = XOR3(_mm512_ror_epi32(y, 17), _mm512_ror_epi32(y, 19),
                                         _mm512_srli_epi32(y, 10));
        w[t & 15] = _mm512_add_epi32(_mm512_add_epi32(w[t & 15], low),
                                     _mm512_add_epi32(w[(t + 9) & 15], high));
      }
      const __m512i sum = XOR3(_mm512_ror_epi32(e, 6), _mm512_ror_epi32(e, 11),
                                      _mm512_ror_epi32(e, 25));
      const __m512i choice = _mm512_ternarylogic_epi32(e, f, g, 0xca);
      const __m512i word = _mm512_add_epi32(
          h, _mm512_add_epi32(w[t & 15], _mm512_set1_epi32(int(SHA256_K[t]))));
      const __m512i first = _mm512_add_epi32(_mm512_add_epi32(word, choice), sum);
      const __m512i other = XOR3(_mm512_ror_epi32(a, 2), _mm512_ror_epi32(a, 13),
                                        _mm512_ror_epi32(a, 22));
      const __m512i majority = _mm512_ternarylogic_epi32(a, b, c, 0xe8);
      h = g, g = f, f = e;
      e = _mm512_add_epi32(_mm512_add_epi32(_mm512_add_epi32(d, word), choice), sum);
      d = c, c = b, b = a;
      a = _mm512_add_epi32(_mm512_add_epi32(first, majority), other);
    }
    const __m512i added[8] = {a, b, c, d, e, f, g, h};
    for (int i = 0; i < 8; i++) s[i] = _mm512_add_epi32(s[i], added[i]);
  }
  for (int i = 0; i < 8; i++) _mm512_store_si512(l.state[i], s[i]);
}

// Pieces that threads take one after the other, until all are taken or nobody wants them any more.
struct Job {
  int64_t count;
  const uint8_t *const *data;
  const int64_t *sizes;
  std::vector<uint8_t> digests, done;  // `done` is written and read under `mutex`
  std::atomic<int64_t> next{0};
  std::atomic<bool> stopped{false};
  std::mutex mutex;
  std::condition_variable finished;
  std::vector<std::thread> threads;
};

constexpr int64_t LONGEST_RUN = 1 << 12;  // blocks between two looks at `stopped`

void work(Job &job) {
  static const uint8_t blank[64] = {};
  Lanes l;
  for (int64_t &piece : l.piece) piece = -1;
  while (!job.stopped.load(std::memory_order_relaxed)) {
    int64_t shortest = INT64_MAX, step[16];
    for (int i = 0; i < 16; i++) {
      if (l.piece[i] < 0 && job.next.load(std::memory_order_relaxed) < job.count) {
        const int64_t piece = job.next.fetch_add(1);
        if (piece < job.count) start_lane(l, i, piece, job.data[piece], job.sizes[piece]);
      }
      if (l.piece[i] >= 0 && l.blocks[i] == 0) {
        l.at[i] = l.tail[i];
        l.blocks[i] = l.last[i];
        l.last[i] = 0;
      }
      step[i] = l.piece[i] < 0 ? 0 : 64;
      if (l.piece[i] < 0)
        l.at[i] = blank;
      else
        shortest = std::min(shortest, l.blocks[i]);
    }
    if (shortest == INT64_MAX) return;
    shortest = std::min(shortest, LONGEST_RUN);
    run_blocks(l, step, shortest);
    for (int i = 0; i < 16; i++) {
      if (l.piece[i] < 0) continue;
      l.blocks[i] -= shortest;
      if (l.blocks[i] || l.last[i]) continue;
      for (int word = 0; word < 8; word++) {
        const uint32_t found = __builtin_bswap32(l.state[word][i]);
        memcpy(job.digests.data() + 32 * l.piece[i] + 4 * word, &found, 4);
      }
      {
        const std::lock_guard<std::mutex> lock(job.mutex);
        job.done[l.piece[i]] = 1;
      }
      job.finished.notify_all();
      l.piece[i] = -1;
    }
  }
}

}  // namespace

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Begins to hash `count` pieces on threads of its own. `data`, `sizes` and the pieces must live
// until infopt_sha256_end, which is to be called once.
EXPORTED void *infopt_sha256_begin(int64_t count, const uint8_t *const *data,
                                   const int64_t *sizes, int64_t threads) {
  Job *job = new Job;
  job->count = count, job->data = data, job->sizes = sizes;
  job->digests.resize(32 * count), job->done.resize(count);
  try {
    while (int64_t(job->threads.size()) < threads) job->threads.emplace_back(work, std::ref(*job));
  } catch (const std::system_error &) {
    if (job->threads.empty()) work(*job);  // no thread to be had
  }
  return job;
}

// Waits for the digest of a piece, so long at most. Whether it is there, in digest[0 .. 31].
EXPORTED int64_t infopt_sha256_wait(void *begun, int64_t piece, int64_t milliseconds,
                                    uint8_t *digest) {
  Job &job = *static_cast<Job *>(begun);
  std::unique_lock<std::mutex> lock(job.mutex);
  const auto limit = std::chrono::milliseconds(milliseconds);
  if (!job.finished.wait_for(lock, limit, [&] { return job.done[piece] != 0; })) return 0;
  memcpy(digest, job.digests.data() + 32 * piece, 32);
  return 1;
}

// Nothing is read any more when it returns, finished or not.
EXPORTED void infopt_sha256_end(void *begun) {
  Job *job = static_cast<Job *>(begun);
  job->stopped = true;
  for (std::thread &thread : job->threads) thread.join();
  delete job;
}
