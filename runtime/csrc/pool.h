// The thread pool: persistent threads that share one step's tasks with the calling thread.
//
// A step is cut into chunks. `ticket` holds (threads, chunks, next chunk) in one word; whoever
// advances it owns that chunk, and the step cannot end before every owned chunk is counted in
// `done`. So a thread that is not scheduled holds nobody up unless it owns a chunk, and the job's
// fields are only read by owners: they were written before the ticket was published.
//
// Waiting spins for a short while, then sleeps in the kernel. When waits are long again and again
// (more running threads than cores) spinning only takes time from whom we wait for, so the next
// waits sleep at once.
#pragma once

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <cstdint>
#include <ctime>
#include <new>

#include "call.h"

#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

// Hidden: two versions of the library in one process must not share their pools.
namespace infopt __attribute__((visibility("hidden"))) {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield" ::: "memory");
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

inline int64_t nanoseconds() {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return int64_t{now.tv_sec} * 1000000000 + now.tv_nsec;
}

// Sleeps while *word == seen (may wake early); a platform without futex gives up its time slice.
inline void sleep_while(std::atomic<uint32_t> *word, uint32_t seen) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
#else
  if (word->load() == seen) sched_yield();
#endif
}

inline void wake(std::atomic<uint32_t> *word, int count) {
#if defined(__linux__)
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, count, nullptr, nullptr, 0);
#else
  (void)word, (void)count;
#endif
}

inline int current_core() {
#if defined(__linux__)
  return sched_getcpu();
#else
  return -1;
#endif
}

// Moves this thread to any other core it may run on. Some kernels wake a thread on the core of
// its waker although another one is idle; the two would take turns for the length of a call.
inline void leave_core(int core) {
#if defined(__linux__)
  cpu_set_t allowed, others;
  if (core < 0 || core >= CPU_SETSIZE) return;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  others = allowed;
  CPU_CLR(core, &others);
  if (CPU_COUNT(&others) == 0) return;
  sched_setaffinity(0, sizeof others, &others);
  sched_setaffinity(0, sizeof allowed, &allowed);
#else
  (void)core;
#endif
}

struct Job {
  infopt_kernel kernel;
  void *const *pointers;
  const int64_t *numbers;
  char *scratch;           // thread i has its own at scratch + i * scratch_stride
  int64_t scratch_stride;
  int64_t tasks;
};

class Pool {
 public:
  static constexpr int MAX_THREADS = 256;
  static constexpr int64_t CHUNKS_PER_THREAD = 4;

  // The process's pool, made at first use and again in a forked child. Never destroyed: its
  // threads may sleep until the process ends.
  static Pool *get() {
    static const int registered = pthread_atfork(nullptr, nullptr, [] { instance().store(nullptr); });
    (void)registered;
    Pool *pool = instance().load(std::memory_order_acquire);
    if (pool == nullptr) {
      Pool *made = new Pool;
      if (instance().compare_exchange_strong(pool, made)) return made;
      delete made;
    }
    return pool;
  }

  bool try_enter() {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    caller_core_.store(current_core(), std::memory_order_relaxed);
    return true;
  }
  void leave() { busy_.store(false, std::memory_order_release); }

  // Runs all tasks of `job` on up to `threads` threads, this one included. Only between
  // try_enter and leave. Returns when every task has run and its writes are visible here.
  void run(const Job &job, int threads) {
    threads = ensure(threads);
    int64_t chunks = CHUNKS_PER_THREAD * threads;
    if (chunks > job.tasks) chunks = job.tasks;
    job_ = job;
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(pack(threads, chunks), std::memory_order_seq_cst);
    for (int i = 1; i < threads; ++i) {
      if (asleep_[i].word.load(std::memory_order_seq_cst) != 0) {
        asleep_[i].word.store(0, std::memory_order_seq_cst);
        wake(&asleep_[i].word, 1);
      }
    }
    const int64_t begin = nanoseconds();
    const uint32_t mine = work(0);
    if (done_.load(std::memory_order_acquire) == chunks) {
      note_wait(false);
    } else {
      wait_until_done(static_cast<uint32_t>(chunks), begin, mine);
    }
  }

 private:
  static constexpr int64_t SPIN = 40000;         // nanoseconds
  static constexpr int64_t YIELD_AFTER = 2000;
  static constexpr int64_t SPIN_BUSY = 1000;     // when the machine is oversubscribed
  static constexpr int64_t MOVE_INTERVAL = 2000000;
  static constexpr int LONG_WAITS = 4;           // so many long waits in a row mean it is

  static std::atomic<Pool *> &instance() {
    static std::atomic<Pool *> pool{nullptr};
    return pool;
  }

  // threads: 12 bits | chunks: 20 bits | next chunk: 32 bits
  static uint64_t pack(int threads, int64_t chunks) {
    return uint64_t(threads) << 52 | uint64_t(chunks) << 32;
  }
  static int64_t chunks_of(uint64_t ticket) { return int64_t(ticket >> 32 & 0xFFFFF); }
  static int64_t next_of(uint64_t ticket) { return int64_t(ticket & 0xFFFFFFFF); }
  static int threads_of(uint64_t ticket) { return int(ticket >> 52); }

  static bool offers_work(uint64_t ticket, int thread) {
    return next_of(ticket) < chunks_of(ticket) && thread < threads_of(ticket);
  }

