// What the kernels of ops_list.h are given, each as one struct passed by value, and the sizes of blocks that they and their launches agree on.
// Host and device see the same.
#pragma once
#include <cstdint>

namespace rankmesh::cuda::ops {

/** Elements that a thread takes at once. */
constexpr int kEight = 8;

/** Ids outside [first, first + rows) give zeros. */
struct EmbeddingArgs {
  /** Null: 0, 1, 2 ... */
  const uint32_t* ids;
  const void* table;
  void* y;
  int64_t tokens, n, rows;
  uint32_t first;
};

struct ProductArgs {
  const void* x;
  const void* w;
  /** Null where there is none. */
  const float* bias;
  /** Of the first output of the first token; rows are `pitch` apart. */
  float* y;
  int64_t tokens, k, outs, pitch;
};

/** Outputs of a block of Matvec. */
constexpr int kMatvecOuts = 4;
constexpr int kMatvecThreads = 256;

/** Rows and columns of y, and elements of k, that a block of Matmul has at a time. */
constexpr int kTile = 64;
constexpr int kTileDepth = 32;
constexpr int kTileThreads = 128;
/** Floats from a column of a tile to the next: four more than the tile has, against conflicts of banks. */
constexpr int kTilePitch = kTile + 4;
constexpr int kTileBytes = 2 * kTileDepth * kTilePitch * 4;

struct BiasArgs {
  const float* bias;
  float* y;
  int64_t tokens, outs, pitch;
};

/** Outputs of a block of TreeLeaves, and elements of k that it has at a time. */
constexpr int kLeafOuts = 128;
constexpr int kLeafDepth = 32;
/** Floats from one output's weights to the next one's: four more than there are, against conflicts of banks. */
constexpr int kLeafPitch = kLeafDepth + 4;

struct LeavesArgs {
  /** float32. */
  const float* x;
  const void* w;
  /** [leaves, tokens, outs]. */
  float* sums;
  int64_t tokens, k, outs;
  /** Elements of k in a leaf, and leaves of a block. */
  int64_t block;
  int span;
};

/** Twice the levels of a tree over 2^16 blocks, and one. */
constexpr int kTreeNodes = 33;

struct TreeArgs {
  /** [leaves, tokens, outs]. */
  const float* sums;
  const float* bias;
  float* y;
  int64_t tokens, outs, leaves;
  /** Index of the first leaf in the whole tree. */
  int64_t first;
  int64_t pitch;
  /** Elements of y from one subtree's sums to the next one's. */
  int64_t node_pitch;
  /** One sum is left in the end. */
  int whole;
};

/** Where the first token is: `known`, or that and what device memory says, but not beyond `most`; and `ahead` further. */
struct Start {
  int64_t known;
  /** Null where all is known. */
  const uint32_t* position;
  int64_t most;
  int64_t ahead;
};

struct RopeArgs {
  const float* x;
  const float* table;
  float* q;
  float* keys;
  float* values;
  int64_t tokens, heads, kv_heads, dim;
  Start start;
};

/** Keys of a chunk, which a warp takes at once, and of a span, whose sums are a part: both begin at multiples of their sizes. */
constexpr int kChunk = 32;
constexpr int kSpan = 128;
/** Most pairs of a token and a head that a block of Attention takes. */
constexpr int kAttentionRows = 16;

struct AttentionArgs {
  const float* q;
  const float* keys;
  const float* values;
  float* y;
  /** Where there are more spans than one: [tokens, heads, spans, dim + 2], a part's weighted sum, its largest score, its sum of weights. */
  float* parts;
  int64_t tokens, heads, kv_heads, dim;
  Start start;
  /** Keys that a token sees, its own included; 0 for all. */
  int64_t window;
  /** Of which the tokens see any, at most. */
  int spans;
  /** Tokens and heads of one kv head that a block takes, and how many such parts the heads of a kv head are in. */
  int block_tokens, block_heads, head_parts;
  float scale;
};

/** Threads of a block of PortableAttention, each of which has as many columns of v apart; and what they share: weights, and sums of these. */
constexpr int kPortableThreads = 64;
constexpr int kPortableFloats = kPortableThreads + 16;

struct SiluArgs {
  const void* x;
  void* y;
  int64_t rows, n;
  /** In the steps of portable.cuh. */
  bool portable;
};

struct NormRowsArgs {
  const void* x;
  const void* weight;
  void* y;
  int64_t n;
  float eps;
  /** 1 for models that store weight - 1. */
  float weight_bias;
  bool portable;
};

struct AddArgs {
  const void* a;
  const void* b;
  void* y;
  int64_t n;
};

struct SoftmaxArgs {
  const float* x;
  float* y;
  int64_t n;
};

/** Threads of a block that looks for the largest of a row, and values that it takes in one part of a long row. */
constexpr int kTopThreads = 256;
constexpr int kTopPart = 4096;

struct TopArgs {
  /** [rows, n] values, or [rows, n] candidates of earlier blocks. */
  const float* x;
  const uint64_t* candidates;
  /** [rows, k], or, of a block for each part, [rows, parts, k]. */
  float* values;
  uint32_t* indices;
  uint64_t* taken;
  /** Elements of a row of x, and those that are looked through: themselves, or candidates. */
  int64_t width, n;
  int64_t k;
  int parts;
};

struct CastArgs {
  const void* x;
  void* y;
  int64_t n;
};

/** Most slices of one call, so that arguments fit 4 KiB. */
constexpr int kSlices = 400;
/** Sums that wait for their right parts at most: a tree over 2^16 blocks has 17. */
constexpr int kWaiting = 24;

struct ReduceArgs {
  int64_t rows, n, pitch;
  void* y;
  int count;
  /** engine::Reduction. */
  int reduction;
  float divisor;
  /** Joins behind each slice. */
  uint8_t joins[kSlices];
  const void* slices[kSlices];
};

struct ReduceNormArgs {
  int64_t n;
  void* residual;
  const void* weight;
  /** Null where there is none. */
  const void* bias;
  void* y;
  float eps, weight_bias;
  bool portable;
  int count;
  const void* slices[kSlices];
};

/** Slices of one launch of Gather. */
constexpr int kGathered = 160;

/** In units of as many bytes as the kernel's name says. */
struct GatherRowsArgs {
  void* y;
  int64_t rows, pitch;
  int count;
  /** Slice i goes to columns [columns[i], columns[i + 1]). */
  int64_t columns[kGathered + 1];
  const void* slices[kGathered];
};

static_assert(sizeof(ReduceArgs) <= 4096 && sizeof(ReduceNormArgs) <= 4096 && sizeof(GatherRowsArgs) <= 4096);

}  // namespace rankmesh::cuda::ops
