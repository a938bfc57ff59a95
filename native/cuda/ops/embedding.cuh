// y[t] = table[ids[t] - first], or zeros where the table has no such row: rows of any weights in another type; without ids, row t.
//
// Contract: exact where y's type holds the value, else rounded to nearest even; a NaN keeps its sign. Grid: any; a thread takes one unit of weights at a time.
#pragma once
#include "weights.cuh"

namespace rankmesh::cuda::ops {

template <typename Weight, typename To>
__device__ inline void Embedding(const EmbeddingArgs& args) {
  using W = typename MovedWeights<Weight>::Type;
  const bool whole = Whole<W>(args.table, args.n);
  EachOf(args.tokens, UnitsOf<W>(args.n), [&](int64_t token, int64_t unit) {
    auto* const to = static_cast<typename To::Bits*>(args.y) + token * args.n;
    const uint32_t row = args.ids != nullptr ? args.ids[token] - args.first : static_cast<uint32_t>(token);
    const bool there = row < args.rows;
    const uint8_t* const from = static_cast<const uint8_t*>(args.table) + (there ? row : 0) * RowBytes<W>(args.n);
    typename W::Raw raw{};
    if (there) raw = whole ? W::template Read<true>(from, unit, args.n) : W::template Read<false>(from, unit, args.n);
#pragma unroll
    for (int eight = 0; eight < W::kUnit / kEight; eight++) {
      const int64_t at = unit * W::kUnit + eight * kEight;
      float value[kEight] = {};
      if (there) W::Eight(raw, eight, value);
      PutSome<Moved<To>>(to + at, args.n - at, value);
    }
  });
}

}  // namespace rankmesh::cuda::ops
