// Products whose sums follow one fixed binary tree over blocks of k (runtime/core/tree.ts), whatever part of k is here and however many tokens
// there are: bits are those of native/cpu/products.inc and shaders/matmul_tree.wgsl, addition by addition.
//
// TreeLeaves: in a block of k, quad by quad, ((a + b) + c) + d with every product rounded, and the quads one after the other: sums
// [leaves, tokens, outs]. x is float32. A thread makes one output of up to kTokens tokens, a block kLeafOuts of them, of `span` leaves one
// after the other; weights come by way of shared memory, kLeafDepth of k at a time. Grid: leaves slowest, then outputs, then tokens.
//
// TreeJoin: puts leaves on a stack, from left to right, and joins while the two topmost are halves of one subtree; `whole`: joins what is
// left, from right to left, and adds the bias. Writes each subtree's sums. Grid: any; a thread takes one output of one token at a time.
#pragma once
#include "weights.cuh"

namespace rankmesh::cuda::ops {

template <typename W, int kTokens, bool kWhole>
__device__ inline void Leaf(const LeavesArgs& args, int64_t leaf, int64_t token, int64_t out, float* x, float* w) {
  const int64_t begin = leaf * args.block, end = begin + args.block < args.k ? begin + args.block : args.k;
  constexpr int kUnits = kLeafDepth / W::kUnit;
  float sum[kTokens] = {};
  // Windows at whole units of weights.
  for (int64_t window = begin / kLeafDepth * kLeafDepth; window < end; window += kLeafDepth) {
    for (int i = threadIdx.x; i < kLeafOuts * kUnits; i += blockDim.x) {
      const int row = i / kUnits, part = i % kUnits;
      const int64_t unit = window / W::kUnit + part;
      if (out + row >= args.outs || unit >= UnitsOf<W>(args.k)) continue;
      const auto raw = W::template Read<kWhole>(static_cast<const uint8_t*>(args.w) + (out + row) * RowBytes<W>(args.k), unit, args.k);
#pragma unroll
      for (int eight = 0; eight < W::kUnit / kEight; eight++) {
        float value[kEight];
        W::Eight(raw, eight, value);
        PutSome<Float32>(reinterpret_cast<uint32_t*>(w + row * kLeafPitch + part * W::kUnit + eight * kEight), kEight, value);
      }
    }
    for (int i = threadIdx.x; i < kTokens * kLeafDepth; i += blockDim.x) {
      const int64_t t = token + i / kLeafDepth, at = window + i % kLeafDepth;
      x[i] = t < args.tokens && at < args.k ? args.x[t * args.k + at] : 0.0f;
    }
    __syncthreads();
    const int first = static_cast<int>((begin > window ? begin : window) - window);
    const int last = static_cast<int>((end < window + kLeafDepth ? end : window + kLeafDepth) - window);
    for (int at = first; at < last; at += 4) {
      float b[4];
      Unpack<Float32>(Load(reinterpret_cast<const Packet*>(w + threadIdx.x * kLeafPitch + at)), b);
#pragma unroll
      for (int t = 0; t < kTokens; t++) {
        float a[4];
        Unpack<Float32>(Load(reinterpret_cast<const Packet*>(x + t * kLeafDepth + at)), a);
        float quad = __fmul_rn(a[0], b[0]);
#pragma unroll
        for (int i = 1; i < 4; i++) quad = __fadd_rn(quad, __fmul_rn(a[i], b[i]));
        sum[t] = __fadd_rn(sum[t], quad);
      }
    }
    __syncthreads();
  }
  if (out + threadIdx.x >= args.outs) return;
#pragma unroll
  for (int t = 0; t < kTokens; t++) {
    if (token + t < args.tokens) args.sums[(leaf * args.tokens + token + t) * args.outs + out + threadIdx.x] = sum[t];
  }
}

template <typename W, int kTokens>
__device__ inline void TreeLeaves(const LeavesArgs& args) {
  float* const x = reinterpret_cast<float*>(SharedBytes());
  float* const w = x + kTokens * kLeafDepth;
  const int64_t groups = (args.tokens + kTokens - 1) / kTokens, columns = (args.outs + kLeafOuts - 1) / kLeafOuts;
  const int64_t token = blockIdx.x % groups * kTokens, out = blockIdx.x / groups % columns * kLeafOuts;
  const int64_t leaves = (args.k + args.block - 1) / args.block, first = blockIdx.x / (groups * columns) * args.span;
  const bool whole = Whole<W>(args.w, args.k);
  for (int64_t leaf = first; leaf < leaves && leaf < first + args.span; leaf++) {
    if (whole) Leaf<W, kTokens, true>(args, leaf, token, out, x, w);
    else Leaf<W, kTokens, false>(args, leaf, token, out, x, w);
  }
}

__device__ inline void TreeJoin(const TreeArgs& args) {
  EachOf(args.tokens, args.outs, [&](int64_t t, int64_t o) {
    float nodes[kTreeNodes];
    int count = 0;
    for (int64_t leaf = 0; leaf < args.leaves; leaf++) {
      float sum = args.sums[(leaf * args.tokens + t) * args.outs + o];
      // This leaf ends a subtree of 2, 4, 8 ... leaves while its index is odd; the left half is here if the rank holds it.
      int64_t index = args.first + leaf;
      for (int64_t size = 2; (index & 1) != 0 && leaf + 1 >= size; index >>= 1, size <<= 1) sum = __fadd_rn(nodes[--count], sum);
      nodes[count++] = sum;
    }
    if (args.whole != 0) {
      for (; count > 1; count--) nodes[count - 2] = __fadd_rn(nodes[count - 2], nodes[count - 1]);
    }
    for (int n = 0; n < count; n++) {
      args.y[n * args.node_pitch + t * args.pitch + o] = args.bias != nullptr ? __fadd_rn(nodes[n], args.bias[o]) : nodes[n];
    }
  });
}

}  // namespace rankmesh::cuda::ops
