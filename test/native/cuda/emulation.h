// CUDA's threads on a CPU, for tests of kernels: each is a fiber, and those of all blocks and ranks take turns in an order made of a seed.
//
// Kernels of one rank run one after another, those of several ranks side by side and at odds in pace. A barrier in which a thread is
// missing, and a wait that nobody ends, end the program with a message. Nothing but barriers, atomics and the order of kernels puts
// accesses of different threads in an order, which ThreadSanitizer checks. Not emulated: that memory of other devices changes later than it
// was written to, unless by atomics without order, and that warps run in step.
//
// Two machines run the threads: one in which any of them may go on at any moment, and, with -DEMULATION_SWIFT, one that is made for kernels
// of many blocks, whose threads run to their next barrier.
#pragma once
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#ifdef EMULATION_SWIFT
#include "swift.h"
#else
#include "machine.h"
#endif
#include "multicasts.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

inline void __syncthreads() { emulation::Barrier(false); }
inline int __syncthreads_or(int vote) { return emulation::Barrier(vote != 0) != 0; }
inline int __syncthreads_and(int vote) { return emulation::Barrier(vote == 0) == 0; }
inline int __syncthreads_count(int vote) { return emulation::Barrier(vote != 0); }
inline void __syncwarp(unsigned = ~0u) { emulation::WarpBarrier(); }

/** Lane `from`'s value, or, where there is no such lane among `width`, this one's own. */
template <typename T>
T emulation_shuffle(T value, unsigned from) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const emulation::Exchange all(bits);
  bits = all.Of(from);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
template <typename T>
T __shfl_sync(unsigned, T value, int from, int width = 32) {
  return emulation_shuffle(value, (threadIdx.x & -width) % 32 + (from & (width - 1)));
}
template <typename T>
T __shfl_xor_sync(unsigned, T value, unsigned lanes, int width = 32) {
  const unsigned lane = threadIdx.x % 32, other = lane ^ lanes;
  return emulation_shuffle(value, other / width <= lane / width ? other : lane);
}
template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned lanes, int width = 32) {
  const unsigned lane = threadIdx.x % 32;
  return emulation_shuffle(value, lane % width + lanes < unsigned(width) ? lane + lanes : lane);
}
template <typename T>
T __shfl_up_sync(unsigned, T value, unsigned lanes, int width = 32) {
  const unsigned lane = threadIdx.x % 32;
  return emulation_shuffle(value, lane % width >= lanes ? lane - lanes : lane);
}
/** Of whole warps. */
inline unsigned __ballot_sync(unsigned, int vote) {
  const emulation::Exchange all(vote != 0);
  unsigned votes = 0;
  for (unsigned lane = 0; lane < 32; lane++) votes |= static_cast<unsigned>(all.Of(lane)) << lane;
  return votes;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }

template <typename T>
T __ldg(const T* from) {
  return *from;
}
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(a))); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float a) { return std::exp(a); }
inline float __logf(float a) { return std::log(a); }
inline float __sinf(float a) { return std::sin(a); }
inline float __cosf(float a) { return std::cos(a); }
inline float rsqrtf(float a) { return __frsqrt_rn(a); }
inline int __float2int_rn(float a) { return static_cast<int>(std::nearbyint(a)); }
inline float __int2float_rn(int a) { return static_cast<float>(a); }
inline uint32_t __float_as_uint(float value) { return std::bit_cast<uint32_t>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __uint_as_float(uint32_t bits) { return std::bit_cast<float>(bits); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) { return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1; }
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __threadfence_block() { __threadfence(); }
inline void __threadfence_system() { __threadfence(); }
inline void __nanosleep(unsigned) { emulation::Yield(); }

/** Replaces *at by change(*at), as if at once, and returns what was there. */
template <typename T, typename F>
T emulation_atomic(T* at, F change) {
  emulation::Moved();
  using Bits = std::conditional_t<sizeof(T) == 4, uint32_t, uint64_t>;
  auto* const words = reinterpret_cast<Bits*>(at);
  for (Bits before = __atomic_load_n(words, __ATOMIC_RELAXED);;) {
    const T value = std::bit_cast<T>(before);
    const Bits after = std::bit_cast<Bits>(static_cast<T>(change(value)));
    if (__atomic_compare_exchange_n(words, &before, after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) return value;
  }
}
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> by) {
  return emulation_atomic(at, [by](T value) { return value + by; });
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> other) {
  return emulation_atomic(at, [other](T value) { return std::max(value, other); });
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> other) {
  return emulation_atomic(at, [other](T value) { return std::min(value, other); });
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> bits) {
  return emulation_atomic(at, [bits](T value) { return value | bits; });
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> to) {
  return emulation_atomic(at, [to](T) { return to; });
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> from, std::type_identity_t<T> to) {
  return emulation_atomic(at, [from, to](T value) { return value == from ? to : value; });
}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }

