// Every kernel of ops/*.cuh by name: KERNEL(name, arguments, most threads of a block, function). ops.cu makes kernels of the list, launches.cc
// finds their names in it, an emulation can call the functions.
#pragma once
#include "ops/arguments.h"

// Types of elements, and of weights, with their names; what is behind them is passed on.
#define RANKMESH_ELEMENTS(F, ...) \
  F(f32, Float32, __VA_ARGS__)    \
  F(bf16, Bfloat16, __VA_ARGS__)  \
  F(f16, Float16, __VA_ARGS__)
#define RANKMESH_BLOCKS(F, ...) \
  F(q8_0, Q8_0, __VA_ARGS__)    \
  F(q4_0, Q4_0, __VA_ARGS__)    \
  F(q4_1, Q4_1, __VA_ARGS__)    \
  F(q4_k, Q4_K, __VA_ARGS__)    \
  F(q5_k, Q5_K, __VA_ARGS__)    \
  F(q6_k, Q6_K, __VA_ARGS__)
#define RANKMESH_WEIGHTS(F, ...)           \
  F(f32, Plain<Float32>, __VA_ARGS__)      \
  F(bf16, Plain<Bfloat16>, __VA_ARGS__)    \
  F(f16, Plain<Float16>, __VA_ARGS__)      \
  RANKMESH_BLOCKS(F, __VA_ARGS__)

#define RANKMESH_OF_ELEMENT(name, T, KERNEL)                             \
  KERNEL(rankmesh_add_##name, AddArgs, 256, Add<T>)                      \
  KERNEL(rankmesh_silu_mul_##name, SiluArgs, 256, SiluMul<T>)            \
  KERNEL(rankmesh_rms_norm_##name, NormRowsArgs, 1024, NormRows<T>)      \
  RANKMESH_OF_PAIR(name, f32, T, Float32, KERNEL)                        \
  RANKMESH_OF_PAIR(name, bf16, T, Bfloat16, KERNEL)                      \
  RANKMESH_OF_PAIR(name, f16, T, Float16, KERNEL)
#define RANKMESH_OF_PAIR(from, to, From, To, KERNEL)                                     \
  KERNEL(rankmesh_cast_##from##_##to, CastArgs, 256, Cast<From, To>)                     \
  KERNEL(rankmesh_reduce_##from##_##to, ReduceArgs, 256, Reduce<From, To, false>)        \
  KERNEL(rankmesh_reduce_tree_##from##_##to, ReduceArgs, 256, Reduce<From, To, true>)    \
  KERNEL(rankmesh_reduce_norm_##from##_##to, ReduceNormArgs, 1024, ReduceNorm<From, To>)

#define RANKMESH_OF_WEIGHT(name, W, KERNEL)                                         \
  KERNEL(rankmesh_embedding_##name##_f32, EmbeddingArgs, 256, Embedding<W, Float32>)   \
  KERNEL(rankmesh_embedding_##name##_bf16, EmbeddingArgs, 256, Embedding<W, Bfloat16>) \
  KERNEL(rankmesh_embedding_##name##_f16, EmbeddingArgs, 256, Embedding<W, Float16>)   \
  KERNEL(rankmesh_matmul_##name, ProductArgs, kTileThreads, Matmul<W>)                 \
  RANKMESH_OF_PRODUCT(f32, name, Float32, W, KERNEL)                                   \
  KERNEL(rankmesh_tree_leaves_##name##_1, LeavesArgs, kLeafOuts, TreeLeaves<W, 1>)     \
  KERNEL(rankmesh_tree_leaves_##name##_4, LeavesArgs, kLeafOuts, TreeLeaves<W, 4>)     \
  KERNEL(rankmesh_tree_leaves_##name##_8, LeavesArgs, kLeafOuts, TreeLeaves<W, 8>)
#define RANKMESH_OF_PRODUCT(x, w, X, W, KERNEL)                                          \
  KERNEL(rankmesh_matvec_##x##_##w##_1, ProductArgs, kMatvecThreads, Matvec<X, W, 1>)    \
  KERNEL(rankmesh_matvec_##x##_##w##_4, ProductArgs, kMatvecThreads, Matvec<X, W, 4>)    \
  KERNEL(rankmesh_matvec_##x##_##w##_8, ProductArgs, kMatvecThreads, Matvec<X, W, 8>)

#define RANKMESH_OPS(KERNEL)                                                    \
  RANKMESH_ELEMENTS(RANKMESH_OF_ELEMENT, KERNEL)                                \
  RANKMESH_WEIGHTS(RANKMESH_OF_WEIGHT, KERNEL)                                  \
  RANKMESH_OF_PRODUCT(bf16, bf16, Bfloat16, Plain<Bfloat16>, KERNEL)            \
  RANKMESH_OF_PRODUCT(f16, f16, Float16, Plain<Float16>, KERNEL)                \
  KERNEL(rankmesh_add_word, AddArgs, 256, AddWords)                             \
  KERNEL(rankmesh_add_bias, BiasArgs, 256, AddBias)                             \
  KERNEL(rankmesh_tree_join, TreeArgs, 256, TreeJoin)                           \
  KERNEL(rankmesh_rope, RopeArgs, 256, RopeAppend)                              \
  KERNEL(rankmesh_attention_128, AttentionArgs, 512, Attention<128>)            \
  KERNEL(rankmesh_attention_256, AttentionArgs, 512, Attention<256>)            \
  KERNEL(rankmesh_attention_portable, AttentionArgs, kPortableThreads, PortableAttention) \
  KERNEL(rankmesh_attention_join_128, AttentionArgs, 256, AttentionJoin<128>)   \
  KERNEL(rankmesh_attention_join_256, AttentionArgs, 256, AttentionJoin<256>)   \
  KERNEL(rankmesh_softmax, SoftmaxArgs, 1024, Softmax)                          \
  KERNEL(rankmesh_top_k, TopArgs, kTopThreads, TopK)                            \
  KERNEL(rankmesh_top_k_parts, TopArgs, kTopThreads, TopKParts)                 \
  KERNEL(rankmesh_top_k_join, TopArgs, kTopThreads, TopKJoin)                   \
  KERNEL(rankmesh_reduce_word, ReduceArgs, 256, ReduceWords)                    \
  KERNEL(rankmesh_gather_1, GatherRowsArgs, 256, Gather<uint8_t>)                   \
  KERNEL(rankmesh_gather_2, GatherRowsArgs, 256, Gather<uint16_t>)                  \
  KERNEL(rankmesh_gather_4, GatherRowsArgs, 256, Gather<uint32_t>)                  \
  KERNEL(rankmesh_gather_16, GatherRowsArgs, 256, Gather<Packet>)
