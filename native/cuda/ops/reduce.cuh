// Collectives of ranks that share a device: slices of all ranks joined in a given order, with residual, bias and norm behind them, and rows side
// by side.
//
// Reduce: in float32, rounded once: the slices one after another, or, kTree, in the order of a tree: each goes on a stack, and behind it so many
// joins of the two topmost, left + right.
// ReduceNorm: s = residual + (x_0 + x_1 + ...) + bias, rounded once and written to residual; y = its norm. The steps, and so the bits, are those
// of ../fused_norm.cuh, and of Reduce, Add and NormRows one after another where those do not round in between; portable, the norm's are those of
// portable.cuh.
// Grids: any for Reduce, a thread taking eight elements at a time, four of a tree; a block for each row for ReduceNorm, of RowThreads<E>(n)
// threads; for Gather a multiple of the number of slices.
#pragma once
#include "../joining.cuh"
#include "rows.cuh"

namespace rankmesh::cuda::ops {

template <int N>
__device__ inline void JoinTo(int reduction, const float (&right)[N], float (&sum)[N]) {
#pragma unroll
  for (int i = 0; i < N; i++) sum[i] = Joined(reduction, sum[i], right[i]);
}

/** N elements of the slices from `at` on, one after another. */
template <typename From, int N>
__device__ inline void JoinChain(const void* const* slices, int count, int reduction, int64_t at, int64_t there, float (&sum)[N]) {
  using Bits = typename From::Bits;
  GetSome<From>(static_cast<const Bits*>(slices[0]) + at, there, sum);
#pragma unroll 4
  for (int s = 1; s < count; s++) {
    float next[N];
    GetSome<From>(static_cast<const Bits*>(slices[s]) + at, there, next);
    JoinTo(reduction, next, sum);
  }
}

template <typename From, int N>
__device__ inline void JoinTree(const ReduceArgs& args, int64_t at, int64_t there, float (&sum)[N]) {
  float waiting[kWaiting][N];
  int depth = 0;
#pragma unroll 1
  for (int s = 0; s < args.count; s++) {
    float next[N];
    GetSome<From>(static_cast<const typename From::Bits*>(args.slices[s]) + at, there, next);
#pragma unroll 1
    for (int joins = args.joins[s]; joins > 0; joins--) {
      depth--;
#pragma unroll
      for (int i = 0; i < N; i++) next[i] = Joined(args.reduction, waiting[depth][i], next[i]);
    }
#pragma unroll
    for (int i = 0; i < N; i++) waiting[depth][i] = next[i];
    depth++;
  }
#pragma unroll
  for (int i = 0; i < N; i++) sum[i] = waiting[0][i];
}

template <typename From, typename To, bool kTree>
__device__ inline void Reduce(const ReduceArgs& args) {
  constexpr int N = kTree ? 4 : 8;
  EachOf(args.rows, (args.n + N - 1) / N, [&](int64_t row, int64_t i) {
    const int64_t at = i * N, there = args.n - at;
    float sum[N] = {};
    if (args.count > 0) {
      if constexpr (kTree) JoinTree<From>(args, row * args.pitch + at, there, sum);
      else JoinChain<From>(args.slices, args.count, args.reduction, row * args.pitch + at, there, sum);
    }
    if (args.divisor != 1.0f) {
#pragma unroll
      for (int j = 0; j < N; j++) sum[j] = __fdiv_rn(sum[j], args.divisor);
    }
    PutSome<To>(static_cast<typename To::Bits*>(args.y) + row * args.n + at, there, sum);
  });
}

__device__ inline void ReduceWords(const ReduceArgs& args) {
  EachOf(args.rows, args.n, [&](int64_t row, int64_t i) {
    uint32_t sum = 0;
#pragma unroll 1
    for (int s = 0; s < args.count; s++) {
      const uint32_t value = static_cast<const uint32_t*>(args.slices[s])[row * args.pitch + i];
      sum = s == 0 ? value : Joined(args.reduction, sum, value);
    }
    static_cast<uint32_t*>(args.y)[row * args.n + i] = sum;
  });
}

template <typename From, typename E>
__device__ inline void ReduceNorm(const ReduceNormArgs& args) {
  constexpr int N = kLanes<E>;
  const int64_t n = args.n, row = blockIdx.x;
  const Vectors<E> residual = RowOf<E>(args.residual, row, n), bias(args.bias, n);
  float squares = 0.0f;
  for (int64_t i = threadIdx.x; i < VectorsOf<E>(n); i += blockDim.x) {
    float s[N], sum[N] = {};
    Unpack<E>(residual.Get(i), s);
    if (args.count > 0) JoinChain<From>(args.slices, args.count, kJoinSum, row * n + i * N, n - i * N, sum);
    JoinTo(kJoinSum, sum, s);
    if (args.bias != nullptr) {
      float added[N];
      Unpack<E>(bias.Get(i), added);
      JoinTo(kJoinSum, added, s);
    }
    const Packet packet = Pack<E>(s);
    residual.Put(i, packet);
    Unpack<E>(packet, s);
#pragma unroll
    for (int k = 0; k < N; k++) squares = __fmaf_rn(s[k], s[k], squares);
  }
  float scale;
  if (args.portable) {
    __syncthreads(); // a thread reads what others wrote
    scale = PortableScale<E>(static_cast<const typename E::Bits*>(args.residual) + row * n, n, args.eps);
  } else {
    BlockReduce reduce;
    scale = RowScale(reduce.Sum(squares), n, args.eps);
  }
  PutNormed<E>(residual, Vectors<E>(args.weight, n), RowOf<E>(args.y, row, n), n, scale, args.weight_bias);
}

/** Unit: what moves in one access; addresses and sizes of all slices are multiples of it. */
template <typename Unit>
__device__ inline void Gather(const GatherRowsArgs& args) {
  const int slice = static_cast<int>(blockIdx.x % args.count);
  const int64_t first = args.columns[slice], width = args.columns[slice + 1] - first, all = args.rows * width;
  const int64_t step = static_cast<int64_t>(gridDim.x) / args.count * blockDim.x;
  const Unit* const from = static_cast<const Unit*>(args.slices[slice]);
  for (int64_t at = static_cast<int64_t>(blockIdx.x) / args.count * blockDim.x + threadIdx.x; at < all; at += step) {
    const int64_t row = all <= UINT32_MAX ? static_cast<uint32_t>(at) / static_cast<uint32_t>(width) : at / width;
    static_cast<Unit*>(args.y)[row * args.pitch + first + at - row * width] = from[at];
  }
}

}  // namespace rankmesh::cuda::ops
