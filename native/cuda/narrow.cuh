// Codes of the narrow formats, fp8 (e4m3fn) and fp4 (e2m1), to nearest even and saturating, and where their scales lie. Bits are those of
// shaders/prelude/narrow.wgsl, which quantises for WebGPU.
#pragma once
#include "elements.cuh"
#include "peer_arguments.h"

namespace rankmesh::cuda {

/** Elements that share an fp4 scale. */
constexpr int kFp4Block = 16;
/** (1 / 512) / 448. */
constexpr float kLeastRowScale = 0x1.24924ap-18f;
constexpr float kLeastGroupScale = 1e-10f;

__device__ inline uint32_t Magnitude(float value) { return __float_as_uint(value) & 0x7fffffffu; }
__device__ inline bool IsInfinite(float value) { return Magnitude(value) == 0x7f800000u; }

/** Bits of |value|; NaN counts as 0. They are ordered as the values are. */
__device__ inline uint32_t PeakBits(float value) { return value != value ? 0 : Magnitude(value); }

/** The code of |value| with the sign of `signed_as`. NaN gives 0x7f with that sign, infinity 448. */
__device__ inline uint32_t EncodeE4m3(float value, float signed_as) {
  const uint32_t bits = Magnitude(value);
  uint32_t code;
  if (bits > 0x7f800000u) {
    code = 0x7f;
  } else if (bits < 0x3c800000u) {
    // The sum's last bit is worth 2^-9, the smallest step of e4m3.
    code = __float_as_uint(__fadd_rn(__uint_as_float(bits), 16384.0f)) - 0x46800000u;
  } else {
    code = ((bits + 0x7ffffu + ((bits >> 20) & 1u)) >> 20) - 960u;
    if (code > 0x7e) code = 0x7e;
  }
  return code | ((__float_as_uint(signed_as) >> 24) & 0x80u);
}

/** Of a code without sign, not NaN. */
__device__ inline float DecodeE4m3(uint32_t code) {
  if (code < 8) return static_cast<float>(code) * 0x1p-9f;
  return __uint_as_float((code << 20) + (120u << 23));
}

/** As EncodeE4m3; where `signed_as` is NaN: +6. */
__device__ inline uint32_t EncodeE2m1(float value, float signed_as) {
  if (signed_as != signed_as) return 7;
  const uint32_t a = Magnitude(value);
  uint32_t code = static_cast<uint32_t>(a > 0x3e800000u) + (a >= 0x3f400000u) + (a > 0x3fa00000u);
  code += static_cast<uint32_t>(a >= 0x3fe00000u) + (a > 0x40200000u) + (a >= 0x40600000u) + (a > 0x40a00000u);
  return code | ((__float_as_uint(signed_as) >> 28) & 8u);
}

/** Infinity stays what it is, whatever it is multiplied by. */
__device__ inline float Product(float value, float factor) { return IsInfinite(value) ? value : __fmul_rn(value, factor); }

/** The code of a block's scale. */
__device__ inline uint32_t BlockScale(uint32_t peak, float factor) {
  const float largest = __uint_as_float(peak);
  return EncodeE4m3(IsInfinite(largest) ? largest : __fmul_rn(factor, __fmul_rn(largest, 0x1.555556p-3f)), 0.0f);
}

/** What a block's values are multiplied by. */
__device__ inline float BlockFactor(uint32_t scale, float factor) { return scale == 0 ? 0.0f : __fdiv_rn(factor, DecodeE4m3(scale)); }

/** The byte of block `column` of a row, in rows of `columns` blocks. */
__device__ inline int64_t ScaleOffset(ScaleLayout layout, int64_t row, int64_t column, int64_t columns) {
  if (layout == ScaleLayout::kRows) return row * columns + column;
  const int64_t tiles = (columns + 3) / 4;
  const int64_t tile = layout == ScaleLayout::kTilesOf128 ? 128 : 8;
  const int64_t inside = row % tile;
  const int64_t line = tile == 128 ? inside % 32 * 4 + inside / 32 : inside;
  return (row / tile * tiles + column / 4) * tile * 4 + line * 4 + column % 4;
}

/** The exponent byte of a group's scale: that of its peak / 448, rounded up to a power of two. */
__device__ inline uint32_t GroupExponent(uint32_t peak) {
  const float scale = __fdiv_rn(__uint_as_float(peak), 448.0f);
  return (__float_as_uint(scale > kLeastGroupScale ? scale : kLeastGroupScale) + 0x7fffffu) >> 23;
}

/** What a group's values are multiplied by. Of an infinite scale 0, which makes infinity NaN and everything finite 0. */
__device__ inline float GroupFactor(uint32_t exponent) { return exponent == 255 ? 0.0f : __uint_as_float((254u - exponent) << 23); }

}  // namespace rankmesh::cuda
