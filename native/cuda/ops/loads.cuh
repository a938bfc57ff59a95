// How kernels of single operations read and write: elements as float32, some at a time, in whole packets where they are aligned.
#pragma once
#include <type_traits>

#include "../elements.cuh"
#include "arguments.h"

namespace rankmesh::cuda::ops {

__device__ inline bool IsAligned(const void* at, int bytes = sizeof(Packet)) { return reinterpret_cast<uintptr_t>(at) % bytes == 0; }

/** Type T for values that are moved, not computed: a NaN keeps its sign, and no more. */
template <typename T>
struct Moved {
  using Bits = typename T::Bits;
  using Value = float;
  static constexpr int kSign = 8 * static_cast<int>(sizeof(Bits)) - 1;
  __device__ static float Widen(Bits bits) {
    const float value = T::Widen(bits);
    return value != value ? __uint_as_float(0x7fc00000u | static_cast<uint32_t>(bits >> kSign) << 31) : value;
  }
  __device__ static Bits Round(float value) {
    const Bits bits = T::Round(value);
    return value != value ? static_cast<Bits>(bits | (__float_as_uint(value) >> 31) << kSign) : bits;
  }
};

/** The first `count` of N elements from `from` on; those behind are 0. N is 4 or 8. */
template <typename T, int N>
__device__ inline void GetSome(const typename T::Bits* from, int64_t count, float (&value)[N]) {
  constexpr int kBytes = N * sizeof(typename T::Bits);
  if (count >= N && IsAligned(from, kBytes < 16 ? kBytes : 16)) {
    if constexpr (kBytes < 16) {
      const uint32_t low = reinterpret_cast<const uint32_t*>(from)[0], high = reinterpret_cast<const uint32_t*>(from)[1];
      const uint32_t words[2] = {low, high};
#pragma unroll
      for (int i = 0; i < N; i++) value[i] = T::Widen(static_cast<uint16_t>(words[i / 2] >> (16 * (i % 2))));
    } else {
#pragma unroll
      for (int p = 0; p < kBytes / 16; p++) {
        float part[kLanes<T>];
        Unpack<T>(Load(reinterpret_cast<const Packet*>(from) + p), part);
#pragma unroll
        for (int i = 0; i < kLanes<T>; i++) value[p * kLanes<T> + i] = part[i];
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) value[i] = i < count ? T::Widen(from[i]) : 0.0f;
}

template <typename T, int N>
__device__ inline void PutSome(typename T::Bits* to, int64_t count, const float (&value)[N]) {
  constexpr int kBytes = N * sizeof(typename T::Bits);
  if (count >= N && IsAligned(to, kBytes < 16 ? kBytes : 16)) {
    if constexpr (kBytes < 16) {
#pragma unroll
      for (int i = 0; i < N; i += 2) {
        reinterpret_cast<uint32_t*>(to)[i / 2] = T::Round(value[i]) | static_cast<uint32_t>(T::Round(value[i + 1])) << 16;
      }
    } else {
#pragma unroll
      for (int p = 0; p < kBytes / 16; p++) {
        float part[kLanes<T>];
#pragma unroll
        for (int i = 0; i < kLanes<T>; i++) part[i] = value[p * kLanes<T> + i];
        Store(reinterpret_cast<Packet*>(to) + p, Pack<T>(part));
      }
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < N; i++) {
    if (i < count) to[i] = T::Round(value[i]);
  }
}

/** f(row, i) for 0 <= i < columns of every row, dealt out over the threads of the grid. */
template <typename F>
__device__ inline void EachOf(int64_t rows, int64_t columns, F f) {
  const int64_t all = rows * columns, step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; at < all; at += step) {
    // Numbers of 32 bits divide faster.
    const int64_t row = all <= UINT32_MAX ? static_cast<uint32_t>(at) / static_cast<uint32_t>(columns) : at / columns;
    f(row, at - row * columns);
  }
}

__device__ inline int64_t PositionOf(const Start& start) {
  int64_t at = start.known;
  if (start.position != nullptr) at = at + *start.position < start.most ? at + *start.position : start.most;
  return at + start.ahead;
}

/** Floats as integers of the same order: NaN lowest, -0 and 0 alike. */
__device__ inline uint32_t OrderOf(float value) {
  const uint32_t bits = __float_as_uint(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
  if (bits == 0x80000000u) return bits;
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/** A value of that order; of 0: the one quiet NaN. */
__device__ inline float ValueOf(uint32_t order) {
  if (order == 0) return __uint_as_float(0x7fc00000u);
  return __uint_as_float(order >> 31 ? order & 0x7fffffffu : ~order);
}

/** The warp's sum, on every lane, in the order of a binary tree. */
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (unsigned step = 16; step > 0; step /= 2) value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

/** The warp's largest value; NaN only where all are. */
__device__ inline float WarpMax(float value) {
#pragma unroll
  for (unsigned step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
  return value;
}

}  // namespace rankmesh::cuda::ops
