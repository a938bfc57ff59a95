// Products of weights in blocks with x rounded to integers of eight bits, by integer instructions: for few tokens, where reading weights is the work.
#pragma once
#include "kernels.h"

namespace rankmesh::cpu {

/**
 * y[t * pitch + o] = the sum over k of r(x[t * k + i]) * w[o * k + i], + bias[o] unless it is null. r rounds each 32 elements of x to multiples
 * of a 127th of the largest, to nearest even; all are NaN where one is not finite, and 0 where none reaches 2^-118. The sums over 32
 * elements are exact; they are scaled and added in float32.
 */
struct IntegerProduct {
  /** kQ8_0, kQ4_0 or kQ4_1. */
  Type type;
  /** 1 to 4. */
  size_t tokens;
  /** A multiple of 32. */
  size_t k;
  size_t outs;
  const float* x;
  const std::byte* w;
  /** Every float16 as float32. */
  const float* halves;
  const float* bias;
  float* y;
  size_t pitch;
};

/** Bytes of memory, at a multiple of 32, that x takes for each 32 of its elements. */
constexpr size_t kCodeBytes = 96;

#ifdef RANKMESH_X86_KERNELS
/** For processors with AVX2 and F16C. The same bits from both. */
void MultiplyIntegersAvx2(const IntegerProduct& product, std::byte* memory);
/** For processors with AVX-512 VL and VNNI. */
void MultiplyIntegersVnni(const IntegerProduct& product, std::byte* memory);
#endif

}  // namespace rankmesh::cpu
