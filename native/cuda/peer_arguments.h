// What the kernels of collectives over peers' memory are given, for them and for the host code that launches them; and the memory that a rank
// brings, where its parts lie, and what a kernel is told of all ranks' memories.
//
// One piece of memory a rank, of the same size and layout on all of them, readable and writable by all: of its device, or, where devices do not
// reach each other's, pinned memory of the host. It lasts from call to call; kernels keep its state themselves, in memory of their own device, so
// a captured graph may be replayed. Before the first call, and after a failed one once no rank's kernel runs any more, the state and everything
// before `lamport` is 0 and everything from there on is 0xff.
//
//   flags      uint64 [kMaxBlocks][kMaxRanks]   how far block b of rank r has come; written by rank r
//   alarm      uint32                           not 0: waits end at once; written by any rank or by the host
//   left       uint32 [kMaxRanks]               not 0: that rank's kernels have all ended; between hosts alone
//   data       2 x data_bytes                   operands, taken in turn
//   lamport    3 x lamport_bytes                packets of all ranks, taken in turn; a word of ones has not arrived
#pragma once
#include <cstddef>
#include <cstdint>

#if defined(__CUDACC__)
#define RANKMESH_BOTH __host__ __device__
#else
#define RANKMESH_BOTH
#endif

namespace rankmesh::cuda {

struct Packet;
constexpr int64_t kPacket = 16;
constexpr int kMaxRanks = 16;
/** Most blocks of a kernel that waits for other ranks. All of them, of all ranks on a device, must be able to run at once. */
constexpr int kMaxBlocks = 256;
constexpr int kMaxThreads = 1024;

/** Bits of a status, above one for each rank that did not arrive: this rank's time was over, another's was, the host ended it. */
constexpr uint32_t kExpired = 1u << 16;
constexpr uint32_t kTold = 1u << 17;
constexpr uint32_t kAborted = 1u << 18;

/** What a call finds, and leaves for the next. */
struct Progress {
  /** Calls with flags so far. */
  uint64_t epoch;
  /** Packets of the last call by packets, of all ranks together. */
  int64_t sent;
  /** Calls by packets so far, modulo 3. */
  uint32_t turn;
};

/** Of one rank, on its device. */
struct State {
  Progress progress;
  /** Blocks of this call that have read it. */
  uint32_t done;
  /** 0, or why the workspace may not be used any more: calls end at once then, their results unwritten. */
  uint32_t status;
};

constexpr size_t kAlarmAt = sizeof(uint64_t) * kMaxBlocks * kMaxRanks;
constexpr size_t kDataAt = kAlarmAt + 128;
static_assert(kDataAt % 128 == 0);

/** Sizes are multiples of 128 bytes. */
struct Sizes {
  /** Of one operand: `DataBytes` of the largest call. */
  uint64_t data_bytes;
  /** Of one third: `LamportBytes` of the largest call by packets; 0 for none. */
  uint64_t lamport_bytes;
};

RANKMESH_BOTH constexpr uint64_t LamportAt(const Sizes& sizes) { return kDataAt + 2 * sizes.data_bytes; }
RANKMESH_BOTH constexpr uint64_t WorkspaceBytes(const Sizes& sizes) { return LamportAt(sizes) + 3 * sizes.lamport_bytes; }
RANKMESH_BOTH constexpr uint64_t RoundUp(uint64_t bytes) { return (bytes + 127) / 128 * 128; }

/** Packets of a row of n elements of `size` bytes. */
RANKMESH_BOTH constexpr int64_t PacketsOf(int64_t n, int64_t size) { return (n * size + kPacket - 1) / kPacket; }

/** Of `rows` rows of n elements; a sum without rows is one row. Rows begin at whole packets. */
RANKMESH_BOTH constexpr uint64_t DataBytes(int64_t rows, int64_t n, int64_t size) {
  return RoundUp(static_cast<uint64_t>(rows * PacketsOf(n, size) * kPacket));
}

RANKMESH_BOTH constexpr uint64_t LamportBytes(int ranks, int64_t rows, int64_t n, int64_t size) {
  return RoundUp(static_cast<uint64_t>(ranks * rows * PacketsOf(n, size) * kPacket));
}

/** Threads of a block that norms rows of n elements. A row's bits depend on them, so a launch takes no other number. */
RANKMESH_BOTH constexpr int RowThreads(int64_t n, int64_t size) {
  int threads = 32;
  while (threads < kMaxThreads && threads < PacketsOf(n, size)) threads *= 2;
  return threads;
}

/** What a kernel is told of the workspaces of a group. Blocks and threads of a call are as many on all ranks. */
struct Peers {
  /** Of every rank, as this rank's device sees it. */
  std::byte* memory[kMaxRanks];
  int rank;
  int ranks;
  Sizes sizes;
  /** Nanoseconds that a wait may take. */
  uint64_t limit;
  /** Memory of the host where this rank's kernels write the status as well, or null: who has work under way looks there. */
  uint32_t* told;
  /** This rank's. */
  State* state;
  /** Where this rank's device stores to the same place of all ranks' memories at once, and never reads; or null. */
  std::byte* multicast;

