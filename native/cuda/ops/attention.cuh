// Causal grouped-query attention over a cache: y = softmax(q k^T * scale) v for each token and head, in float32.
//
// The token at position m = start + t sees keys j with m - window < j <= m (window 0: all j <= m). Query head h reads kv head h / (heads /
// kv_heads). dim is a multiple of 4, at most kDim. Keys are dealt out in spans of kSpan, which begin at multiples of kSpan whatever the
// token: a warp goes through a span in chunks of kChunk keys with a running maximum and sum (online softmax), a lane taking one key of a
// chunk, then some columns of v, keys ascending; spans are joined one after another in the same way. So a query's bits depend on the query
// and the keys that it sees, not on how many queries travel with it. Contract: with r the largest difference of two scores of a token,
// |error| <= (16 + 4 r + keys + dim) * 2^-24 * max |v|, and r's own error from q k^T.
//
// Attention: grid of blocks, spans fastest, then parts of the heads of a kv head, kv heads, groups of tokens; a warp for each pair of a
// token and a head, and at least four. Shared memory: kChunk rows of dim + 4 floats, and kChunk floats a warp. One span: writes y, else parts.
// AttentionJoin: grid of any size, a warp for each pair of a token and a head at a time.
#pragma once
#include "loads.cuh"

namespace rankmesh::cuda::ops {

/** Sums of weights and weighted values, of scores up to `top`. A lane has quads lane, lane + 32 ... of the values. */
template <int kQuads>
struct Mixed {
  float top = __uint_as_float(0xff800000u);
  float sum = 0.0f;
  float values[kQuads][4] = {};

  /** What was added so far, for a larger `top`. */
  __device__ void Raise(float higher) {
    const float keep = expf(top - higher);
    top = higher;
    sum = __fmul_rn(sum, keep);
#pragma unroll
    for (int c = 0; c < kQuads; c++)
#pragma unroll
      for (int i = 0; i < 4; i++) values[c][i] = __fmul_rn(values[c][i], keep);
  }

