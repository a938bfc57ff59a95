// CUDA's threads on a CPU, for tests of kernels: each is a fiber, and those of all blocks and ranks take turns in an order made of a seed.
//
// Kernels of one rank run one after another, those of several ranks side by side and at odds in pace. A barrier in which a thread is
// missing, and a wait that nobody ends, end the program with a message. Nothing but barriers, atomics and the order of kernels puts
// accesses of different threads in an order, which ThreadSanitizer checks. Not emulated: that memory of other devices changes later than it
// was written to, unless by atomics without order, and that warps run in step.
#pragma once
#include <cmath>
#include <cstring>

#include "machine.h"

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

inline void __syncthreads() { emulation::Barrier(0); }
inline int __syncthreads_or(int vote) { return emulation::Barrier(vote != 0); }
inline float __shfl_xor_sync(unsigned, float value, unsigned lanes) { return emulation::Shuffled(value, lanes); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

namespace rankmesh::cuda {

inline void StoreRelease(uint64_t* to, uint64_t value) {
  emulation::Perhaps();
  if (emulation::planted.relaxed) __atomic_store_n(to, value, __ATOMIC_RELAXED);
  else __atomic_store_n(to, value, __ATOMIC_RELEASE);
}

inline uint64_t LoadAcquire(const uint64_t* from) {
  emulation::Perhaps();
  if (emulation::planted.hasty) return UINT64_MAX;
  return emulation::planted.relaxed ? __atomic_load_n(from, __ATOMIC_RELAXED) : __atomic_load_n(from, __ATOMIC_ACQUIRE);
}

inline void StoreRelaxed(uint32_t* to, uint32_t value) { __atomic_store_n(to, value, __ATOMIC_RELAXED); }
inline uint32_t LoadRelaxed(const uint32_t* from) { return __atomic_load_n(from, __ATOMIC_RELAXED); }

/** The words in any order, others between them. */
inline void StoreRelaxed(Packet* to, const Packet& packet) {
  const uint32_t first = emulation::machine->Random();
  for (uint32_t i = 0; i < 4; i++) {
    emulation::Perhaps();
    StoreRelaxed(&to->word[(first + i) % 4], packet.word[(first + i) % 4]);
  }
}

inline Packet LoadRelaxed(const Packet* from) {
  Packet packet;
  for (int i = 0; i < 4; i++) packet.word[i] = LoadRelaxed(&from->word[i]);
  return packet;
}

inline Packet Load(const Packet* from) { return *from; }
inline void Store(Packet* to, const Packet& packet) { *to = packet; }
inline uint32_t CountUp(uint32_t* counter) { return __atomic_fetch_add(counter, 1, __ATOMIC_ACQ_REL); }
inline uint32_t SetBits(uint32_t* word, uint32_t bits) { return __atomic_fetch_or(word, bits, __ATOMIC_RELAXED); }
inline uint64_t Nanoseconds() { return emulation::machine->now(); }
inline void Pause() { emulation::Leave(emulation::State::kReady); }
EMULATION_UNSEEN inline float* BlockFloats() { return emulation::CurrentBlock().floats; }

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
