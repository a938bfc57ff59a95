// The k largest of each row, descending, equals by ascending index; NaN is the lowest, -0 and 0 are alike.
//
// A value and its index are one candidate: the value's order (OrderOf) above the index, inverted, so that no two are equal. A block looks for
// the largest candidate below the last one that it took, k times; a thread looks through its own again only where its candidate was taken.
// Exact; the work grows with k, which is meant to be up to about a hundred. TopK: one block for a row. TopKParts: a block for each part of
// kTopPart values of a row, parts fastest, which takes up to k candidates, 0 for those that are not there; TopKJoin: one block for the
// candidates of a row. kTopThreads threads. Shared memory: two candidates a warp.
#pragma once
#include "loads.cuh"

namespace rankmesh::cuda::ops {

/** The block's largest, on every thread. All threads call it equally often. */
class BlockTop {
 public:
  __device__ uint64_t Of(uint64_t candidate) {
    uint64_t* const part = reinterpret_cast<uint64_t*>(SharedBytes()) + blockDim.x / 32 * (calls_++ & 1);
    candidate = OverWarp(candidate);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = candidate;
    __syncthreads();
    return OverWarp(threadIdx.x % 32 < blockDim.x / 32 ? part[threadIdx.x % 32] : 0);
  }

 private:
  __device__ static uint64_t OverWarp(uint64_t candidate) {
#pragma unroll
    for (unsigned step = 16; step > 0; step /= 2) {
      const uint64_t other = __shfl_xor_sync(0xffffffffu, static_cast<unsigned long long>(candidate), step);
      candidate = other > candidate ? other : candidate;
    }
    return candidate;
  }

  unsigned calls_ = 0;
};

__device__ inline uint64_t CandidateOf(float value, int64_t index) {
  return static_cast<uint64_t>(OrderOf(value)) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

/** put(i, candidate) on one thread for the k largest of get(0) to get(n - 1), 0 once there are no more. */
template <typename Get, typename Put>
__device__ inline void EachTop(int64_t n, int64_t k, Get get, Put put) {
  const auto largest_below = [&](uint64_t limit) {
    uint64_t best = 0;
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      const uint64_t candidate = get(i);
      if (candidate < limit && candidate > best) best = candidate;
    }
    return best;
  };
  BlockTop top;
  uint64_t mine = largest_below(UINT64_MAX);
  for (int64_t i = 0; i < k; i++) {
    const uint64_t best = top.Of(mine);
    if (threadIdx.x == 0) put(i, best);
    if (mine == best && best != 0) mine = largest_below(best);
  }
}

/** Writes what a candidate stands for: the value as it is in the row. */
__device__ inline void PutTop(const TopArgs& args, int64_t row, int64_t i, uint64_t candidate) {
  const uint32_t index = 0xffffffffu - static_cast<uint32_t>(candidate);
  args.values[row * args.k + i] = args.x[row * args.width + index];
  args.indices[row * args.k + i] = index;
}

__device__ inline void TopK(const TopArgs& args) {
  const int64_t row = blockIdx.x;
  const float* const x = args.x + row * args.width;
  EachTop(args.n, args.k, [&](int64_t i) { return CandidateOf(x[i], i); }, [&](int64_t i, uint64_t candidate) { PutTop(args, row, i, candidate); });
}

__device__ inline void TopKParts(const TopArgs& args) {
  const int64_t row = blockIdx.x / args.parts, part = blockIdx.x % args.parts;
  const float* const x = args.x + row * args.width;
  const int64_t first = part * kTopPart, n = first + kTopPart < args.width ? kTopPart : args.width - first;
  EachTop(n, args.k, [&](int64_t i) { return CandidateOf(x[first + i], first + i); },
          [&](int64_t i, uint64_t candidate) { args.taken[blockIdx.x * args.k + i] = candidate; });
}

__device__ inline void TopKJoin(const TopArgs& args) {
  const int64_t row = blockIdx.x;
  EachTop(args.n, args.k, [&](int64_t i) { return args.candidates[row * args.n + i]; },
          [&](int64_t i, uint64_t candidate) { PutTop(args, row, i, candidate); });
}

}  // namespace rankmesh::cuda::ops
