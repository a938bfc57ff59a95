// Lanes: counters in memory that threads or processes share; each member posts its own, and waits until those of all have come as far.
#pragma once
#include <atomic>
#include <chrono>
#include <cstdint>

namespace rankmesh {

/** Words between two members' lines. */
inline constexpr size_t kLine = 32;

enum class Result : int32_t { kArrived, kExpired, kAlarmed, kMismatched, kElsewhere };

struct Lane {
  /** The first member's line. Its word 0 is the member's epoch, word 1 counts who sleeps on that. */
  int32_t* lines;
  uint32_t members;
  uint32_t me;
  int32_t* alarm;

  int32_t* Line(uint32_t member) const { return lines + member * kLine; }
};

/** Stores this member's epoch and wakes who sleeps on it. What was written before is seen by who has waited for it. */
void Post(const Lane& lane, int32_t epoch);

/** Waits until all epochs have reached `epoch`: looks for a moment, then sleeps. `stop` ends the wait early, as if its time were over. */
Result Wait(const Lane& lane, int32_t epoch, int32_t alarm, std::chrono::nanoseconds most, const std::atomic<bool>* stop = nullptr);

/** Wakes everybody who sleeps on a word of the members. */
void WakeAll(int32_t* lines, uint32_t members);

}  // namespace rankmesh
