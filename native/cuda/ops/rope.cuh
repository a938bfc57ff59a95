// Rotary embedding: of each head of q and k, (a, b) = (x[i], x[i + dim / 2]) becomes (a c - b s, b c + a s), c and s from a table; v is copied.
//
// x [tokens, (heads + 2 kv_heads) * dim] holds q, k and v; q goes to its own tensor, k and v to rows start ... of the caches. Contract:
// float32, every step rounded as everywhere, |error| <= 4 * 2^-24 * (|a| + |b|). Grid: any; a thread takes one pair at a time.
#pragma once
#include "loads.cuh"

namespace rankmesh::cuda::ops {

__device__ inline void RopeAppend(const RopeArgs& args) {
  const int64_t dim = args.dim, half = dim / 2, all = args.heads + 2 * args.kv_heads;
  const int64_t start = PositionOf(args.start);
  EachOf(args.tokens, all * half, [&](int64_t token, int64_t at) {
    const int64_t head = static_cast<uint32_t>(at) / static_cast<uint32_t>(half), i = at - head * half;
    const float* const x = args.x + (token * all + head) * dim + i;
    const int64_t row = start + token, kv = head - args.heads;
    const float a = x[0], b = x[half];
    if (kv >= args.kv_heads) {
      float* const to = args.values + (row * args.kv_heads + kv - args.kv_heads) * dim + i;
      to[0] = a;
      to[half] = b;
      return;
    }
    float* const to = kv < 0 ? args.q + (token * args.heads + head) * dim + i : args.keys + (row * args.kv_heads + kv) * dim + i;
    const float cosine = args.table[row * dim + 2 * i], sine = args.table[row * dim + 2 * i + 1];
    to[0] = __fadd_rn(__fmul_rn(a, cosine), -__fmul_rn(b, sine));
    to[half] = __fadd_rn(__fmul_rn(b, cosine), __fmul_rn(a, sine));
  });
}

}  // namespace rankmesh::cuda::ops
