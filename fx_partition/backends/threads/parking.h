// How threads wait for each other.
//
// A thread spins for at most `spin_ns`, then parks on a futex. The thread that moves a slot on wakes the next worker
// only if it is parked. No wake is lost, as in Dekker's algorithm: one side stores `progress` and then reads `parked`,
// the other stores `parked` and then reads `progress`, each with a full fence in between.

#pragma once

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <cstdint>
#include <ctime>

namespace stage_loop {

using Futex = std::atomic<uint32_t>;
static_assert(sizeof(Futex) == sizeof(uint32_t), "a futex is one word");

inline int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Sleeps while *word == 1; timeout_ns < 0 means no timeout.
inline void futex_wait(Futex* word, int64_t timeout_ns) {
  timespec t{timeout_ns / 1000000000, timeout_ns % 1000000000};
  syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 1, timeout_ns < 0 ? nullptr : &t, nullptr, 0);
}

inline void wake_if_parked(Futex* word) {
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (word->load(std::memory_order_relaxed) && word->exchange(0))
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Spins, then parks on `word`, until ready() or until the time is over; returns whether it is ready.
template <typename Ready>
bool wait_until(Futex* word, const Ready& ready, int64_t spin_ns, int64_t timeout_ns) {
  if (ready()) return true;
  const int64_t start = now_ns();
  while (now_ns() - start < spin_ns) {
    for (int i = 0; i < 32; ++i) {
      if (ready()) return true;
      pause_cpu();
    }
  }
  for (;;) {
    word->store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (ready()) return true;  // the word stays 1: others may be parked on it, and a needless wake does no harm
    const int64_t left = timeout_ns < 0 ? -1 : timeout_ns - (now_ns() - start);
    if (timeout_ns >= 0 && left <= 0) return false;
    futex_wait(word, left);
  }
}

}  // namespace stage_loop
