// A sum or a maximum over the threads of a block, in one order: that of a binary tree over lanes, then over warps.
#pragma once
#include "platform.cuh"

namespace rankmesh::cuda {

/** Blocks of whole warps, a power of two of them. All threads call the same methods in the same order, and all get the result. */
class BlockReduce {
 public:
  /** `vote`: see `voted`. */
  __device__ float Sum(float value, bool vote = false) {
    vote_ = vote;
    return Over(value, [](float a, float b) { return __fadd_rn(a, b); });
  }

  __device__ uint32_t Max(uint32_t value) {
    return __float_as_uint(Over(__uint_as_float(value), [](float a, float b) { return __float_as_uint(a) > __float_as_uint(b) ? a : b; }));
  }

  /** Whether any thread of the block voted, the last time. */
  __device__ bool voted() const { return voted_; }

 private:
  static constexpr unsigned kWarp = 32;

  template <typename F>
  __device__ static float OverWarp(float value, F join) {
#pragma unroll
    for (unsigned step = kWarp / 2; step > 0; step /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
  }

  template <typename F>
  __device__ float Over(float value, F join) {
    // Two places in turn: a thread may be one call ahead of the slowest, not two.
    float* const part = BlockFloats() + kWarp * (calls_++ & 1);
    value = OverWarp(value, join);
    if (threadIdx.x % kWarp == 0) part[threadIdx.x / kWarp] = value;
    voted_ = __syncthreads_or(vote_) != 0;
    return OverWarp(threadIdx.x % kWarp < blockDim.x / kWarp ? part[threadIdx.x % kWarp] : 0.0f, join);
  }

  unsigned calls_ = 0;
  bool vote_ = false;
  bool voted_ = false;
};

}  // namespace rankmesh::cuda
