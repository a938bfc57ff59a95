// Weights as matrices store them: plain elements, or GGUF blocks of small integers that share scales (runtime/core/blocks.ts), as float32.
//
// A type is read in units of kUnit elements, kUnit / 8 eights each. `Read` fetches what a unit needs, `Eight` makes eight elements of it:
// those of blocks have the bits that runtime/core/blocks.ts gives. kWhole: rows begin at multiples of kNatural bytes, and plain ones have
// whole eights; what is true of all rows where it is of the first one (Whole).
#pragma once
#include "loads.cuh"

namespace rankmesh::cuda::ops {

/** As Load, of memory that nobody writes while the kernel runs. */
__device__ inline Packet LoadConstant(const Packet* from) {
#ifdef __CUDACC__
  Packet p;
  asm("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(p.word[0]), "=r"(p.word[1]), "=r"(p.word[2]), "=r"(p.word[3])
      : "l"(from));
  return p;
#else
  return Load(from);
#endif
}

/** Elements of type T, one by one. */
template <typename T>
struct Plain {
  static constexpr int kUnit = kEight;
  static constexpr int kValues = 1;
  static constexpr int kBytes = sizeof(typename T::Bits);
  static constexpr int kNatural = sizeof(Packet);
  static constexpr int kPackets = kEight / kLanes<T>;
  struct Raw {
    Packet packet[kPackets];
  };

  template <bool kWhole>
  __device__ static Raw Read(const uint8_t* row, int64_t unit, int64_t k) {
    const auto* const from = reinterpret_cast<const typename T::Bits*>(row) + unit * kEight;
    Raw raw;
    if constexpr (kWhole) {
#pragma unroll
      for (int p = 0; p < kPackets; p++) raw.packet[p] = LoadConstant(reinterpret_cast<const Packet*>(from) + p);
    } else {
      const Vectors<T> vectors(from, k - unit * kEight);
#pragma unroll
      for (int p = 0; p < kPackets; p++) raw.packet[p] = vectors.Get(p);
    }
    return raw;
  }

  __device__ static void Eight(const Raw& raw, int, float (&value)[kEight]) {
#pragma unroll
    for (int p = 0; p < kPackets; p++) {
      float part[kLanes<T>];
      Unpack<T>(raw.packet[p], part);
#pragma unroll
      for (int i = 0; i < kLanes<T>; i++) value[p * kLanes<T> + i] = part[i];
    }
  }
};

/** Type W for weights that are moved, not multiplied. */
template <typename W>
struct MovedWeights {
  using Type = W;
};
template <typename T>
struct MovedWeights<Plain<T>> {
  using Type = Plain<Moved<T>>;
};

/** Four bytes, in accesses of kNatural bytes where that is asked for. */
template <int kNatural>
__device__ inline uint32_t WordAt(const uint8_t* at) {
  if constexpr (kNatural >= 4) return *reinterpret_cast<const uint32_t*>(at);
  else if constexpr (kNatural == 2) return reinterpret_cast<const uint16_t*>(at)[0] | static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(at)[1]) << 16;
  else return at[0] | at[1] << 8 | at[2] << 16 | static_cast<uint32_t>(at[3]) << 24;
}

__device__ inline float HalfAt(const uint8_t* at) { return HalfToFloat(static_cast<uint16_t>(at[0] | at[1] << 8)); }

/** Byte i of words in order. */
__device__ inline uint32_t ByteOf(const uint32_t* words, int i) { return (words[i / 4] >> (8 * (i % 4))) & 0xffu; }
__device__ inline float SignedByteOf(const uint32_t* words, int i) { return static_cast<float>(static_cast<int8_t>(ByteOf(words, i))); }

/** d, then 32 signed bytes q: d * q. */
struct Q8_0 {
  static constexpr int kUnit = 32, kValues = 32, kBytes = 34, kNatural = 2;
  struct Raw {
    float d;
    uint32_t words[8];
  };
  template <bool kWhole>
  __device__ static Raw Read(const uint8_t* row, int64_t unit, int64_t) {
    const uint8_t* const block = row + unit * kBytes;
    Raw raw{HalfAt(block), {}};
#pragma unroll
    for (int i = 0; i < 8; i++) raw.words[i] = WordAt<kWhole ? kNatural : 1>(block + 2 + 4 * i);
    return raw;
  }
  __device__ static void Eight(const Raw& raw, int eight, float (&value)[kEight]) {
#pragma unroll
    for (int i = 0; i < kEight; i++) value[i] = __fmul_rn(raw.d, SignedByteOf(raw.words + 2 * eight, i));
  }
};

/** Number i of 32 nibbles: the low ones of 16 bytes, then the high ones. */
__device__ inline float NibbleOf(const uint32_t* words, int i) {
  return static_cast<float>((ByteOf(words, i % 16) >> (i / 16 * 4)) & 15u);
}

/** d, then 32 nibbles q: d * (q - 8). */
struct Q4_0 {
  static constexpr int kUnit = 32, kValues = 32, kBytes = 18, kNatural = 2;
  struct Raw {
    float d;
    uint32_t words[4];
  };
  template <bool kWhole>
  __device__ static Raw Read(const uint8_t* row, int64_t unit, int64_t) {
    const uint8_t* const block = row + unit * kBytes;
    Raw raw{HalfAt(block), {}};
#pragma unroll
    for (int i = 0; i < 4; i++) raw.words[i] = WordAt<kWhole ? kNatural : 1>(block + 2 + 4 * i);
    return raw;
  }
  __device__ static void Eight(const Raw& raw, int eight, float (&value)[kEight]) {
#pragma unroll
    for (int i = 0; i < kEight; i++) value[i] = __fmul_rn(raw.d, NibbleOf(raw.words, eight * kEight + i) - 8.0f);
  }
};

