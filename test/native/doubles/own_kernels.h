// Kernels for tests of the double of the driver.
#pragma once
#include "platform.cuh"

namespace cuda_double {

struct AddArgs {
  unsigned* words;
  unsigned count, value;
};
/** Adds a value to words; a block a 64 of them. */
inline void AddWords(const AddArgs& args) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < args.count) args.words[i] += args.value;
}

struct HandArgs {
  uint64_t* mine;
  uint64_t* theirs;
  uint64_t rounds, first;
};
/** Plays with another kernel: each writes to the other's word what it has seen in its own, and one. The first one to move is `first`. */
inline void HandOver(const HandArgs& args) {
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    for (uint64_t round = 1; round <= args.rounds; round++) {
      const uint64_t number = 2 * round - args.first;
      while (rankmesh::cuda::LoadAcquire(args.mine) < number - 1) rankmesh::cuda::Pause();
      rankmesh::cuda::StoreRelease(args.theirs, number);
    }
  }
  __syncthreads();
}

struct SumArgs {
  const float* from;
  float* to;
  unsigned count;
};
/** The sum of a block's numbers, through its shared memory. */
inline void SumBlocks(const SumArgs& args) {
  auto* const part = reinterpret_cast<float*>(rankmesh::cuda::SharedBytes());
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  part[threadIdx.x] = i < args.count ? args.from[i] : 0.0f;
  __syncthreads();
  for (unsigned step = blockDim.x / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
    __syncthreads();
  }
  if (threadIdx.x == 0) args.to[blockIdx.x] = part[0];
}

struct ToAllArgs {
  rankmesh::cuda::Packet* to;
  uint64_t count;
};
/** Stores packets to a multicast, each with its number in all words. */
inline void StoreNumbers(const ToAllArgs& args) {
  const auto i = static_cast<uint32_t>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < args.count) rankmesh::cuda::StoreToAll(args.to + i, {{i, i, i, i}});
}

struct DivergeArgs {
  unsigned* unused;
};
/** A barrier that half of the threads do not reach. */
inline void Diverge(const DivergeArgs&) {
  if (threadIdx.x % 2 == 0) __syncthreads();
}

}  // namespace cuda_double
