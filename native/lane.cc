// Lanes: posting and waiting, by futexes where the system has them.
#include "lane.h"

#include <algorithm>
#include <climits>
#include <thread>

#ifdef __linux__
#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rankmesh {
namespace {

using Clock = std::chrono::steady_clock;
using std::chrono::nanoseconds;

/** Looks before a thread gives its processor away: a few microseconds where that has helped, else few, as where ranks share a core. */
constexpr uint32_t kMostSpins = 400;
constexpr uint32_t kLeastSpins = 8;
/** One wait of so many tries whether looking longer helps again. */
constexpr uint32_t kRetry = 128;
/** Times that it lets others run before it sleeps: where ranks share a core, the one it waits for is most likely next, and a wake-up dear. */
constexpr int kYields = 20;

thread_local uint32_t patience = kMostSpins;
thread_local uint32_t waits = 0;

/** A wake-up that is lost, as by the death of the one who owed it, costs no more than this. */
constexpr nanoseconds kSlice = std::chrono::milliseconds(100);

#ifdef RANKMESH_PLANT_RACE
// For the test of the tests: epochs that carry nothing with them.
constexpr auto kStore = std::memory_order_relaxed;
constexpr auto kLoad = std::memory_order_relaxed;
#else
constexpr auto kStore = std::memory_order_seq_cst;
constexpr auto kLoad = std::memory_order_seq_cst;
#endif

std::atomic_ref<int32_t> At(int32_t* word) { return std::atomic_ref<int32_t>(*word); }

bool Reached(int32_t seen, int32_t epoch) { return static_cast<int32_t>(static_cast<uint32_t>(seen) - static_cast<uint32_t>(epoch)) >= 0; }

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("isb");
#else
  std::this_thread::yield();
#endif
}

/** Sleeps while *word is `seen`, at most `most`. The futex is not private: other processes may map the word. */
void Sleep(int32_t* word, int32_t seen, nanoseconds most) {
#ifdef __linux__
  const timespec time{.tv_sec = most.count() / 1'000'000'000, .tv_nsec = most.count() % 1'000'000'000};
  syscall(SYS_futex, word, FUTEX_WAIT, seen, &time, nullptr, 0);
#else
  if (At(word).load(kLoad) == seen) std::this_thread::sleep_for(std::min<nanoseconds>(most, std::chrono::microseconds(50)));
#endif
}

void Wake(int32_t* word) {
#ifdef __linux__
  syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
#else
  (void)word;
#endif
}

/** Word of a member's line: the processor on which it last posted, plus one. */
constexpr size_t kProcessor = 12;

int32_t Processor() {
#ifdef __linux__
  return sched_getcpu() + 1;
#else
  return 0;
#endif
}

/**
 * Where this thread and the one it waits for share a processor, they take turns on it although others idle, until the system's balancer
 * comes by, milliseconds later: whoever wakes a thread wakes it where it ran last. So this one moves to another processor, once in a while,
 * and is free to run anywhere again at once.
 */
void MoveAwayFrom(int32_t* line) {
#ifdef __linux__
  thread_local Clock::time_point moved;
  const int32_t here = Processor();
  if (std::atomic_ref<int32_t>(line[kProcessor]).load(std::memory_order_relaxed) != here) return;
  const auto now = Clock::now();
  if (now - moved < std::chrono::milliseconds(1)) return;
  moved = now;
  cpu_set_t all;
  if (sched_getaffinity(0, sizeof all, &all) != 0) return;
  cpu_set_t others = all;
  CPU_CLR(here - 1, &others);
  if (CPU_COUNT(&others) == 0) return;
  if (sched_setaffinity(0, sizeof others, &others) == 0) sched_setaffinity(0, sizeof all, &all);
#else
  (void)line;
#endif
}

}  // namespace

void Post(const Lane& lane, int32_t epoch) {
  int32_t* const line = lane.Line(lane.me);
  At(line + kProcessor).store(Processor(), std::memory_order_relaxed);
  At(line).store(epoch, kStore);
  // A waiter counts itself and then looks at the epoch; here it is the other way round: one of the two sees the other.
  if (At(line + 1).load(kLoad) > 0) Wake(line);
}

Result Wait(const Lane& lane, int32_t epoch, int32_t alarm, nanoseconds most, const std::atomic<bool>* stop) {
  uint32_t member = 0;
  const auto arrived = [&] {
    while (member < lane.members && Reached(At(lane.Line(member)).load(kLoad), epoch)) member++;
    return member == lane.members;
  };
  if (arrived()) return Result::kArrived;
  for (uint32_t spins = ++waits % kRetry == 0 ? kMostSpins : patience; spins > 0; spins--) {
    Pause();
    if (arrived()) {
      patience = kMostSpins;
      return Result::kArrived;
    }
  }
  patience = std::max(patience / 2, kLeastSpins);
  MoveAwayFrom(lane.Line(member));
  for (int yields = 0; yields < kYields; yields++) {
    std::this_thread::yield();
    if (arrived()) return Result::kArrived;
  }
  const auto end = Clock::now() + std::clamp<nanoseconds>(most, nanoseconds(0), std::chrono::hours(24));
  while (!arrived()) {
    if (At(lane.alarm).load(kLoad) != alarm) return Result::kAlarmed;
    const auto left = std::chrono::duration_cast<nanoseconds>(end - Clock::now());
    if (left.count() <= 0 || (stop && stop->load())) return Result::kExpired;
    int32_t* const line = lane.Line(member);
    At(line + 1).fetch_add(1, std::memory_order_seq_cst);
    const int32_t seen = At(line).load(kLoad);
    if (!Reached(seen, epoch)) Sleep(line, seen, std::min(left, kSlice));
    At(line + 1).fetch_sub(1, std::memory_order_seq_cst);
  }
  return Result::kArrived;
}

void WakeAll(int32_t* lines, uint32_t members) {
  for (uint32_t member = 0; member < members; member++) Wake(lines + member * kLine);
}

}  // namespace rankmesh
