// Sixteen float32 lanes on whatever the processor has, and the conversions of 16-bit floats. One order of additions on all of them.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define RANKMESH_INLINE inline __attribute__((always_inline))

namespace rankmesh::cpu {
namespace {

constexpr int kLanes = 16;

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif
constexpr int kParts = kLanes / kWidth;

typedef float Part __attribute__((vector_size(kWidth * 4)));
typedef uint32_t Words __attribute__((vector_size(kWidth * 4)));
typedef uint16_t Halves __attribute__((vector_size(kWidth * 2)));

struct V {
  Part part[kParts];
};

/** A vector by its parts. Written out, since compilers keep in registers only what no loop goes over. */
template <typename F>
RANKMESH_INLINE V Make(F f) {
  if constexpr (kParts == 1) return V{{f(0)}};
  else if constexpr (kParts == 2) return V{{f(0), f(1)}};
  else return V{{f(0), f(1), f(2), f(3)}};
}

RANKMESH_INLINE Words Bits(Part p) { return (Words)p; }
RANKMESH_INLINE Part Floats(Words w) { return (Part)w; }
/** `yes` where the lane of `mask` is all ones, `no` where it is zero. */
RANKMESH_INLINE Words Select(Words mask, Words yes, Words no) { return (mask & yes) | (~mask & no); }
RANKMESH_INLINE Part Splat(float x) { return x - Part{}; }

RANKMESH_INLINE V Zero() { return Make([](int) { return Part{}; }); }
RANKMESH_INLINE V All(float x) { return Make([=](int) { return Splat(x); }); }
RANKMESH_INLINE V operator+(V a, V b) { return Make([&](int i) { return a.part[i] + b.part[i]; }); }
RANKMESH_INLINE V operator-(V a, V b) { return Make([&](int i) { return a.part[i] - b.part[i]; }); }
RANKMESH_INLINE V operator*(V a, V b) { return Make([&](int i) { return a.part[i] * b.part[i]; }); }
RANKMESH_INLINE V operator/(V a, V b) { return Make([&](int i) { return a.part[i] / b.part[i]; }); }
/** The larger one, b where a is NaN. */
RANKMESH_INLINE V Max(V a, V b) { return Make([&](int i) { return Floats(Select((Words)(a.part[i] > b.part[i]), Bits(a.part[i]), Bits(b.part[i]))); }); }
RANKMESH_INLINE V Min(V a, V b) { return Make([&](int i) { return Floats(Select((Words)(a.part[i] < b.part[i]), Bits(a.part[i]), Bits(b.part[i]))); }); }

/** a * b + c, with one rounding where the processor can. */
RANKMESH_INLINE V Fma(V a, V b, V c) {
#if defined(__AVX512F__)
  return Make([&](int i) { return (Part)_mm512_fmadd_ps((__m512)a.part[i], (__m512)b.part[i], (__m512)c.part[i]); });
#elif defined(__AVX2__)
  return Make([&](int i) { return (Part)_mm256_fmadd_ps((__m256)a.part[i], (__m256)b.part[i], (__m256)c.part[i]); });
#else
  return a * b + c;
#endif
}

/** All lanes: i and i + 8, then i and i + 4, 2, 1. */
RANKMESH_INLINE float Sum(V v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof lanes);
#if defined(__AVX512F__)
  const __m512 all = (__m512)v.part[0];
  __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(all), _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(all), 1)));
#elif defined(__AVX2__)
  __m256 eight = _mm256_add_ps((__m256)v.part[0], (__m256)v.part[1]);
#endif
#if defined(__AVX2__)
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
#else
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
  return lanes[0];
#endif
}

RANKMESH_INLINE float Largest(V v) {
  float lanes[kLanes];
  std::memcpy(lanes, &v, sizeof lanes);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) lanes[i] = lanes[i] > lanes[i + half] ? lanes[i] : lanes[i + half];
  return lanes[0];
}

