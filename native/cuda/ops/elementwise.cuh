// Operations on each element by itself: y = a + b, y = x in another type, y = silu(gate) * up with silu(v) = v / (1 + exp(-v)).
//
// Contract: float32 arithmetic, each result rounded once, to nearest even, every NaN to the one quiet NaN, in Cast that of its
// sign; words wrap. exp is CUDA's, or, portable, that of portable.cuh, each within
// 2 ULP. y may be an operand of Add and Cast where both begin at one address and elements are of one size. Grid: any; a thread takes
// eight elements at a time.
#pragma once
#include "loads.cuh"
#include "portable.cuh"

namespace rankmesh::cuda::ops {

template <typename T>
__device__ inline void Add(const AddArgs& args) {
  using Bits = typename T::Bits;
  EachOf(1, (args.n + kEight - 1) / kEight, [&](int64_t, int64_t i) {
    const int64_t at = i * kEight;
    float a[kEight], b[kEight];
    GetSome<T>(static_cast<const Bits*>(args.a) + at, args.n - at, a);
    GetSome<T>(static_cast<const Bits*>(args.b) + at, args.n - at, b);
#pragma unroll
    for (int j = 0; j < kEight; j++) a[j] = __fadd_rn(a[j], b[j]);
    PutSome<T>(static_cast<Bits*>(args.y) + at, args.n - at, a);
  });
}

/** Operands begin at multiples of 4. */
__device__ inline void AddWords(const AddArgs& args) {
  EachOf(1, args.n, [&](int64_t, int64_t i) {
    static_cast<uint32_t*>(args.y)[i] = static_cast<const uint32_t*>(args.a)[i] + static_cast<const uint32_t*>(args.b)[i];
  });
}

template <typename From, typename To>
__device__ inline void Cast(const CastArgs& args) {
  EachOf(1, (args.n + kEight - 1) / kEight, [&](int64_t, int64_t i) {
    const int64_t at = i * kEight;
    float value[kEight];
    GetSome<Moved<From>>(static_cast<const typename From::Bits*>(args.x) + at, args.n - at, value);
    PutSome<Moved<To>>(static_cast<typename To::Bits*>(args.y) + at, args.n - at, value);
  });
}

/** x [rows, 2n]: gates, then ups. */
template <typename T>
__device__ inline void SiluMul(const SiluArgs& args) {
  using Bits = typename T::Bits;
  EachOf(args.rows, (args.n + kEight - 1) / kEight, [&](int64_t row, int64_t i) {
    const int64_t at = i * kEight;
    const Bits* const from = static_cast<const Bits*>(args.x) + row * 2 * args.n + at;
    float gate[kEight], up[kEight];
    GetSome<T>(from, args.n - at, gate);
    GetSome<T>(from + args.n, args.n - at, up);
#pragma unroll
    for (int j = 0; j < kEight; j++) {
      const float power = args.portable ? Power(-gate[j]) : expf(-gate[j]);
      gate[j] = __fmul_rn(__fdiv_rn(gate[j], __fadd_rn(1.0f, power)), up[j]);
    }
    PutSome<T>(static_cast<Bits*>(args.y) + row * args.n + at, args.n - at, gate);
  });
}

}  // namespace rankmesh::cuda::ops
