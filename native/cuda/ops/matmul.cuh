// y[t][o] = the sum over k of x[t][k] * w[o][k], + bias[o], for many tokens, x in float32: tiles in shared memory, sums in registers.
//
// A block makes a tile of kTile tokens by kTile outputs, a thread 8 by 4 of them, over ascending k by fused multiplications and additions in
// float32, never in TF32: a token's bits depend on the token alone. Contract: |error| <= (k + 2) * 2^-24 * sum |x w|, half an ULP for the
// bias. Grid: a block of kTileThreads for each tile, those of one group of outputs one after another. Shared memory: kTileBytes.
#pragma once
#include "weights.cuh"

namespace rankmesh::cuda::ops {

/** Rows [first, first + kTile) by elements [at, at + kTileDepth) of `rows` rows of k elements, element by element: to[i * kTilePitch + row]. */
template <typename W, bool kWhole>
__device__ inline void FetchTile(const void* matrix, int64_t first, int64_t rows, int64_t at, int64_t k, float* to) {
  constexpr int kUnits = kTileDepth / W::kUnit;
  for (int i = threadIdx.x; i < kTile * kUnits; i += kTileThreads) {
    // Lanes side by side write side by side.
    const int row = i % kTile;
    const int64_t unit = at / W::kUnit + i / kTile;
    typename W::Raw raw{};
    const bool there = first + row < rows && unit < UnitsOf<W>(k);
    if (there) raw = W::template Read<kWhole>(static_cast<const uint8_t*>(matrix) + (first + row) * RowBytes<W>(k), unit, k);
#pragma unroll
    for (int eight = 0; eight < W::kUnit / kEight; eight++) {
      float value[kEight] = {};
      if (there) W::Eight(raw, eight, value);
#pragma unroll
      for (int j = 0; j < kEight; j++) to[(i / kTile * W::kUnit + eight * kEight + j) * kTilePitch + row] = value[j];
    }
  }
}

template <typename W, bool kWhole>
__device__ inline void Tile(const ProductArgs& args, int64_t token, int64_t out) {
  float* const x = reinterpret_cast<float*>(SharedBytes());
  float* const w = x + kTileDepth * kTilePitch;
  const int row = threadIdx.x / 16 * 8, column = threadIdx.x % 16 * 4;
  float sum[8][4] = {};
  for (int64_t at = 0; at < args.k; at += kTileDepth) {
    if (kWhole) FetchTile<Plain<Float32>, true>(args.x, token, args.tokens, at, args.k, x);
    else FetchTile<Plain<Float32>, false>(args.x, token, args.tokens, at, args.k, x);
    FetchTile<W, kWhole>(args.w, out, args.outs, at, args.k, w);
    __syncthreads();
#pragma unroll 8
    for (int i = 0; i < kTileDepth; i++) {
      float a[8], b[4];
      Unpack<Float32>(Load(reinterpret_cast<const Packet*>(w + i * kTilePitch + column)), b);
#pragma unroll
      for (int half = 0; half < 8; half += 4) {
        float part[4];
        Unpack<Float32>(Load(reinterpret_cast<const Packet*>(x + i * kTilePitch + row + half)), part);
#pragma unroll
        for (int j = 0; j < 4; j++) a[half + j] = part[j];
      }
#pragma unroll
      for (int t = 0; t < 8; t++)
#pragma unroll
        for (int o = 0; o < 4; o++) sum[t][o] = __fmaf_rn(a[t], b[o], sum[t][o]);
    }
    __syncthreads();
  }
#pragma unroll
  for (int t = 0; t < 8; t++) {
#pragma unroll
    for (int o = 0; o < 4; o++) {
      const int64_t to = token + row + t, at = out + column + o;
      if (to >= args.tokens || at >= args.outs) continue;
      args.y[to * args.pitch + at] = args.bias != nullptr ? __fadd_rn(sum[t][o], args.bias[at]) : sum[t][o];
    }
  }
}

template <typename W>
__device__ inline void Matmul(const ProductArgs& args) {
  const int64_t groups = (args.tokens + kTile - 1) / kTile;
  const int64_t token = blockIdx.x % groups * kTile, out = blockIdx.x / groups * kTile;
  if (Whole<W>(args.w, args.k) && Whole<Plain<Float32>>(args.x, args.k)) Tile<W, true>(args, token, out);
  else Tile<W, false>(args, token, out);
}

}  // namespace rankmesh::cuda::ops
