// Rows of rounded values to narrow codes and their scales, which are exact functions of the row: products are rounded once.
#pragma once
#include "block_reduce.cuh"
#include "narrow.cuh"

namespace rankmesh::cuda {

/** The byte of group j of a row: four groups of a row to a word, columns of words, rows padded to 4. */
__device__ inline int64_t GroupOffset(int64_t rows, int64_t row, int64_t j) { return (j / 4 * ((rows + 3) / 4 * 4) + row) * 4 + j % 4; }

/** Writes `bytes` bytes of the code words, all of them where those are words. */
__device__ inline void PutCodes(uint8_t* to, const uint32_t (&words)[2], int64_t bytes) {
  for (int i = 0; i < 2; i++) {
    if (bytes >= 4 * i + 4 && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
      reinterpret_cast<uint32_t*>(to)[i] = words[i];
    } else {
      for (int k = 4 * i; k < 4 * i + 4 && k < bytes; k++) to[k] = static_cast<uint8_t>(words[i] >> (8 * (k - 4 * i)));
    }
  }
}

/** Codes of e4m3 for the values of vector i of a row, each made by `code(value)`. */
template <typename T, typename F>
__device__ inline void PutFp8(uint8_t* row, int64_t n, int64_t i, const float (&value)[kLanes<T>], F code) {
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < kLanes<T>; k++) words[k / 4] |= code(value[k]) << (8 * (k % 4));
  const int64_t rest = n - i * kLanes<T>;
  PutCodes(row + i * kLanes<T>, words, rest < kLanes<T> ? rest : kLanes<T>);
}

/** Quantises vector i of a row to fp4; by whole warps, whose lanes hold consecutive vectors. `there`: the row has a vector i. */
template <typename T>
__device__ inline void PutFp4(const QuantArgs& args, int64_t row, int64_t n, int64_t i, const float (&value)[kLanes<T>], bool there) {
  constexpr int kShare = kFp4Block / kLanes<T>;
  uint32_t peak = 0;
#pragma unroll
  for (int k = 0; k < kLanes<T>; k++) peak = PeakBits(value[k]) > peak ? PeakBits(value[k]) : peak;
#pragma unroll
  for (int step = 1; step < kShare; step *= 2) {
    const uint32_t other = __float_as_uint(__shfl_xor_sync(0xffffffffu, __uint_as_float(peak), step));
    peak = other > peak ? other : peak;
  }
  if (!there) return;
  const uint32_t scale = BlockScale(peak, args.factor);
  const float factor = BlockFactor(scale, args.factor);
  uint32_t words[2] = {0, 0};
#pragma unroll
  for (int k = 0; k < kLanes<T>; k++) words[0] |= EncodeE2m1(Product(value[k], factor), value[k]) << (4 * k);
  PutCodes(args.codes + (row * n + i * kLanes<T>) / 2, words, kLanes<T> / 2);
  if (i % kShare == 0) args.scales[ScaleOffset(args.layout, row, i / kShare, n / kFp4Block)] = static_cast<uint8_t>(scale);
}

/** Zeros for the scales of tiles that are behind those of a row, and behind the last of `rows` rows. All threads of the block. */
__device__ inline void PadFp4(const QuantArgs& args, int64_t rows, int64_t row, int64_t n) {
  if (args.layout == ScaleLayout::kRows) return;
  const int64_t columns = n / kFp4Block, wide = (columns + 3) / 4 * 4, tile = args.layout == ScaleLayout::kTilesOf128 ? 128 : 8;
  for (int64_t k = columns + threadIdx.x; k < wide; k += blockDim.x) args.scales[ScaleOffset(args.layout, row, k, columns)] = 0;
  if (row + 1 < rows) return;
  const int64_t spare = (rows + tile - 1) / tile * tile - rows;
  for (int64_t at = threadIdx.x; at < spare * wide; at += blockDim.x) {
    args.scales[ScaleOffset(args.layout, rows + at / wide, at % wide, columns)] = 0;
  }
}

/** Quantises a row to fp8 by groups, a warp a group; `value(k)` is element k. All threads of the block. */
template <typename F>
__device__ inline void PutGroups(const QuantArgs& args, int64_t rows, int64_t row, int64_t n, F value) {
  constexpr int kWarp = 32;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t groups = n / args.group;
  for (int64_t j = threadIdx.x / kWarp; j < groups; j += blockDim.x / kWarp) {
    uint32_t peak = 0;
    for (int k = lane; k < args.group; k += kWarp) {
      const uint32_t bits = PeakBits(value(j * args.group + k));
      peak = bits > peak ? bits : peak;
    }
#pragma unroll
    for (int step = kWarp / 2; step > 0; step /= 2) {
      const uint32_t other = __float_as_uint(__shfl_xor_sync(0xffffffffu, __uint_as_float(peak), step));
      peak = other > peak ? other : peak;
    }
    const uint32_t exponent = GroupExponent(peak);
    const float factor = GroupFactor(exponent);
    for (int k = lane; k < args.group; k += kWarp) {
      const float v = value(j * args.group + k);
      args.codes[row * n + j * args.group + k] = static_cast<uint8_t>(EncodeE4m3(__fmul_rn(v, factor), v));
    }
    if (lane == 0) args.scales[GroupOffset(rows, row, j)] = static_cast<uint8_t>(exponent);
  }
  // What no group fills: the end of the last word, and the padding rows of all columns but the last.
  const int64_t words = (groups + 3) / 4, padded = (rows + 3) / 4 * 4;
  for (int64_t j = groups + threadIdx.x; j < 4 * words; j += blockDim.x) args.scales[GroupOffset(rows, row, j)] = 0;
  if (row + 1 < rows) return;
  for (int64_t spare = rows; spare < padded; spare++) {
    for (int64_t j = threadIdx.x; j < 4 * (words - 1); j += blockDim.x) args.scales[GroupOffset(rows, spare, j)] = 0;
  }
}

}  // namespace rankmesh::cuda
