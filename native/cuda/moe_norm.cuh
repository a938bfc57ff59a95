// The fused all-reduce behind a mixture of experts: each rank's operand is made of its experts' rows on the way.
//
// Contract: a rank's row of a token is the sum of its experts' rows, each times its scale, experts ascending, then times `routed`, then plus
// the shared expert's row; every product and every sum is a float32, and the row is rounded to the element type once. What follows is that
// of fused_norm.cuh. By packets or one-shot; operands are not shared.
#pragma once
#include "fused_norm.cuh"

namespace rankmesh::cuda {

__device__ inline float ScaleAt(const Experts& experts, int64_t entry) {
  if (experts.scale == nullptr) return 1.0f;
  if (experts.scale_type == ScaleType::kFloat32) return static_cast<const float*>(experts.scale)[entry];
  const uint16_t bits = static_cast<const uint16_t*>(experts.scale)[entry];
  return experts.scale_type == ScaleType::kBfloat16 ? Bfloat16::Widen(bits) : Float16::Widen(bits);
}

/** Vector i of this rank's row of a token, of `all`. */
template <typename T>
__device__ inline Packet ExpertRow(const Experts& experts, int64_t all, int64_t n, int64_t token, int64_t i) {
  float sum[kLanes<T>] = {};
  for (int j = 0; j < experts.k; j++) {
    const int64_t entry = experts.index == nullptr ? j * all + token : token * experts.k + j;
    const int64_t row = experts.index == nullptr ? entry : experts.index[entry];
    if (row < 0 || row >= experts.count) continue;
    const float scale = ScaleAt(experts, entry);
    float value[kLanes<T>];
    Unpack<T>(RowOf<T>(experts.rows, row, n).Get(i), value);
#pragma unroll
    for (int k = 0; k < kLanes<T>; k++) sum[k] = __fadd_rn(sum[k], __fmul_rn(value[k], scale));
  }
  if (experts.routed != 1.0f) {
#pragma unroll
    for (int k = 0; k < kLanes<T>; k++) sum[k] = __fmul_rn(sum[k], experts.routed);
  }
  if (experts.shared != nullptr) {
    float value[kLanes<T>];
    Unpack<T>(RowOf<T>(experts.shared, token, n).Get(i), value);
#pragma unroll
    for (int k = 0; k < kLanes<T>; k++) sum[k] = __fadd_rn(sum[k], value[k]);
  }
  return Pack<T>(sum);
}

/** At most kMost ranks; `norm.in` is not looked at. */
template <typename T, int kMost, Algorithm kAlgorithm>
__device__ inline void MoeAllReduceNorm(const MoeArgs& args) {
  static_assert(kAlgorithm != Algorithm::kTwoShot, "the sum is written where it is made");
  ReduceRows<T, kMost, kAlgorithm, true, true>(args.norm, [&](int, int64_t row, int64_t i) {
    return ExpertRow<T>(args.experts, args.norm.all, args.norm.n, row, i);
  });
}

}  // namespace rankmesh::cuda
