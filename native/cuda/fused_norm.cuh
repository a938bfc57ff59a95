// h = residual + (x_0 + x_1 + ... + x_(ranks-1)) + bias; y = h * rsqrt(mean(h^2) + eps) * (weight_bias + gamma); y quantised.
//
// The fused all-reduce of a tensor-parallel decoder, in the three ways of all_reduce.cuh. Contract: partials add in float32, ranks
// ascending, then the residual, then the bias, and h is rounded to the element type once; the norm is that of the rounded h, y is rounded
// once, and what is quantised is the rounded y. With `pre_gamma` a row of the sum is normed so itself before the residual comes, and rounded. Every step of the norm is a correctly rounded one, in an order that depends on n alone: a
// row's bits do not depend on the other rows, on the number of blocks nor on the way. All ranks write all rows; two-shot exchanges h.
//
// Grid: any number of blocks up to kMaxBlocks, rows are dealt out in order; RowThreads threads. Rows of any size, multiples of 16 for
// fp4, of less than 2^32 packets in a launch; rows and pointers of whole packets are faster. residual_out may be residual_in; out may be
// this rank's operand, unless those are shared. A call may be several launches, of some of its rows each.
#pragma once
#include "all_reduce.cuh"
#include "quantise.cuh"

namespace rankmesh::cuda {

/** Of a row of n: float32 1 / sqrt(sum of squares / n + eps), every step rounded. */
__device__ inline float RowScale(float squares, int64_t n, float eps) {
  return __fdiv_rn(1.0f, __fsqrt_rn(__fadd_rn(__fdiv_rn(squares, static_cast<float>(n)), eps)));
}

/** Row `row` of a matrix whose rows have n elements. */
template <typename T>
__device__ inline Vectors<T> RowOf(const void* data, int64_t row, int64_t n) {
  return Vectors<T>(static_cast<const typename T::Bits*>(data) + row * n, n);
}

/** The norm of row `row` of all and what follows it; h is in `residual_out`, its vector threadIdx.x also in `mine`. All threads of the block. */
template <typename T, bool kQuantised>
__device__ inline void WriteRow(const NormArgs& args, int64_t row, const Packet& mine, float scale, BlockReduce& reduce) {
  const QuantArgs& quant = args.quant;
  const Vectors<T> h = RowOf<T>(args.residual_out, row, args.n), gamma(args.gamma, args.n), out = RowOf<T>(args.out, row, args.n);
  const int64_t vectors = VectorsOf<T>(args.n);
  const auto weighted = [&](float value, float weight) {
    return __fmul_rn(__fmul_rn(value, scale), args.weight_bias == 0.0f ? weight : __fadd_rn(weight, args.weight_bias));
  };
  // Vector i of y, as rounded.
  const auto normed = [&](int64_t i, float(&y)[kLanes<T>], bool keep) {
    float weight[kLanes<T>];
    Unpack<T>(i == threadIdx.x ? mine : h.Get(i), y);
    Unpack<T>(gamma.Get(i), weight);
#pragma unroll
    for (int k = 0; k < kLanes<T>; k++) y[k] = weighted(y[k], weight[k]);
    const Packet packet = Pack<T>(y);
    if (keep && args.out != nullptr) out.Put(i, packet);
    Unpack<T>(packet, y);
  };
  if constexpr (!kQuantised) {
    for (int64_t i = threadIdx.x; i < vectors; i += blockDim.x) {
      float y[kLanes<T>];
      normed(i, y, true);
    }
    return;
  }
  uint8_t* const codes = quant.codes + row * args.n;
  uint32_t peak = 0;
  // Whole warps together, since fp4 blocks lie across lanes.
  for (int64_t first = 0; first < vectors; first += blockDim.x) {
    const int64_t i = first + threadIdx.x;
    float y[kLanes<T>] = {};
    if (i < vectors) normed(i, y, true);
    if (quant.quant == Quant::kFp4) PutFp4<T>(quant, row, args.n, i, y, i < vectors);
    if (i >= vectors) continue;
    if (quant.quant == Quant::kFp8) {
      PutFp8<T>(codes, args.n, i, y, [&](float v) { return EncodeE4m3(Product(v, quant.factor), v); });
    } else if (quant.quant == Quant::kFp8Rows) {
#pragma unroll
      for (int k = 0; k < kLanes<T>; k++) peak = PeakBits(y[k]) > peak ? PeakBits(y[k]) : peak;
    }
  }
  if (quant.quant == Quant::kFp4 && quant.pad) PadFp4(quant, args.all, row, args.n);
  if (quant.quant == Quant::kFp8Rows) {
    const float wanted = __fdiv_rn(__uint_as_float(reduce.Max(peak)), 448.0f);
    const float unit = wanted > kLeastRowScale ? wanted : kLeastRowScale;
    if (threadIdx.x == 0) reinterpret_cast<float*>(quant.scales)[row] = unit;
    for (int64_t i = threadIdx.x; i < vectors; i += blockDim.x) {
      float y[kLanes<T>];
      normed(i, y, false);
      PutFp8<T>(codes, args.n, i, y, [&](float v) { return EncodeE4m3(__fdiv_rn(v, unit), v); });
    }
  } else if (quant.quant == Quant::kFp8Groups) {
    // A thread reads h that others wrote: the barrier of the row's sum lies between.
    using Bits = typename T::Bits;
    const Bits* const row_of_h = static_cast<const Bits*>(args.residual_out) + row * args.n;
    PutGroups(quant, args.all, row, args.n, [&](int64_t k) {
      return T::Widen(T::Round(weighted(T::Widen(row_of_h[k]), T::Widen(static_cast<const Bits*>(args.gamma)[k]))));
    });
  }
}

template <typename T>
__device__ RANKMESH_APART inline void WriteCodes(const NormArgs& args, int64_t row, const Packet& mine, float scale, BlockReduce& reduce) {
  WriteRow<T, true>(args, row, mine, scale, reduce);
}

/** What AllReduceNorm does with the ranks' packets of this launch, which `get(r, row, i)` gives by the rows of the call. */
template <typename T, int kMost, Algorithm kAlgorithm, bool kQuantised, bool kOnce, typename Get>
__device__ inline void ReduceRows(const NormArgs& args, Get get) {
  const Peers& peers = args.peers;
  const int64_t n = args.n, vectors = VectorsOf<T>(n);
  const Vectors<T> bias(args.bias, n), pre_gamma(args.pre_gamma, n);
  // Of the row: what is added up of the sum's squares before its norm is known, and its scale then.
  float pre_squares = 0.0f, pre_scale = 0.0f;
  bool pre = false;
  // Packets are counted in 32 bits, which divide faster.
  const auto row_of = [&](int64_t at) { return static_cast<int64_t>(static_cast<uint32_t>(at) / static_cast<uint32_t>(vectors)); };
  const auto get_at = [&](int r, int64_t at) {
    const int64_t row = row_of(at);
    return get(r, args.first + row, at - row * vectors);
  };
  const auto join = [&](int64_t at, float(&sum)[kLanes<T>]) {
    const int64_t row = row_of(at), i = at - row * vectors;
    if (kQuantised && pre) {
#pragma unroll
      for (int k = 0; k < kLanes<T>; k++) pre_squares = __fmaf_rn(sum[k], sum[k], pre_squares);
      return Packet{};
    }
    if (kAlgorithm != Algorithm::kTwoShot && args.sum != nullptr) RowOf<T>(args.sum, args.first + row, n).Put(i, Pack<T>(sum));
    if (kQuantised && args.pre_gamma != nullptr) {
      float weight[kLanes<T>];
      Unpack<T>(pre_gamma.Get(i), weight);
#pragma unroll
      for (int k = 0; k < kLanes<T>; k++) sum[k] = T::Widen(T::Round(__fmul_rn(__fmul_rn(sum[k], pre_scale), weight[k])));
    }
    float s[kLanes<T>];
    Unpack<T>(RowOf<T>(args.residual_in, args.first + row, n).Get(i), s);
#pragma unroll
    for (int k = 0; k < kLanes<T>; k++) s[k] = __fadd_rn(s[k], sum[k]);
    if (args.bias != nullptr) {
      float added[kLanes<T>];
      Unpack<T>(bias.Get(i), added);
#pragma unroll
      for (int k = 0; k < kLanes<T>; k++) s[k] = __fadd_rn(s[k], added[k]);
    }
    return Pack<T>(s);
  };
  const int64_t first = FirstOf(args.rows, blockIdx.x, gridDim.x), end = FirstOf(args.rows, blockIdx.x + 1, gridDim.x);
  Exchange<T, kMost, kAlgorithm, kOnce, decltype(get_at), decltype(join)> exchange(peers, args.in, args.rows * vectors, get_at, join);
  if (!Open(peers) || !exchange.Begin(first * vectors, end * vectors)) return;
  BlockReduce reduce;
  for (int64_t row = first; row < end; row++) {
    const Vectors<T> h = RowOf<T>(args.residual_out, args.first + row, n);
    Packet mine{};
    float squares = 0.0f;
    bool missing = false;
    if (kQuantised && args.pre_gamma != nullptr) {
      pre = true, pre_squares = 0.0f;
      for (int64_t i = threadIdx.x; i < vectors && !missing; i += blockDim.x) {
        Packet nothing;
        missing = !exchange.Take(row * vectors + i, nothing);
      }
      pre_scale = RowScale(reduce.Sum(pre_squares, missing), n, args.eps);
      if (reduce.voted()) return;
      pre = false;
    }
    for (int64_t i = threadIdx.x; i < vectors; i += blockDim.x) {
      Packet packet;
      missing = !exchange.Take(row * vectors + i, packet);
      if (missing) break;
      if (i == threadIdx.x) mine = packet;
      h.Put(i, packet);
      float value[kLanes<T>];
      Unpack<T>(packet, value);
#pragma unroll
      for (int k = 0; k < kLanes<T>; k++) squares = __fmaf_rn(value[k], value[k], squares);
    }
    const float sum = reduce.Sum(squares, missing);
    if (reduce.voted()) return;
    const float scale = RowScale(sum, n, args.eps);
    if constexpr (kQuantised) WriteCodes<T>(args, args.first + row, mine, scale, reduce);
    else WriteRow<T, false>(args, args.first + row, mine, scale, reduce);
  }
  exchange.End();
}

/** At most kMost ranks. kQuantised: there may be codes to write, and a norm before the residual. */
template <typename T, int kMost, Algorithm kAlgorithm, bool kQuantised>
__device__ inline void AllReduceNorm(const NormArgs& args) {
  ReduceRows<T, kMost, kAlgorithm, kQuantised, false>(
      args, [&](int r, int64_t row, int64_t i) { return RowOf<T>(args.in.of[r], row, args.n).Get(i); });
}

}  // namespace rankmesh::cuda
