// The queues of one device as a team: whose thread waits for others takes pieces of the product that one of them is at.
#pragma once
#include <array>
#include <atomic>
#include <mutex>

#include "bell.h"
#include "kernels.h"

namespace rankmesh::cpu {

/** What one thread is at, in pieces: it takes them from the front, others from the back. */
class alignas(64) Work {
 public:
  /** Runs all pieces of `call`, which are rows of weights, by this thread and whoever helps; `run` runs one as a call. */
  template <typename Run>
  void Share(const Call& call, size_t rows, Run run);
  /** Runs one piece, if there is one left. */
  template <typename Run>
  bool Help(Run run);

  /** Where its thread runs; -1 while it sleeps. */
  std::atomic<int> processor = -1;

 private:
  /** Counts: calls so far, then of the present call the pieces taken from the front, and those that are left. */
  struct State {
    uint64_t call, front, left;
    static State Of(uint64_t word) { return {word >> 40, word >> 20 & kMask, word & kMask}; }
    uint64_t word() const { return call << 40 | front << 20 | left; }
  };
  static constexpr uint64_t kMask = (1 << 20) - 1;

  /** Rows [piece * rows_, ...) of the call, as a call. */
  Call Piece(size_t piece) const;

  std::atomic<uint64_t> state_ = 0;
  std::atomic<size_t> finished_ = 0;
  Call call_{};
  size_t rows_ = 0;
};

class Team {
 public:
  /** A thread says that it runs; where another one does on the same processor, one of the two moves. */
  void KeepApart(Work* own);
  /** A thread says that it is about to sleep. */
  void Rest(Work* own);
  /** Null where there are many already: that one works alone. */
  Work* Join();
  void Leave(Work* work);
  /** Runs one piece of another's work, if there is any. */
  template <typename Run>
  bool Help(const Work* own, Run run) {
    for (size_t i = 0, members = members_.load(std::memory_order_acquire); i < members; i++)
      if (&works_[i] != own && works_[i].Help(run)) return true;
    return false;
  }
  /** Rows of weights that are one piece of `call`; 0 where it is better run as a whole. */
  size_t PieceOf(const Call& call) const;

 private:
  static constexpr size_t kMost = 64;
  std::array<Work, kMost> works_;
  std::array<bool, kMost> taken_{};
  /** Places that have been taken so far, and queues that are there. */
  std::atomic<size_t> members_ = 0, present_ = 0;
  std::mutex mutex_;
};

template <typename Run>
void Work::Share(const Call& call, size_t rows, Run run) {
  const size_t pieces = (call.numbers[2] + rows - 1) / rows;
  call_ = call;
  rows_ = rows;
  finished_ = 0;
  uint64_t word = State{State::Of(state_).call + 1, 0, pieces}.word();
  state_.store(word, std::memory_order_release);
  for (State now = State::Of(word); now.left > 0; now = State::Of(word)) {
    if (!state_.compare_exchange_weak(word, State{now.call, now.front + 1, now.left - 1}.word(), std::memory_order_acq_rel)) continue;
    run(Piece(now.front));
    finished_++;
    word = state_.load(std::memory_order_acquire);
  }
  // Whoever has taken a piece is at it.
  for (int looks = 0; finished_.load(std::memory_order_acquire) < pieces; looks++) looks < 1000 ? Pause() : std::this_thread::yield();
}

template <typename Run>
bool Work::Help(Run run) {
  uint64_t word = state_.load(std::memory_order_acquire);
  const State now = State::Of(word);
  if (now.left == 0) return false;
  if (!state_.compare_exchange_strong(word, State{now.call, now.front, now.left - 1}.word(), std::memory_order_acq_rel)) return false;
  run(Piece(now.front + now.left - 1));
  finished_.fetch_add(1, std::memory_order_release);
  return true;
}

}  // namespace rankmesh::cpu