  // Starts threads that are missing; returns how many can take part.
  int ensure(int threads) {
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    while (started_ + 1 < threads) {
      pthread_t thread;
      Start *start = new Start{this, started_ + 1};
      if (pthread_create(&thread, nullptr, &Pool::serve, start) != 0) {
        delete start;
        return started_ + 1;
      }
      pthread_detach(thread);
      ++started_;
    }
    return threads;
  }

  struct Start {
    Pool *pool;
    int thread;
  };

  static void *serve(void *argument) {
    const Start start = *static_cast<Start *>(argument);
    delete static_cast<Start *>(argument);
    int64_t last_move = 0;
    for (;;) {
      start.pool->wait_for_work(start.thread, &last_move);
      start.pool->work(start.thread);
    }
    return nullptr;
  }

  // Takes chunks of the current step until none is left; returns how many it ran.
  uint32_t work(int thread) {
    uint32_t finished = 0;
    uint32_t chunks = 0;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (offers_work(ticket, thread)) {
      if (!ticket_.compare_exchange_weak(ticket, ticket + 1, std::memory_order_acq_rel,
                                         std::memory_order_acquire)) {
        continue;
      }
      const int64_t count = chunks_of(ticket), chunk = next_of(ticket);
      chunks = static_cast<uint32_t>(count);
      const infopt_call call{job_.pointers, job_.numbers,
                             job_.scratch + thread * job_.scratch_stride};
      job_.kernel(&call, job_.tasks / count * chunk + job_.tasks % count * chunk / count,
                  job_.tasks / count * (chunk + 1) + job_.tasks % count * (chunk + 1) / count);
      ++finished;
      ticket = ticket_.load(std::memory_order_acquire);
    }
    if (finished == 0) return 0;
    const uint32_t total = done_.fetch_add(finished, std::memory_order_seq_cst) + finished;
    if (thread != 0 && total == chunks && caller_sleeps_.load(std::memory_order_seq_cst)) {
      wake(&done_, 1);
    }
    return finished;
  }

  // The last chunks of others may take as long as one of `mine` did; longer is a sign of trouble.
  void wait_until_done(uint32_t chunks, int64_t work_begin, uint32_t mine) {
    const int64_t limit = spin();
    const int64_t begin = nanoseconds();
    const int64_t expected = 2 * (begin - work_begin) / (mine ? mine : 1) + SPIN;
    do {
      for (int i = 0; i < 32; ++i) {
        pause_briefly();
        if (done_.load(std::memory_order_acquire) == chunks) {
          note_wait(false);
          return;
        }
      }
    } while (keep_spinning(begin, limit));
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    for (uint32_t seen; (seen = done_.load(std::memory_order_seq_cst)) != chunks;) {
      sleep_while(&done_, seen);
    }
    caller_sleeps_.store(false, std::memory_order_relaxed);
    note_wait(nanoseconds() - begin > expected);
  }

  void wait_for_work(int thread, int64_t *last_move) {
    const int64_t limit = spin();
    const int64_t begin = nanoseconds();
    do {
      if (begin - *last_move > MOVE_INTERVAL &&
          current_core() == caller_core_.load(std::memory_order_relaxed)) {
        *last_move = begin;
        leave_core(current_core());
      }
      for (int i = 0; i < 32; ++i) {
        if (offers_work(ticket_.load(std::memory_order_acquire), thread)) return;
        pause_briefly();
      }
    } while (keep_spinning(begin, limit));
    // Either this thread sees the new ticket, or the caller sees that it sleeps.
    std::atomic<uint32_t> &asleep = asleep_[thread].word;
    asleep.store(1, std::memory_order_seq_cst);
    while (!offers_work(ticket_.load(std::memory_order_seq_cst), thread)) {
      sleep_while(&asleep, 1);
      if (asleep.load(std::memory_order_seq_cst) == 0) return;
    }
    asleep.store(0, std::memory_order_seq_cst);
  }

  // Past the first moment the core is offered to others: it may be one of ours that shares it.
  static bool keep_spinning(int64_t begin, int64_t limit) {
    const int64_t elapsed = nanoseconds() - begin;
    if (elapsed >= limit) return false;
    if (elapsed >= YIELD_AFTER) sched_yield();
    return true;
  }

  int64_t spin() const {
    return long_waits_.load(std::memory_order_relaxed) >= LONG_WAITS ? SPIN_BUSY : SPIN;
  }

  void note_wait(bool was_long) {
    const int waits = long_waits_.load(std::memory_order_relaxed);
    const int next = was_long ? (waits < 2 * LONG_WAITS ? waits + 1 : waits)
                              : (waits > 0 ? waits - 1 : 0);
    if (next != waits) long_waits_.store(next, std::memory_order_relaxed);
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> done_{0};
  std::atomic<bool> caller_sleeps_{false};
  struct alignas(64) Sleeper {
    std::atomic<uint32_t> word{0};  // 1 while the thread sleeps
  };

  Sleeper asleep_[MAX_THREADS];
  alignas(64) std::atomic<int> long_waits_{0};
  alignas(64) Job job_{};
  int started_ = 0;
  std::atomic<int> caller_core_{-1};
  alignas(64) std::atomic<bool> busy_{false};
};

}  // namespace infopt
