// The kernels of collectives over peers' memory, by name: X(name, struct of its arguments, most threads of a block, the device function).
//
// A name says what is computed, the element type, the most ranks and the way. `plain` norms quantise nothing; of those that do, and take
// longer anyway, there are fewer.
#pragma once
#include "gather.cuh"
#include "moe_norm.cuh"

/** Most ranks of a kernel that is named for `most`: who only tests may compile fewer different ones. */
#ifndef RANKMESH_PEER_MOST
#define RANKMESH_PEER_MOST(most) most
#endif

#define RANKMESH_PEER_WAYS(X, what, Args, threads, most, Function, T, ...)                                                \
  X(peer_##what##_##most##_one_shot, Args, threads, Function<T, RANKMESH_PEER_MOST(most), Algorithm::kOneShot __VA_ARGS__>) \
  X(peer_##what##_##most##_packets, Args, threads, Function<T, RANKMESH_PEER_MOST(most), Algorithm::kLamport __VA_ARGS__>)

#define RANKMESH_PEER_ALL_WAYS(X, what, Args, threads, most, Function, T, ...)                 \
  RANKMESH_PEER_WAYS(X, what, Args, threads, most, Function, T, __VA_ARGS__)                   \
  X(peer_##what##_##most##_two_shot, Args, threads, Function<T, RANKMESH_PEER_MOST(most), Algorithm::kTwoShot __VA_ARGS__>)

#define RANKMESH_PEER_PLAIN(X, type, T, most)                                                   \
  RANKMESH_PEER_ALL_WAYS(X, sum_##type, SumArgs, 512, most, AllReduce, T, )                     \
  RANKMESH_PEER_ALL_WAYS(X, plain_##type, NormArgs, kMaxThreads, most, AllReduceNorm, T, , false)

#define RANKMESH_PEER_QUANT(X, type, T, most)                                                     \
  RANKMESH_PEER_ALL_WAYS(X, quant_##type, NormArgs, kMaxThreads, most, AllReduceNorm, T, , true)  \
  RANKMESH_PEER_WAYS(X, moe_##type, MoeArgs, kMaxThreads, most, MoeAllReduceNorm, T, )

#define RANKMESH_PEER_TYPES(X, Some, most) Some(X, f32, Float32, most) Some(X, bf16, Bfloat16, most) Some(X, f16, Float16, most)

/** Of any reduction, for as many ranks as there may be, since sums are what is frequent. */
#define RANKMESH_PEER_JOIN(X, type, T)                                                                                      \
  X(peer_join_##type##_one_shot, JoinArgs, 512, AllJoin<T, kMaxRanks, Algorithm::kOneShot>)                                 \
  X(peer_join_##type##_two_shot, JoinArgs, 512, AllJoin<T, kMaxRanks, Algorithm::kTwoShot>)

/** Those of peer_joins.cu. */
#define RANKMESH_PEER_JOINS(X)                                                          \
  RANKMESH_PEER_JOIN(X, f32, Float32) RANKMESH_PEER_JOIN(X, bf16, Bfloat16)             \
  RANKMESH_PEER_JOIN(X, f16, Float16) RANKMESH_PEER_JOIN(X, word, Word)

#define RANKMESH_PEER_GATHERS(X)                         \
  X(peer_gather_16, GatherArgs, 512, AllGather<Packet>)  \
  X(peer_gather_4, GatherArgs, 512, AllGather<uint32_t>) \
  X(peer_gather_1, GatherArgs, 512, AllGather<uint8_t>)

/** Those of peers.cu. */
#define RANKMESH_PEER_SUMS(X)                   \
  RANKMESH_PEER_TYPES(X, RANKMESH_PEER_PLAIN, 2)  \
  RANKMESH_PEER_TYPES(X, RANKMESH_PEER_PLAIN, 4)  \
  RANKMESH_PEER_TYPES(X, RANKMESH_PEER_PLAIN, 8)  \
  RANKMESH_PEER_TYPES(X, RANKMESH_PEER_PLAIN, 16) \
  RANKMESH_PEER_GATHERS(X)

/** Those of peer_codes.cu. */
#define RANKMESH_PEER_CODES(X) RANKMESH_PEER_TYPES(X, RANKMESH_PEER_QUANT, 8) RANKMESH_PEER_TYPES(X, RANKMESH_PEER_QUANT, 16)

#define RANKMESH_PEER_KERNELS(X) RANKMESH_PEER_SUMS(X) RANKMESH_PEER_JOINS(X) RANKMESH_PEER_CODES(X)

/** Writes one of them, where nvcc compiles. */
#define RANKMESH_PEER_KERNEL(name, Args, threads, ...)                                          \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args) { \
    __VA_ARGS__(args);                                                                            \
  }