/** A 16-bit or 32-bit float type: how sixteen of its elements are read and written, to nearest even, NaN as the one NaN with its sign. */
struct F32 {
  using T = float;
  /** Elements of one T: more than one for the blocks of blocks.inc. */
  static constexpr size_t kValues = 1;
  static RANKMESH_INLINE V Load(const T* from) {
    return Make([&](int i) {
      Part part;
      std::memcpy(&part, from + i * kWidth, sizeof part);
      return part;
    });
  }
  static RANKMESH_INLINE void Store(T* to, V v) {
    Make([&](int i) {
      std::memcpy(to + i * kWidth, &v.part[i], sizeof(Part));
      return Part{};
    });
  }
  /** The elements in each 32-bit word, the low one first, sixteen floats apart. */
  static RANKMESH_INLINE void Spread(float* to, Part words) { std::memcpy(to, &words, sizeof words); }
};

RANKMESH_INLINE Words Widen(const uint16_t* from) {
#if defined(__AVX512F__)
  return (Words)_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
  return (Words)_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#endif
  Halves halves;
  std::memcpy(&halves, from, sizeof halves);
  return __builtin_convertvector(halves, Words);
}

RANKMESH_INLINE void Narrow(uint16_t* to, Words words) {
  const Halves halves = __builtin_convertvector(words, Halves);
  std::memcpy(to, &halves, sizeof halves);
}

struct Bf16 {
  using T = uint16_t;
  static constexpr size_t kValues = 1;
  static RANKMESH_INLINE V Load(const T* from) {
    return Make([&](int i) { return Floats(Widen(from + i * kWidth) << 16); });
  }
  static RANKMESH_INLINE void Store(T* to, V v) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; i++) {
      const Words u = Bits(v.part[i]);
      const Words rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
      const Words nan = ((u >> 16) & 0x8000u) | 0x7fc0u;
      Narrow(to + i * kWidth, Select((Words)(v.part[i] != v.part[i]), nan, rounded));
    }
  }
  static RANKMESH_INLINE void Spread(float* to, Part words) {
    const Words low = Bits(words) << 16;
    const Words high = Bits(words) & 0xffff0000u;
    std::memcpy(to, &low, sizeof low);
    std::memcpy(to + kLanes, &high, sizeof high);
  }
};

struct F16 {
  using T = uint16_t;
  static constexpr size_t kValues = 1;
  static RANKMESH_INLINE Part LoadOne(const T* from) {
#if defined(__AVX512F__)
    return (Part)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return (Part)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    return FromWords(Widen(from));
#endif
  }
  static RANKMESH_INLINE Part FromWords(Words h) {
#if defined(__AVX512F__)
    return (Part)_mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)h));
#elif defined(__AVX2__)
    const auto both = (__m256i)h;
    return (Part)_mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(both), _mm256_extracti128_si256(both, 1)));
#else
    // The exponent is moved to its place and multiplied up, which makes subnormal numbers right too.
    const Words finite = Bits(Floats((h & 0x7fffu) << 13) * Splat(0x1p112f));
    const Words special = 0x7f800000u | ((h & 0x3ffu) << 13);
    return Floats(Select((Words)((h & 0x7c00u) == 0x7c00u), special, finite) | ((h & 0x8000u) << 16));
#endif
  }
  static RANKMESH_INLINE V Load(const T* from) {
    return Make([&](int i) { return LoadOne(from + i * kWidth); });
  }
  static RANKMESH_INLINE void Spread(float* to, Part words) {
    const Part low = FromWords(Bits(words) & 0xffffu);
    const Part high = FromWords(Bits(words) >> 16);
    std::memcpy(to, &low, sizeof low);
    std::memcpy(to + kLanes, &high, sizeof high);
  }
  static RANKMESH_INLINE void Store(T* to, V v) {
#pragma GCC unroll 4
    for (int i = 0; i < kParts; i++) {
      const Words sign = (Bits(v.part[i]) >> 16) & 0x8000u;
      const Words u = Bits(v.part[i]) & 0x7fffffffu;
      const Words normal = (u - 0x38000000u + 0xfffu + ((u >> 13) & 1u)) >> 13;
      // The sum's last bit is worth 2^-24, the smallest step of float16.
      const Words subnormal = Bits(Floats(u) + Splat(0.5f)) - 0x3f000000u;
      Words h = Select((Words)(u < 0x38800000u), subnormal, normal);
      h = Select((Words)(u >= 0x477ff000u), Words{} + 0x7c00u, h);
      h = Select((Words)(u > 0x7f800000u), Words{} + 0x7e00u, h);
      Narrow(to + i * kWidth, sign | h);
    }
  }
};

