// What the kernels ask of the machine beyond CUDA's own names: accesses that other devices see, in order or as flags, the time, shared
// memory. Other compilers than nvcc find the same functions, and CUDA's names, in an emulation of their own.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rankmesh::cuda {

/** What moves in one access: 16 bytes, aligned. */
struct alignas(16) Packet {
  uint32_t word[4];
};

/** Floats that the threads of a block share. */
constexpr int kBlockFloats = 128;

}  // namespace rankmesh::cuda

#ifndef __CUDACC__
#define RANKMESH_APART
#include "emulation.h"
#else
/** Of a function: compiled once, for all kernels that call it. */
#define RANKMESH_APART __noinline__

namespace rankmesh::cuda {

/** All that its thread, and those it met at a barrier before, wrote earlier is seen by who acquires the value, on any device. */
__device__ inline void StoreRelease(uint64_t* to, uint64_t value) {
  asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
}

__device__ inline uint64_t LoadAcquire(const uint64_t* from) {
  uint64_t value;
  asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
  return value;
}

__device__ inline void StoreRelaxed(uint32_t* to, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
}

__device__ inline uint32_t LoadRelaxed(const uint32_t* from) {
  uint32_t value;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
  return value;
}

/** Each word arrives whole; the four may arrive apart. */
__device__ inline void StoreRelaxed(Packet* to, const Packet& p) {
  asm volatile("st.relaxed.sys.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(p.word[0]), "r"(p.word[1]), "r"(p.word[2]),
               "r"(p.word[3])
               : "memory");
}

__device__ inline Packet LoadRelaxed(const Packet* from) {
  Packet p;
  asm volatile("ld.relaxed.sys.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(p.word[0]), "=r"(p.word[1]), "=r"(p.word[2]), "=r"(p.word[3])
               : "l"(from)
               : "memory");
  return p;
}

/**
 * As StoreRelaxed, to an address of a multicast: to the memory of all its devices. There from devices of capability 9.0 on, in kernels that are
 * compiled for those: the host gives others no such address.
 */
__device__ inline void StoreToAll([[maybe_unused]] Packet* to, [[maybe_unused]] const Packet& p) {
#if __CUDA_ARCH__ >= 900
  // Named as floats, whose bits it moves.
  asm volatile("multimem.st.relaxed.sys.global.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(to), "f"(__uint_as_float(p.word[0])),
               "f"(__uint_as_float(p.word[1])), "f"(__uint_as_float(p.word[2])), "f"(__uint_as_float(p.word[3]))
               : "memory");
#endif
}

/** Orders this thread's stores to addresses of a multicast, before and after, with accesses of the same memory by its own address. */
__device__ inline void FenceToAll() { asm volatile("fence.acq_rel.sys;\n\tfence.proxy.alias;" ::: "memory"); }

__device__ inline Packet Load(const Packet* from) {
  const uint4 v = *reinterpret_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}

__device__ inline void Store(Packet* to, const Packet& p) {
  *reinterpret_cast<uint4*>(to) = make_uint4(p.word[0], p.word[1], p.word[2], p.word[3]);
}

/** Adds 1 and returns what was there; orders what the device's threads did before and after. */
__device__ inline uint32_t CountUp(uint32_t* counter) {
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
  return before;
}

/** Sets bits and returns those that were set. */
__device__ inline uint32_t SetBits(uint32_t* word, uint32_t bits) {
  uint32_t before;
  asm volatile("atom.relaxed.gpu.global.or.b32 %0, [%1], %2;" : "=r"(before) : "l"(word), "r"(bits) : "memory");
  return before;
}

__device__ inline uint64_t Nanoseconds() {
  uint64_t now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now)::"memory");
  return now;
}

/** Between two looks at memory that another device is to write. */
__device__ inline void Pause() {}

__device__ inline float* BlockFloats() {
  __shared__ float floats[kBlockFloats];
  return floats;
}

/** Those that the launch sizes, aligned to 16. */
__device__ inline std::byte* SharedBytes() {
  extern __shared__ uint4 rankmesh_shared[];
  return reinterpret_cast<std::byte*>(rankmesh_shared);
}

__device__ inline float HalfToFloat(uint16_t half) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(half));
  return value;
}

/** To nearest even; overflow gives infinity. */
__device__ inline uint16_t FloatToHalf(float value) {
  uint16_t half;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(half) : "f"(value));
  return half;
}

}  // namespace rankmesh::cuda
#endif