/** d, m, then 32 nibbles q: d * q + m. */
struct Q4_1 {
  static constexpr int kUnit = 32, kValues = 32, kBytes = 20, kNatural = 4;
  struct Raw {
    float d, m;
    uint32_t words[4];
  };
  template <bool kWhole>
  __device__ static Raw Read(const uint8_t* row, int64_t unit, int64_t) {
    const uint8_t* const block = row + unit * kBytes;
    Raw raw{HalfAt(block), HalfAt(block + 2), {}};
#pragma unroll
    for (int i = 0; i < 4; i++) raw.words[i] = WordAt<kWhole ? kNatural : 1>(block + 4 + 4 * i);
    return raw;
  }
  __device__ static void Eight(const Raw& raw, int eight, float (&value)[kEight]) {
#pragma unroll
    for (int i = 0; i < kEight; i++) value[i] = __fmaf_rn(raw.d, NibbleOf(raw.words, eight * kEight + i), raw.m);
  }
};

/** d, m, 8 scales and minima in 12 bytes, with kFifths 32 bytes of fifth bits, then 128 bytes of nibbles: run i is d * scale * q - m * minimum. */
template <bool kFifths>
struct Runs {
  static constexpr int kUnit = 32, kValues = 256, kBytes = kFifths ? 176 : 144, kNatural = 4;
  struct Raw {
    float scale, minimum;
    uint32_t words[8];
  };
  template <bool kWhole>
  __device__ static Raw Read(const uint8_t* row, int64_t unit, int64_t) {
    constexpr int kAccess = kWhole ? kNatural : 1;
    const uint8_t* const block = row + unit / 8 * kBytes;
    const uint8_t* const packed = block + 4;
    const int run = static_cast<int>(unit % 8);
    uint32_t scale, minimum;
    if (run < 4) {
      scale = packed[run] & 63u;
      minimum = packed[run + 4] & 63u;
    } else {
      scale = (packed[run + 4] & 15u) | packed[run - 4] >> 6 << 4;
      minimum = packed[run + 4] >> 4 | packed[run] >> 6 << 4;
    }
    Raw raw{__fmul_rn(HalfAt(block), static_cast<float>(scale)), __fmul_rn(HalfAt(block + 2), static_cast<float>(minimum)), {}};
    const uint8_t* const low = block + (kFifths ? 48 : 16) + run / 2 * 32;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      raw.words[i] = WordAt<kAccess>(low + 4 * i) >> (run % 2 * 4) & 0x0f0f0f0fu;
      if constexpr (kFifths) raw.words[i] |= (WordAt<kAccess>(block + 16 + 4 * i) >> run & 0x01010101u) << 4;
    }
    return raw;
  }
  __device__ static void Eight(const Raw& raw, int eight, float (&value)[kEight]) {
#pragma unroll
    for (int i = 0; i < kEight; i++) {
      value[i] = __fmaf_rn(raw.scale, static_cast<float>(ByteOf(raw.words + 2 * eight, i)), -raw.minimum);
    }
  }
};
using Q4_K = Runs<false>;
using Q5_K = Runs<true>;

/** 128 bytes of nibbles, 64 of upper pairs of bits, 16 signed bytes of scales, d: of each 16 elements d * scale * (q - 32). */
struct Q6_K {
  static constexpr int kUnit = 32, kValues = 256, kBytes = 210, kNatural = 2;
  struct Raw {
    float scale[2];
    uint32_t words[8];
  };
  template <bool kWhole>
  __device__ static Raw Read(const uint8_t* row, int64_t unit, int64_t) {
    constexpr int kAccess = kWhole ? kNatural : 1;
    const uint8_t* const block = row + unit / 8 * kBytes;
    const int run = static_cast<int>(unit % 8), r = run % 4;
    const uint8_t* const low = block + run / 4 * 64 + r % 2 * 32;
    const uint8_t* const high = block + 128 + run / 4 * 32;
    const float d = HalfAt(block + 208);
    Raw raw;
#pragma unroll
    for (int i = 0; i < 2; i++) raw.scale[i] = __fmul_rn(d, static_cast<float>(static_cast<int8_t>(block[192 + 2 * run + i])));
#pragma unroll
    for (int i = 0; i < 8; i++) {
      raw.words[i] = (WordAt<kAccess>(low + 4 * i) >> (r / 2 * 4) & 0x0f0f0f0fu) | (WordAt<kAccess>(high + 4 * i) >> (2 * r) & 0x03030303u) << 4;
    }
    return raw;
  }
  __device__ static void Eight(const Raw& raw, int eight, float (&value)[kEight]) {
#pragma unroll
    for (int i = 0; i < kEight; i++) {
      value[i] = __fmul_rn(raw.scale[eight / 2], static_cast<float>(ByteOf(raw.words + 2 * eight, i)) - 32.0f);
    }
  }
};

/** Bytes of a row of k weights. */
template <typename W>
__device__ inline int64_t RowBytes(int64_t k) {
  return k / W::kValues * W::kBytes;
}

template <typename W>
__device__ inline bool Whole(const void* w, int64_t k) {
  return IsAligned(w, W::kNatural) && RowBytes<W>(k) % W::kNatural == 0 && k % W::kUnit == 0;
}

/** Units of k elements, the last of which may be short. */
template <typename W>
__device__ inline int64_t UnitsOf(int64_t k) {
  return (k + W::kUnit - 1) / W::kUnit;
}

}  // namespace rankmesh::cuda::ops
