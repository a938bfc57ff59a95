// Element types of the kernels, and vectors of 16 bytes of them. Arithmetic is float32; nothing here depends on a compiler's contractions.
#pragma once
#include "platform.cuh"

namespace rankmesh::cuda {

/** A type says how bits become float32 and back: to nearest even, overflow to infinity, every NaN to the one quiet NaN. */
struct Float32 {
  using Bits = uint32_t;
  using Value = float;
  __device__ static float Widen(Bits bits) { return __uint_as_float(bits); }
  __device__ static Bits Round(float value) { return value != value ? 0x7fc00000u : __float_as_uint(value); }
};

struct Bfloat16 {
  using Bits = uint16_t;
  using Value = float;
  __device__ static float Widen(Bits bits) { return __uint_as_float(static_cast<uint32_t>(bits) << 16); }
  __device__ static Bits Round(float value) {
    const uint32_t bits = __float_as_uint(value);
    return static_cast<Bits>(value != value ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
  }
};

struct Float16 {
  using Bits = uint16_t;
  using Value = float;
  __device__ static float Widen(Bits bits) { return HalfToFloat(bits); }
  __device__ static Bits Round(float value) { return value != value ? static_cast<Bits>(0x7e00u) : FloatToHalf(value); }
};

/** Integers of 32 bits, with a sign or without: what they are is what is done with them. */
struct Word {
  using Bits = uint32_t;
  using Value = uint32_t;
  __device__ static Value Widen(Bits bits) { return bits; }
  __device__ static Bits Round(Value value) { return value; }
};

/** Elements of type T in a packet. */
template <typename T>
inline constexpr int kLanes = static_cast<int>(sizeof(Packet) / sizeof(typename T::Bits));

template <typename T>
__device__ inline void Unpack(const Packet& packet, typename T::Value (&value)[kLanes<T>]) {
#pragma unroll
  for (int i = 0; i < kLanes<T>; i++) {
    if constexpr (sizeof(typename T::Bits) == 4) value[i] = T::Widen(packet.word[i]);
    else value[i] = T::Widen(static_cast<uint16_t>(packet.word[i / 2] >> (16 * (i % 2))));
  }
}

template <typename T>
__device__ inline Packet Pack(const typename T::Value (&value)[kLanes<T>]) {
  Packet packet;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if constexpr (sizeof(typename T::Bits) == 4) packet.word[i] = T::Round(value[i]);
    else packet.word[i] = T::Round(value[2 * i]) | static_cast<uint32_t>(T::Round(value[2 * i + 1])) << 16;
  }
  return packet;
}

/** The first of 0, 1, 2 ... of `count` things that part `part` of `parts` has; the next part's first is its end. */
__host__ __device__ constexpr int64_t FirstOf(int64_t count, int part, int parts) { return count * part / parts; }

/** `count` elements as vectors, the last of which may be short: in whole packets where they are aligned, else element by element. */
template <typename T>
class Vectors {
 public:
  using Bits = typename T::Bits;

  __device__ Vectors(const void* data, int64_t count)
      : data_(static_cast<Bits*>(const_cast<void*>(data))),
        count_(count),
        aligned_(reinterpret_cast<uintptr_t>(data) % sizeof(Packet) == 0) {}

  /** Elements that are not there are 0. */
  __device__ Packet Get(int64_t vector) const {
    Bits* const from = data_ + vector * kLanes<T>;
    const int64_t rest = count_ - vector * kLanes<T>;
    if (aligned_ && rest >= kLanes<T>) return Load(reinterpret_cast<const Packet*>(from));
    Packet packet{};
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++) {
      if (i < rest) packet.word[i * sizeof(Bits) / 4] |= static_cast<uint32_t>(from[i]) << (i * sizeof(Bits) % 4 * 8);
    }
    return packet;
  }

  __device__ void Put(int64_t vector, const Packet& packet) const {
    Bits* const to = data_ + vector * kLanes<T>;
    const int64_t rest = count_ - vector * kLanes<T>;
    if (aligned_ && rest >= kLanes<T>) return Store(reinterpret_cast<Packet*>(to), packet);
#pragma unroll
    for (int i = 0; i < kLanes<T>; i++) {
      if (i < rest) to[i] = static_cast<Bits>(packet.word[i * sizeof(Bits) / 4] >> (i * sizeof(Bits) % 4 * 8));
    }
  }

 private:
  Bits* data_;
  int64_t count_;
  bool aligned_;
};

template <typename T>
__host__ __device__ constexpr int64_t VectorsOf(int64_t elements) {
  return (elements + kLanes<T> - 1) / kLanes<T>;
}

}  // namespace rankmesh::cuda
