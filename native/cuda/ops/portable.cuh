// The steps of runtime/core/portable.ts, for kernels whose bits are the same on every kind of device: e^x, the scale of a row's norm, attention.
//
// PortableAttention: a block for each token and head, kPortableThreads threads. Shared memory: kPortableFloats floats.
#pragma once
#include "../fused_norm.cuh"
#include "loads.cuh"

namespace rankmesh::cuda::ops {

/** 0 below -87.33, infinity above 88.72283. */
__device__ inline float Power(float x) {
  if (x < -87.33f) return 0.0f;
  if (x > 88.72283f) return __uint_as_float(0x7f800000u);
  const float shifted = __fadd_rn(__fmul_rn(x, 1.44269504088896341f), 12582912.0f);
  const float n = __fadd_rn(shifted, -12582912.0f);
  const float r = __fadd_rn(__fadd_rn(x, -__fmul_rn(n, 0.693359375f)), -__fmul_rn(n, -2.12194440e-4f));
  float y = __fadd_rn(__fmul_rn(1.9875691500e-4f, r), 1.3981999507e-3f);
  y = __fadd_rn(__fmul_rn(y, r), 8.3334519073e-3f);
  y = __fadd_rn(__fmul_rn(y, r), 4.1665795894e-2f);
  y = __fadd_rn(__fmul_rn(y, r), 1.6666665459e-1f);
  y = __fadd_rn(__fmul_rn(y, r), 5.0000001201e-1f);
  y = __fadd_rn(__fadd_rn(__fmul_rn(y, __fmul_rn(r, r)), r), 1.0f);
  // 2^n in two factors, so that neither leaves the range.
  const int integer = static_cast<int>(__float_as_uint(shifted) - 0x4b400000u), half = integer >> 1;
  const float first = __uint_as_float(static_cast<uint32_t>(half + 127) << 23);
  const float second = __uint_as_float(static_cast<uint32_t>(integer - half + 127) << 23);
  return __fmul_rn(__fmul_rn(y, first), second);
}

/** parts[i] += parts[i + half] for halves down to one: the sum of all `count`, on every thread. All threads of the block call it. */
__device__ inline float Halved(float* parts, int count) {
  for (int half = count / 2; half > 0; half /= 2) {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < half; i += static_cast<int>(blockDim.x)) parts[i] = __fadd_rn(parts[i], parts[i + half]);
  }
  __syncthreads();
  return parts[0];
}

/** 1 / sqrt(mean of squares + eps) of n elements: element i adds its square to part i mod 64. All threads of the block. */
template <typename T>
__device__ inline float PortableScale(const void* row, int64_t n, float eps) {
  constexpr int kParts = 64;
  float* const parts = BlockFloats();
  for (int part = static_cast<int>(threadIdx.x); part < kParts; part += static_cast<int>(blockDim.x)) {
    float squares = 0.0f;
    for (int64_t i = part; i < n; i += kParts) {
      const float value = T::Widen(static_cast<const typename T::Bits*>(row)[i]);
      squares = __fadd_rn(squares, __fmul_rn(value, value));
    }
    parts[part] = squares;
  }
  return RowScale(Halved(parts, kParts), n, eps);
}

__device__ inline void PortableAttention(const AttentionArgs& args) {
  constexpr int kSums = 16, kThreads = kPortableThreads, kOwn = 256 / kThreads;
  const int64_t dim = args.dim, row = args.kv_heads * dim;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t token = blockIdx.x / args.heads, head = blockIdx.x - token * args.heads, kv = head / (args.heads / args.kv_heads);
  const int64_t here = PositionOf(args.start) + token;
  const int64_t first = args.window > 0 && here + 1 > args.window ? here + 1 - args.window : 0, keys = here + 1 - first;
  const float* const q = args.q + blockIdx.x * dim;
  const float* const k = args.keys + first * row + kv * dim;
  const float* const v = args.values + first * row + kv * dim;
  float* const weights = reinterpret_cast<float*>(SharedBytes());
  float* const sums = weights + kThreads;

  const auto score = [&](int64_t j) {
    float lanes[kSums] = {};
    for (int64_t i = 0; i < dim; i += kSums) {
#pragma unroll
      for (int lane = 0; lane < kSums; lane++) {
        if (i + lane < dim) lanes[lane] = __fadd_rn(lanes[lane], __fmul_rn(q[i + lane], k[j * row + i + lane]));
      }
    }
#pragma unroll
    for (int half = kSums / 2; half > 0; half /= 2) {
#pragma unroll
      for (int lane = 0; lane < half; lane++) lanes[lane] = __fadd_rn(lanes[lane], lanes[lane + half]);
    }
    return __fmul_rn(lanes[0], args.scale);
  };

  uint32_t most = 0;
  for (int64_t j = thread; j < keys; j += kThreads) {
    const uint32_t order = OrderOf(score(j));
    most = order > most ? order : most;
  }
  BlockReduce reduce;
  const float top = ValueOf(reduce.Max(most));

  float sum = 0.0f, mixed[kOwn] = {};
  for (int64_t chunk = 0; chunk < keys; chunk += kThreads) {
    const int seen = static_cast<int>(chunk + kThreads < keys ? kThreads : keys - chunk);
    if (thread < seen) weights[thread] = Power(__fadd_rn(score(chunk + thread), -top));
    __syncthreads();
    if (thread < kSums) {
      for (int j = thread; j < seen; j += kSums) sum = __fadd_rn(sum, weights[j]);
    }
    for (int own = 0; own < kOwn; own++) {
      const int64_t i = thread + own * kThreads;
      if (i >= dim) break;
      for (int j = 0; j < seen; j++) mixed[own] = __fadd_rn(mixed[own], __fmul_rn(weights[j], v[(chunk + j) * row + i]));
    }
    __syncthreads();
  }
  if (thread < kSums) sums[thread] = sum;
  const float all = Halved(sums, kSums);
  for (int own = 0; own < kOwn; own++) {
    const int64_t i = thread + own * kThreads;
    if (i < dim) args.y[blockIdx.x * dim + i] = __fdiv_rn(mixed[own], all);
  }
}

}  // namespace rankmesh::cuda::ops
