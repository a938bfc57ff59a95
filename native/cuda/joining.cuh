// How elements of several ranks become one, two at a time, for kernels that are told so when they run.
//
// Floats in float32. min and max: NaN wins over every number, and of equals, as 0 and -0, the last one stays. Words wrap.
#pragma once
#include "platform.cuh"

namespace rankmesh::cuda {

/** As engine::Reduction. */
enum Joining : int { kJoinSum, kJoinProd, kJoinMin, kJoinMax, kJoinMinSigned, kJoinMaxSigned };

__device__ inline float Joined(int joining, float a, float b) {
  if (joining == kJoinSum) return __fadd_rn(a, b);
  if (joining == kJoinProd) return __fmul_rn(a, b);
  return a != a || (joining == kJoinMin ? a < b : a > b) ? a : b;
}

__device__ inline uint32_t Joined(int joining, uint32_t a, uint32_t b) {
  switch (joining) {
    case kJoinSum: return a + b;
    case kJoinProd: return a * b;
    case kJoinMin: return b < a ? b : a;
    case kJoinMax: return b > a ? b : a;
    case kJoinMinSigned: return static_cast<int32_t>(b) < static_cast<int32_t>(a) ? b : a;
    default: return static_cast<int32_t>(b) > static_cast<int32_t>(a) ? b : a;
  }
}

}  // namespace rankmesh::cuda
