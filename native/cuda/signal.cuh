// How ranks wait for each other inside kernels: a wait has a limit, an alarm ends it sooner, the status names who was missing.
//
// A rank whose wait has expired tells the others, who then name the same rank instead of the one that left. From then on the workspace is
// broken: kernels end at once until the host has set it up anew.
#pragma once
#include "elements.cuh"
#include "peer_arguments.h"

namespace rankmesh::cuda {

/** Writes down why this rank gives up: bits of a status. Any thread. */
__device__ inline void Report(const Peers& peers, uint32_t bits) {
  const uint32_t all = SetBits(&peers.state->status, bits) | bits;
  if (peers.told != nullptr) StoreRelaxed(peers.told, all);
  if (!(bits & kExpired)) return;
  for (int r = 0; r < peers.ranks; r++) {
    if (r != peers.rank) StoreRelaxed(peers.Alarm(r), kTold | (all & (kExpired - 1)));
  }
}

/** One wait of one thread. */
class Watch {
 public:
  __device__ explicit Watch(const Peers& peers) : peers_(peers) {}

  /** 0 while the wait may go on, else what to report, bits of missing ranks aside. */
  __device__ uint32_t Look() {
    Pause();
    if (++looks_ % kLooks != 0) return 0;
    if (const uint32_t alarm = LoadRelaxed(peers_.Alarm(peers_.rank))) return alarm;
    const uint64_t now = Nanoseconds();
    if (looks_ == kLooks) begin_ = now;
    return now - begin_ > peers_.limit ? kExpired : 0;
  }

 private:
  /** Looks before the time and the alarm are looked at. */
  static constexpr uint32_t kLooks = 16;
  const Peers& peers_;
  uint32_t looks_ = 0;
  uint64_t begin_ = 0;
};

/** Whether the workspace may be used. By all threads of a block, which meet. */
__device__ inline bool Open(const Peers& peers) {
  uint32_t broken = 0;
  if (threadIdx.x == 0) {
    const uint32_t alarm = LoadRelaxed(peers.Alarm(peers.rank));
    if (alarm != 0) Report(peers, alarm);
    broken = alarm | LoadRelaxed(&peers.state->status);
  }
  return __syncthreads_or(broken != 0) == 0;
}

/**
 * Meets the same block of all ranks; by all threads of a block, at least one a rank. What those blocks wrote before, anywhere, is seen
 * after. Points of a workspace rise from call to call. False, on all threads, if a rank did not come.
 */
__device__ inline bool Meet(const Peers& peers, uint64_t point) {
  __syncthreads();
  const int peer = static_cast<int>(threadIdx.x);
  const int block = static_cast<int>(blockIdx.x);
  bool missing = false;
  if (peer < peers.ranks && peer != peers.rank) {
    StoreRelease(peers.Flag(peer, block, peers.rank), point);
    const uint64_t* const flag = peers.Flag(peers.rank, block, peer);
    Watch watch(peers);
    while (!missing && LoadAcquire(flag) < point) {
      const uint32_t why = watch.Look();
      if (why == 0) continue;
      Report(peers, why == kExpired ? why | 1u << peer : why);
      missing = true;
    }
  }
  return __syncthreads_or(missing) == 0;
}

/**
 * Once all threads of a block have read the progress and met, by all of them: the last block to get here writes what the next call is to
 * find. Long before the call is over, so that nobody has to wait for it.
 */
__device__ inline void Advance(const Peers& peers, const Progress& next) {
  if (threadIdx.x + 1 < blockDim.x) return;  // the first threads have flags to look after
  State* const state = peers.state;
  if (CountUp(&state->done) + 1 < gridDim.x) return;
  state->done = 0;
  state->progress = next;
}

/** The points of a call, in order. */
__device__ inline uint64_t PointOf(uint64_t epoch, int step) { return (epoch + 1) * 2 + step; }

}  // namespace rankmesh::cuda
