// The thread pool: persistent threads that share one step's tasks with the calling thread.
//
// A step is cut into blocks. `ticket` holds (threads, blocks, next block) in one word; whoever
// advances it owns the blocks between, large ranges first and small ones at the end. The step
// cannot end before every owned block is counted in `done`. So a thread that is not scheduled
// holds nobody up unless it owns a block, and the job's
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
    const int64_t blocks = job.tasks < MAX_BLOCKS ? job.tasks : MAX_BLOCKS;
    job_ = job;
    done_.store(0, std::memory_order_relaxed);
    ticket_.store(pack(threads, blocks), std::memory_order_seq_cst);
    for (int i = 1; i < threads; ++i) {
      if (asleep_[i].word.load(std::memory_order_seq_cst) != 0) {
        asleep_[i].word.store(0, std::memory_order_seq_cst);
        wake(&asleep_[i].word, 1);
      }
    }
    const int64_t begin = nanoseconds();
    work(0);
    if (done_.load(std::memory_order_acquire) == blocks) {
      note_wait(false);
    } else {
      wait_until_done(static_cast<uint32_t>(blocks), begin);
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

  // threads: 12 bits | blocks: 26 bits | next block: 26 bits
  static constexpr int FIELD = 26;
  static constexpr int64_t MAX_BLOCKS = (int64_t{1} << FIELD) - 1;

  static uint64_t pack(int threads, int64_t blocks) {
    return uint64_t(threads) << (2 * FIELD) | uint64_t(blocks) << FIELD;
  }
  static int64_t blocks_of(uint64_t ticket) { return int64_t(ticket >> FIELD) & MAX_BLOCKS; }
  static int64_t next_of(uint64_t ticket) { return int64_t(ticket) & MAX_BLOCKS; }
  static int threads_of(uint64_t ticket) { return int(ticket >> (2 * FIELD)); }

  static bool offers_work(uint64_t ticket, int thread) {
    return next_of(ticket) < blocks_of(ticket) && thread < threads_of(ticket);
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

  // How many blocks to take: half of an equal share of what is left, and a 32nd of one at least.
  static int64_t portion(uint64_t ticket) {
    const int64_t left = blocks_of(ticket) - next_of(ticket), threads = threads_of(ticket);
    const int64_t share = left / (2 * threads), least = blocks_of(ticket) / (32 * threads);
    const int64_t size = share > least ? share : least;
    return size < 1 ? 1 : size < left ? size : left;
  }

  // Takes blocks of the current step until none is left.
  void work(int thread) {
    int64_t finished = 0, blocks = 0;
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    while (offers_work(ticket, thread)) {
      const int64_t taken = portion(ticket);
      if (!ticket_.compare_exchange_weak(ticket, ticket + uint64_t(taken),
                                         std::memory_order_acq_rel, std::memory_order_acquire)) {
        continue;
      }
      blocks = blocks_of(ticket);
      const int64_t first = next_of(ticket), last = first + taken;
      const infopt_call call{job_.pointers, job_.numbers,
                             job_.scratch + thread * job_.scratch_stride};
      const int64_t whole = job_.tasks / blocks, rest = job_.tasks % blocks;
      job_.kernel(&call, whole * first + rest * first / blocks, whole * last + rest * last / blocks);
      finished += taken;
      ticket = ticket_.load(std::memory_order_acquire);
    }
    if (finished == 0) return;
    const int64_t total = done_.fetch_add(uint32_t(finished), std::memory_order_seq_cst) + finished;
    if (thread != 0 && total == blocks && caller_sleeps_.load(std::memory_order_seq_cst)) {
      wake(&done_, 1);
    }
  }

  // To wait longer for the last blocks of others than one worked oneself is a sign of trouble.
  void wait_until_done(uint32_t blocks, int64_t work_begin) {
    const int64_t limit = spin();
    const int64_t begin = nanoseconds();
    const int64_t expected = begin - work_begin + SPIN;
    do {
      for (int i = 0; i < 32; ++i) {
        pause_briefly();
        if (done_.load(std::memory_order_acquire) == blocks) {
          note_wait(false);
          return;
        }
      }
    } while (keep_spinning(begin, limit));
    caller_sleeps_.store(true, std::memory_order_seq_cst);
    for (uint32_t seen; (seen = done_.load(std::memory_order_seq_cst)) != blocks;) {
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
