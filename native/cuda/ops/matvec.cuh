// y[t][o] = the sum over k of x[t][k] * w[o][k], + bias[o], for few tokens: weights are read once for up to eight of them.
//
// A block makes kMatvecOuts outputs of up to kTokens tokens. Its threads take units of weights in turn, ascending, each a sum in float32 by
// fused multiplications and additions; a binary tree joins the lanes of a warp, then warps follow one another. The order depends on k, on
// the unit of the weights' type and on the number of threads, which depends on k (MatvecThreads): a token's bits depend on the token alone.
// Contract: |error| <= (k + 2) * 2^-24 * sum |x w|, half an ULP for the bias. Grid: a block for each group of outputs and of tokens, tokens
// fastest, so that groups of tokens find weights in the second cache. Shared memory: kTokens * kMatvecOuts floats a warp.
#pragma once
#include "weights.cuh"

namespace rankmesh::cuda::ops {

template <typename X, typename W, int kTokens, bool kWhole>
__device__ inline void MatvecSums(const ProductArgs& args, int64_t token, int64_t out, float (&sum)[kTokens][kMatvecOuts]) {
  using Bits = typename X::Bits;
  const Bits* x[kTokens];
  const uint8_t* w[kMatvecOuts];
  // Tokens and outputs that are not there repeat the last one.
#pragma unroll
  for (int t = 0; t < kTokens; t++) x[t] = static_cast<const Bits*>(args.x) + (token + t < args.tokens ? token + t : args.tokens - 1) * args.k;
#pragma unroll
  for (int o = 0; o < kMatvecOuts; o++) {
    w[o] = static_cast<const uint8_t*>(args.w) + (out + o < args.outs ? out + o : args.outs - 1) * RowBytes<W>(args.k);
  }
  const int64_t units = UnitsOf<W>(args.k);
  // Enough is on its way at once: eights of two units, or one unit of a block.
#pragma unroll(kWhole && W::kUnit == kEight && kTokens <= 4 ? 2 : 1)
  for (int64_t unit = threadIdx.x; unit < units; unit += blockDim.x) {
    typename W::Raw raw[kMatvecOuts];
#pragma unroll
    for (int o = 0; o < kMatvecOuts; o++) raw[o] = W::template Read<kWhole>(w[o], unit, args.k);
    // What is not whole is rare: less code for it.
#pragma unroll(kWhole ? W::kUnit / kEight : 1)
    for (int eight = 0; eight < W::kUnit / kEight; eight++) {
      const int64_t at = unit * W::kUnit + eight * kEight;
      float weight[kMatvecOuts][kEight];
#pragma unroll
      for (int o = 0; o < kMatvecOuts; o++) W::Eight(raw[o], eight, weight[o]);
#pragma unroll
      for (int t = 0; t < kTokens; t++) {
        float value[kEight];
        if constexpr (kWhole) Plain<X>::Eight(Plain<X>::template Read<true>(reinterpret_cast<const uint8_t*>(x[t]), at / kEight, args.k), 0, value);
        else GetSome<X>(x[t] + at, args.k - at, value);
#pragma unroll
        for (int i = 0; i < kEight; i++)
#pragma unroll
          for (int o = 0; o < kMatvecOuts; o++) sum[t][o] = __fmaf_rn(value[i], weight[o][i], sum[t][o]);
      }
    }
  }
}

template <typename X, typename W, int kTokens>
__device__ inline void Matvec(const ProductArgs& args) {
  const int64_t groups = (args.tokens + kTokens - 1) / kTokens;
  const int64_t token = blockIdx.x % groups * kTokens, out = blockIdx.x / groups * kMatvecOuts;
  float sum[kTokens][kMatvecOuts] = {};
  if (Whole<W>(args.w, args.k) && Whole<Plain<X>>(args.x, args.k)) MatvecSums<X, W, kTokens, true>(args, token, out, sum);
  else MatvecSums<X, W, kTokens, false>(args, token, out, sum);

  constexpr int kSums = kTokens * kMatvecOuts;
  float* const sums = reinterpret_cast<float*>(SharedBytes());
  const unsigned warp = threadIdx.x / 32, warps = blockDim.x / 32;
#pragma unroll
  for (int t = 0; t < kTokens; t++) {
#pragma unroll
    for (int o = 0; o < kMatvecOuts; o++) {
      const float all = WarpSum(sum[t][o]);
      if (threadIdx.x % 32 == 0) sums[warp * kSums + t * kMatvecOuts + o] = all;
    }
  }
  __syncthreads();
  if (threadIdx.x >= kSums) return;
  const int64_t t = token + threadIdx.x / kMatvecOuts, o = out + threadIdx.x % kMatvecOuts;
  if (t >= args.tokens || o >= args.outs) return;
  float all = sums[threadIdx.x];
  for (unsigned i = 1; i < warps; i++) all = __fadd_rn(all, sums[i * kSums + threadIdx.x]);
  args.y[t * args.pitch + o] = args.bias != nullptr ? __fadd_rn(all, args.bias[o]) : all;
}

/** y[t][o] += bias[o]. Grid: any. */
__device__ inline void AddBias(const BiasArgs& args) {
  EachOf(args.tokens, args.outs, [&](int64_t t, int64_t o) {
    float* const y = args.y + t * args.pitch + o;
    *y = __fadd_rn(*y, args.bias[o]);
  });
}

}  // namespace rankmesh::cuda::ops
