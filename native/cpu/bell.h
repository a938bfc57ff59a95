// Waiting of one thread for another: it looks for a while, gives way to others, and then sleeps until the bell rings.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace rankmesh::cpu {

/** Threads of queues. */
inline std::atomic<unsigned> running_queues = 0;

/** Whether each has a processor of its own; else one that waits gives way at once, and sleeps soon. */
inline bool Roomy() {
  static const unsigned processors = std::thread::hardware_concurrency();
  return running_queues <= processors;
}

/** A moment, for a thread that looks again and again. */
inline void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#else
  std::this_thread::yield();
#endif
}

class Bell {
 public:
  /** Called behind each change that somebody may wait for. */
  void Ring() {
    if (sleepers_ == 0) return;
    {
      const std::lock_guard lock(mutex_);
    }
    rung_.notify_all();
  }

  /** Returns true once `done()`, false where `stop` is set before; a sleeper sees the latter a moment later. */
  template <typename Done>
  bool Wait(Done done, const std::atomic<bool>& stop) {
    const bool alone = Roomy();
    for (int looks = 0; alone && looks < kLooks; looks++, Pause())
      if (done()) return true;
    const auto until = std::chrono::steady_clock::now() + (alone ? kYielding : kYielding / 10);
    do {
      if (done()) return true;
      if (stop) return false;
      std::this_thread::yield();
    } while (std::chrono::steady_clock::now() < until);
    std::unique_lock lock(mutex_);
    sleepers_++;
    while (!done() && !stop) rung_.wait_for(lock, kGlance);
    sleepers_--;
    return done();
  }

 private:
  /** Some microseconds. */
  static constexpr int kLooks = 200;
  /** To fall asleep and to be woken costs some 100 on a machine that is virtual, and there is a wait in each layer of a model. */
  static constexpr std::chrono::microseconds kYielding{1000};
  static constexpr std::chrono::milliseconds kGlance{20};

  std::atomic<int> sleepers_ = 0;
  std::mutex mutex_;
  std::condition_variable rung_;
};

}  // namespace rankmesh::cpu