  __device__ void Write(float* y, int64_t quads) const {
    for (int c = 0; c < kQuads; c++) {
      const int64_t quad = threadIdx.x % 32 + 32 * c;
      if (quad >= quads) continue;
      float value[4];
#pragma unroll
      for (int i = 0; i < 4; i++) value[i] = __fdiv_rn(values[c][i], sum);
      PutSome<Float32>(reinterpret_cast<uint32_t*>(y + quad * 4), 4, value);
    }
  }
};

__device__ inline void GetQuad(const float* from, float (&value)[4]) { GetSome<Float32>(reinterpret_cast<const uint32_t*>(from), 4, value); }

/** The first key that the token at a position sees. */
__device__ inline int64_t FirstKey(const AttentionArgs& args, int64_t position) {
  return args.window > 0 && position + 1 > args.window ? position + 1 - args.window : 0;
}

template <int kDim>
__device__ inline void Attention(const AttentionArgs& args) {
  constexpr int kQuads = (kDim + 127) / 128;
  const int64_t dim = args.dim, quads = dim / 4, pitch = dim + 4, row = args.kv_heads * dim, group = args.heads / args.kv_heads;
  float* const tile = reinterpret_cast<float*>(SharedBytes());
  float* const weights = tile + kChunk * pitch + threadIdx.x / 32 * kChunk;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;

  const int64_t start = PositionOf(args.start), first_span = FirstKey(args, start) / kSpan;
  int64_t at = blockIdx.x;
  const int64_t span = first_span + at % args.spans;
  at /= args.spans;
  const int64_t part = at % args.head_parts;
  at /= args.head_parts;
  const int64_t kv = at % args.kv_heads, first_token = at / args.kv_heads * args.block_tokens;
  const int64_t last_token = first_token + args.block_tokens < args.tokens ? first_token + args.block_tokens : args.tokens;
  // Keys of the span that any of these tokens sees.
  const int64_t lowest = FirstKey(args, start + first_token), highest = start + last_token;
  const int64_t begin = span * kSpan > lowest ? span * kSpan : lowest;
  const int64_t end = (span + 1) * kSpan < highest ? (span + 1) * kSpan : highest;
  if (begin >= end) return;

  const int64_t token = first_token + warp / args.block_heads, in_group = part * args.block_heads + warp % args.block_heads;
  const int64_t head = kv * group + in_group;
  const bool works = token < last_token && in_group < group && warp < args.block_tokens * args.block_heads;
  const int64_t here = start + token, from = FirstKey(args, here);
  const float* const q = args.q + (token * args.heads + head) * dim;
  const auto fetch = [&](const float* cache, int64_t chunk) {
    const int64_t rows = chunk + kChunk < end ? kChunk : end - chunk;
    for (int64_t i = threadIdx.x; i < rows * quads; i += blockDim.x) {
      const int64_t key = static_cast<uint32_t>(i) / static_cast<uint32_t>(quads), quad = i - key * quads;
      float value[4];
      GetQuad(cache + (chunk + key) * row + kv * dim + quad * 4, value);
      PutSome<Float32>(reinterpret_cast<uint32_t*>(tile + key * pitch + quad * 4), 4, value);
    }
  };

  Mixed<kQuads> mixed;
  for (int64_t chunk = begin / kChunk * kChunk; chunk < end; chunk += kChunk) {
    // Keys before `begin` are nobody's here, but lie in the cache.
    fetch(args.keys, chunk);
    __syncthreads();
    // Keys [first, last) of the chunk are seen by this warp's token.
    const int first = static_cast<int>(from > chunk ? (from < chunk + kChunk ? from - chunk : kChunk) : 0);
    const int last = static_cast<int>(here < chunk ? 0 : here + 1 < chunk + kChunk ? here + 1 - chunk : kChunk);
    const bool sees = works && first < last;
    if (sees) {
      const bool mine = lane >= first && lane < last;
      float score = __uint_as_float(0xff800000u);
      if (mine) {
        float dots[4] = {};
        for (int64_t c = 0; c < quads; c++) {
          float a[4], b[4];
          GetQuad(q + c * 4, a);
          GetQuad(tile + lane * pitch + c * 4, b);
#pragma unroll
          for (int i = 0; i < 4; i++) dots[i] = __fmaf_rn(a[i], b[i], dots[i]);
        }
        score = __fmul_rn(__fadd_rn(__fadd_rn(dots[0], dots[1]), __fadd_rn(dots[2], dots[3])), args.scale);
      }
      const float highest_here = WarpMax(score);
      mixed.Raise(fmaxf(mixed.top, highest_here));
      const float weight = mine ? expf(score - mixed.top) : 0.0f;
      mixed.sum = __fadd_rn(mixed.sum, WarpSum(weight));
      weights[lane] = weight;
    }
    __syncthreads();
    fetch(args.values, chunk);
    __syncthreads();
    if (sees) {
      for (int j = first; j < last; j++) {
        const float weight = weights[j];
#pragma unroll
        for (int c = 0; c < kQuads; c++) {
          if (lane + 32 * c >= quads) continue;
          float value[4];
          GetQuad(tile + j * pitch + (lane + 32 * c) * 4, value);
#pragma unroll
          for (int i = 0; i < 4; i++) mixed.values[c][i] = __fmaf_rn(weight, value[i], mixed.values[c][i]);
        }
      }
    }
    __syncthreads();
  }
  if (!works || from >= (span + 1) * kSpan || here < span * kSpan) return;
  if (args.spans == 1) return mixed.Write(args.y + (token * args.heads + head) * dim, quads);
  float* const to = args.parts + ((token * args.heads + head) * args.spans + span - first_span) * (dim + 2);
#pragma unroll
  for (int c = 0; c < kQuads; c++) {
    if (lane + 32 * c >= quads) continue;
#pragma unroll
    for (int i = 0; i < 4; i++) to[(lane + 32 * c) * 4 + i] = mixed.values[c][i];
  }
  if (lane == 0) {
    to[dim] = mixed.top;
    to[dim + 1] = mixed.sum;
  }
}

template <int kDim>
__device__ inline void AttentionJoin(const AttentionArgs& args) {
  constexpr int kQuads = (kDim + 127) / 128;
  const int64_t dim = args.dim, quads = dim / 4;
  const int lane = threadIdx.x % 32;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * (blockDim.x / 32);
  const int64_t start = PositionOf(args.start), first_span = FirstKey(args, start) / kSpan;
  for (int64_t at = static_cast<int64_t>(blockIdx.x) * (blockDim.x / 32) + threadIdx.x / 32; at < args.tokens * args.heads; at += warps) {
    const int64_t here = start + at / args.heads;
    const int64_t first = FirstKey(args, here) / kSpan, last = here / kSpan;
    Mixed<kQuads> mixed;
#pragma unroll 2
    for (int64_t span = first; span <= last; span++) {
      const float* const part = args.parts + (at * args.spans + span - first_span) * (dim + 2);
      const float top = part[dim], sum = part[dim + 1];
      const bool begins = span == first;
      if (begins) mixed.top = top;
      else mixed.Raise(fmaxf(mixed.top, top));
      const float weight = expf(top - mixed.top);
      mixed.sum = begins ? sum : __fmaf_rn(sum, weight, mixed.sum);
#pragma unroll
      for (int c = 0; c < kQuads; c++) {
        if (lane + 32 * c >= quads) continue;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float value = part[(lane + 32 * c) * 4 + i];
          mixed.values[c][i] = begins ? value : __fmaf_rn(value, weight, mixed.values[c][i]);
        }
      }
    }
    mixed.Write(args.y + at * dim, quads);
  }
}

}  // namespace rankmesh::cuda::ops