namespace rankmesh::cuda {

inline void StoreRelease(uint64_t* to, uint64_t value) {
  emulation::Perhaps();
  emulation::Moved();
  if (emulation::planted.relaxed) __atomic_store_n(to, value, __ATOMIC_RELAXED);
  else __atomic_store_n(to, value, __ATOMIC_RELEASE);
}

inline uint64_t LoadAcquire(const uint64_t* from) {
  emulation::Perhaps();
  if (emulation::planted.hasty) return UINT64_MAX;
  return emulation::planted.relaxed ? __atomic_load_n(from, __ATOMIC_RELAXED) : __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

inline void StoreRelaxed(uint32_t* to, uint32_t value) {
  emulation::Moved();
  __atomic_store_n(to, value, __ATOMIC_RELAXED);
}
inline uint32_t LoadRelaxed(const uint32_t* from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }

/** The words in any order, others between them. */
inline void StoreRelaxed(Packet* to, const Packet& packet) {
  const uint32_t first = emulation::Random();
  for (uint32_t i = 0; i < 4; i++) {
    emulation::Perhaps();
    StoreRelaxed(&to->word[(first + i) % 4], packet.word[(first + i) % 4]);
  }
}

/** Not on the machine whose memory may be freed meanwhile, nor under ThreadSanitizer, which would take who brings a store for who made it. */
#if defined(EMULATION_SWIFT) || defined(__SANITIZE_THREAD__)
constexpr bool kStoresFly = false;
#else
constexpr bool kStoresFly = true;
#endif
/** Stores to multicasts on their way to one memory each: what their thread does next, its kernel's end too, may come before they arrive. */
struct Flight {
  Packet* to;
  Packet packet;
};
inline std::vector<Flight> flights;

inline void Land(size_t i) {
  const Flight landed = std::exchange(flights[i], flights.back());
  flights.pop_back();
  for (int k = 0; k < 4; k++) StoreRelaxed(&landed.to->word[k], landed.packet.word[k]);
}

/** The memories one after the other, from any of them on. */
inline void StoreToAll(Packet* to, const Packet& packet) {
  auto& multicasts = emulation::TheMulticasts();
  const emulation::Multicast* const all = multicasts.Find(to);
  if (!all) return StoreRelaxed(to, packet);  // faults
  if (multicasts.stored) multicasts.stored();
  const size_t offset = reinterpret_cast<std::byte*>(to) - all->at, first = emulation::Random() % all->devices;
  for (size_t i = 0; i < all->devices; i++) {
    auto* const there = reinterpret_cast<Packet*>(all->memory[(first + i) % all->devices] + offset);
    if (kStoresFly && emulation::Random() % 2 == 0) flights.push_back({there, packet});
    else StoreRelaxed(there, packet);
  }
}
inline void FenceToAll() {
  while (!flights.empty() && !emulation::planted.unfenced) Land(flights.size() - 1);
  __threadfence_system();
}

inline Packet LoadRelaxed(const Packet* from) {
  Packet packet;
  for (int i = 0; i < 4; i++) packet.word[i] = LoadRelaxed(&from->word[i]);
  return packet;
}

inline Packet Load(const Packet* from) { return *from; }
inline void Store(Packet* to, const Packet& packet) { *to = packet; }
inline uint32_t CountUp(uint32_t* counter) {
  emulation::Moved();
  return __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL);
}
inline uint32_t SetBits(uint32_t* word, uint32_t bits) { return __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }
inline uint64_t Nanoseconds() { return emulation::Now(); }
inline void Pause() {
  if (!flights.empty() && emulation::Random() % 256 == 0) Land(emulation::Random() % flights.size());
  emulation::Yield();
}
inline float* BlockFloats() { return emulation::BlockFloats(); }
inline std::byte* SharedBytes() { return emulation::SharedBytes(); }

inline float HalfToFloat(uint16_t half) {
  _Float16 value;
  std::memcpy(&value, &half, sizeof value);
  return static_cast<float>(value);
}

inline uint16_t FloatToHalf(float value) {
  const _Float16 half = static_cast<_Float16>(value);
  uint16_t bits;
  std::memcpy(&bits, &half, sizeof bits);
  return bits;
}

}  // namespace rankmesh::cuda