  RANKMESH_BOTH uint64_t* Flag(int of, int block, int by) const { return reinterpret_cast<uint64_t*>(memory[of]) + block * kMaxRanks + by; }
  RANKMESH_BOTH uint32_t* Alarm(int of) const { return reinterpret_cast<uint32_t*>(memory[of] + kAlarmAt); }
  /** The operand of rank `of` in the call after `epoch` others. */
  RANKMESH_BOTH Packet* Data(int of, uint64_t epoch) const {
    return reinterpret_cast<Packet*>(memory[of] + kDataAt + (epoch & 1) * sizes.data_bytes);
  }
  /** The third for packets of the call after `turn` others. */
  RANKMESH_BOTH Packet* Third(int of, uint32_t turn) const {
    return reinterpret_cast<Packet*>(memory[of] + LamportAt(sizes) + turn % 3 * sizes.lamport_bytes);
  }
  /** The place of all ranks' memories that `own` is of this rank's. */
  RANKMESH_BOTH Packet* OfAll(Packet* own) const {
    return reinterpret_cast<Packet*>(multicast + (reinterpret_cast<std::byte*>(own) - memory[rank]));
  }
};

enum class Algorithm { kOneShot, kTwoShot, kLamport };

/** Each rank's operand, as this rank's device sees it; of the others' only where `shared` says that they are given, alike on all ranks. */
struct Operands {
  const void* of[kMaxRanks];
  bool shared;
  /** Each sum of two is rounded to the element type, rather than the last one alone. */
  bool rounded;
};

struct SumArgs {
  Peers peers;
  Operands in;
  void* out;
  /** Elements. */
  int64_t count;
};

/** An all-reduce that is told how. */
struct JoinArgs {
  SumArgs all;
  /** As engine::Reduction. */
  int joining;
  /** What floats are divided by in the end: 1, or as many as there are ranks. */
  float divisor;
};

/** The numbers are those of QUANT in runtime/comm/fusion/patterns.ts. */
enum class Quant : int { kNone, kFp8, kFp4, kFp8Groups, kFp8Rows };
/** Order of fp4 scales; the numbers are those of QuantizationSFLayout. */
enum class ScaleLayout : int { kTilesOf128, kTilesOf8, kRows };

struct QuantArgs {
  Quant quant;
  ScaleLayout layout;
  /** fp8: what values are multiplied by, 1 / scaleFactor. fp4: scaleFactor itself, of which a block's scale is a share. */
  float factor;
  /** kFp8Groups: elements that share a scale; divides n. */
  int group;
  /** A byte an element, half of one for fp4; 4-byte aligned. */
  uint8_t* codes;
  /** fp4: a byte a block. kFp8Groups: a byte a group, see `GroupOffset`. kFp8Rows: a float a row. */
  uint8_t* scales;
  /** fp4: scales of tiles that belong to no block get zeros; else they stay as they were. */
  bool pad;
};

struct NormArgs {
  Peers peers;
  /** [all, n]: partial sums. */
  Operands in;
  const void* residual_in;
  /** [all, n]: h. */
  void* residual_out;
  /** [n]. */
  const void* gamma;
  /** [n], or null. */
  const void* bias;
  /** [all, n]: y; null where it is not wanted. */
  void* out;
  /** [all, n]: the sum, rounded; null where it is not wanted. Not by kTwoShot. */
  void* sum;
  /** Rows of this launch, from row `first` on, of `all`. */
  int64_t rows, first, all;
  int64_t n;
  float eps;
  /** 1 for models that store gamma - 1. */
  float weight_bias;
  QuantArgs quant;
  /** [n], or null: rows of the sum are normed, weighted by it and rounded before the residual is added. Not by kTwoShot. */
  const void* pre_gamma;
};

/** The numbers are those of TYPE in runtime/device/engine/commands.ts. */
enum class ScaleType : int { kFloat32, kBfloat16, kFloat16 };

struct Experts {
  /** [count, n]: rows in the experts' own order; without an index [k, all, n]. */
  const void* rows;
  /** [all, k], without an index [k, all]; null for ones. */
  const void* scale;
  /** [all, k]: a row each; none of this rank's outside of [0, count). Null: see `rows`. */
  const int32_t* index;
  /** [all, n], or null. */
  const void* shared;
  int64_t count;
  int k;
  ScaleType scale_type;
  float routed;
};

struct MoeArgs {
  NormArgs norm;
  Experts experts;
};

struct GatherArgs {
  Peers peers;
  /** This rank's operand; null where it has no units. */
  const void* in;
  /** Null where this rank wants no result. */
  void* out;
  /** In units: a rank's row; of it, what this rank wants, from column `from` on; and where that begins in a row of the result. */
  int64_t row[kMaxRanks];
  int64_t from[kMaxRanks];
  int64_t width[kMaxRanks];
  int64_t start[kMaxRanks];
  /** The span of this launch; `count` units of a rank fit in the workspace. */
  int64_t first[kMaxRanks];
  int64_t count[kMaxRanks];
  /** Units from row to row of this rank's operand, and of the result. */
  int64_t in_pitch;
  int64_t pitch;
};

}  // namespace rankmesh::cuda
