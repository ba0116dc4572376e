// The least that waking a parked thread costs: two pinned threads, a futex each, no spinning.

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <ctime>
#include <thread>

namespace {

using Futex = std::atomic<uint32_t>;

int64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return int64_t(t.tv_sec) * 1000000000 + t.tv_nsec;
}

void pin(int core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(core, &set);
  pthread_setaffinity_np(pthread_self(), sizeof(set), &set);
}

void wait_for(Futex* word) {
  while (!word->exchange(0)) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, nullptr, nullptr, 0);
}

void wake(Futex* word) {
  word->store(1);
  syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

}  // namespace

// One way, `rounds` times: from just before the waking call on core `from` to the first moment on core `to`, in ns.
// Between rounds both cores sleep for `sleep_ns`, and the waking thread then works for `work_ns`, as a stage would.
extern "C" void one_way(int from, int to, int rounds, int64_t sleep_ns, int64_t work_ns, int64_t* result) {
  Futex ping{0}, pong{0};
  int64_t sent = 0;
  std::thread other([&] {
    pin(to);
    for (int i = 0; i < rounds; ++i) {
      wait_for(&ping);
      result[i] = now_ns() - sent;
      wake(&pong);
    }
  });
  std::thread waking([&] {
    pin(from);
    for (int i = 0; i < rounds; ++i) {
      const timespec pause{sleep_ns / 1000000000, sleep_ns % 1000000000};
      nanosleep(&pause, nullptr);
      const int64_t start = now_ns();
      while (now_ns() - start < work_ns) {
      }
      sent = now_ns();
      wake(&ping);
      wait_for(&pong);
    }
  });
  waking.join();
  other.join();
}
