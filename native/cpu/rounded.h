// Products whose operands are rounded to bfloat16, by oneDNN where the addon is built with it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rankmesh::cpu {

/** y[t * pitch + o] = the sum over k of x[t * k + i] * w[o * k + i], in float32, in an order that oneDNN chooses, + bias[o] unless it is null. */
struct RoundedProduct {
  size_t tokens, k, outs;
  /** bfloat16. */
  const uint16_t* x;
  const uint16_t* w;
  const float* bias;
  float* y;
  size_t pitch;
};

/** Whether `MultiplyRounded` is there and fast on this processor. */
bool CanMultiplyRounded();

/** On the calling thread alone. False, with y untouched, where oneDNN has no kernel for these sizes. */
bool MultiplyRounded(const RoundedProduct& product);

}  // namespace rankmesh::cpu
