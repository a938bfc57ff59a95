// Operations on each row by itself, a block for each.
//
// NormRows: y = x * rsqrt(mean(x^2) + eps) * (weight_bias + weight), in the steps, the order and so the bits of the norm in ../fused_norm.cuh; or,
// portable, in those of portable.cuh.
// Softmax: y = exp(x - max x) / sum(exp(x - max x)) in float32, exp CUDA's within 2 ULP; a row that holds NaN becomes NaN.
// A row's bits depend on its length alone. y may be x. Grid: a block for each row, RowThreads<T>(n) threads for rows of T; of float32 for
// Softmax. Rows are not empty.
#pragma once
#include "../fused_norm.cuh"
#include "loads.cuh"
#include "portable.cuh"

namespace rankmesh::cuda::ops {

/** v * scale * (weight_bias + weight), every step rounded. */
__device__ inline float Normed(float value, float scale, float weight, float weight_bias) {
  return __fmul_rn(__fmul_rn(value, scale), weight_bias == 0.0f ? weight : __fadd_rn(weight, weight_bias));
}

/** y of a row whose scale is known. */
template <typename T>
__device__ inline void PutNormed(const Vectors<T>& x, const Vectors<T>& weight, const Vectors<T>& y, int64_t n, float scale, float weight_bias) {
  for (int64_t i = threadIdx.x; i < VectorsOf<T>(n); i += blockDim.x) {
    float value[kLanes<T>], by[kLanes<T>];
    Unpack<T>(x.Get(i), value);
    Unpack<T>(weight.Get(i), by);
#pragma unroll
    for (int k = 0; k < kLanes<T>; k++) value[k] = Normed(value[k], scale, by[k], weight_bias);
    y.Put(i, Pack<T>(value));
  }
}

template <typename T>
__device__ inline void NormRows(const NormRowsArgs& args) {
  const Vectors<T> x = RowOf<T>(args.x, blockIdx.x, args.n);
  float scale;
  if (args.portable) {
    scale = PortableScale<T>(static_cast<const typename T::Bits*>(args.x) + blockIdx.x * args.n, args.n, args.eps);
  } else {
    float squares = 0.0f;
    for (int64_t i = threadIdx.x; i < VectorsOf<T>(args.n); i += blockDim.x) {
      float value[kLanes<T>];
      Unpack<T>(x.Get(i), value);
#pragma unroll
      for (int k = 0; k < kLanes<T>; k++) squares = __fmaf_rn(value[k], value[k], squares);
    }
    BlockReduce reduce;
    scale = RowScale(reduce.Sum(squares), args.n, args.eps);
  }
  PutNormed<T>(x, Vectors<T>(args.weight, args.n), RowOf<T>(args.y, blockIdx.x, args.n), args.n, scale, args.weight_bias);
}

__device__ inline void Softmax(const SoftmaxArgs& args) {
  const float* const x = args.x + blockIdx.x * args.n;
  float* const y = args.y + blockIdx.x * args.n;
  uint32_t most = 0;
  for (int64_t i = threadIdx.x; i < args.n; i += blockDim.x) most = OrderOf(x[i]) > most ? OrderOf(x[i]) : most;
  BlockReduce reduce;
  const float top = ValueOf(reduce.Max(most));
  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < args.n; i += blockDim.x) sum = __fadd_rn(sum, expf(x[i] - top));
  const float all = reduce.Sum(sum);
  for (int64_t i = threadIdx.x; i < args.n; i += blockDim.x) y[i] = __fdiv_rn(expf(x[i] - top), all);
}

}  // namespace rankmesh::cuda::ops