/** The first `count` < 16 lanes from memory, the others zero. */
template <typename E>
RANKMESH_INLINE V LoadPart(const typename E::T* from, size_t count) {
  typename E::T some[kLanes] = {};
  std::memcpy(some, from, count * sizeof(typename E::T));
  return E::Load(some);
}

template <typename E>
RANKMESH_INLINE void StorePart(typename E::T* to, V v, size_t count) {
  typename E::T some[kLanes];
  E::Store(some, v);
  std::memcpy(to, some, count * sizeof(typename E::T));
}

/** e^x within 2 ULP, every step as runtime/core/portable.ts has it: 0 where it is no normal number, infinity above the largest, NaN for NaN. */
RANKMESH_INLINE V Exp(V x) {
  return Make([&](int i) {
    Part p = x.part[i];
    const Words low = (Words)(p < Splat(-87.33f));
    const Words high = (Words)(p > Splat(88.72283f));
    p = Floats(Select(low | high, Words{}, Bits(p)));
    // Adding 1.5 * 2^23 rounds to an integer, whose bits are then the low ones.
    const Part shifted = p * Splat(1.44269504088896341f) + Splat(12582912.0f);
    const Part n = shifted - Splat(12582912.0f);
    const Words integer = Bits(shifted) - 0x4b400000u;
    const Part r = (p - n * Splat(0.693359375f)) - n * Splat(-2.12194440e-4f);
    Part y = Splat(1.9875691500e-4f);
    y = y * r + Splat(1.3981999507e-3f);
    y = y * r + Splat(8.3334519073e-3f);
    y = y * r + Splat(4.1665795894e-2f);
    y = y * r + Splat(1.6666665459e-1f);
    y = y * r + Splat(5.0000001201e-1f);
    y = y * (r * r) + r + Splat(1.0f);
    // 2^n in two factors, so that neither leaves the range.
    typedef int32_t Signed __attribute__((vector_size(kWidth * 4)));
    const Signed half = (Signed)integer >> 1;
    const Words first = ((Words)half + 127u) << 23;
    const Words second = ((Words)((Signed)integer - half) + 127u) << 23;
    const Words power = Bits(y * Floats(first) * Floats(second));
    return Floats(Select(low, Words{}, Select(high, Words{} + 0x7f800000u, power)));
  });
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define RANKMESH_SHUFFLES
#endif
#endif

#ifdef RANKMESH_SHUFFLES
RANKMESH_INLINE Part Low(Part a, Part b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
#else
  return __builtin_shufflevector(a, b, 0, 4, 1, 5);
#endif
}
RANKMESH_INLINE Part High(Part a, Part b) {
#if defined(__AVX512F__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#elif defined(__AVX2__)
  return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
#else
  return __builtin_shufflevector(a, b, 2, 6, 3, 7);
#endif
}

/** rows[i] lane j becomes rows[j] lane i, by perfect shuffles. */
RANKMESH_INLINE void Transpose(Part (&rows)[kWidth]) {
#pragma GCC unroll 4
  for (int step = 1; step < kWidth; step *= 2) {
    Part next[kWidth];
#pragma GCC unroll 8
    for (int i = 0; i < kWidth / 2; i++) {
      next[2 * i] = Low(rows[i], rows[i + kWidth / 2]);
      next[2 * i + 1] = High(rows[i], rows[i + kWidth / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) rows[i] = next[i];
  }
}
#endif

}  // namespace
}  // namespace rankmesh::cpu
