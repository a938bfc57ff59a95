// The memory that a rank brings to collectives of its own kernels, where its parts lie, and what a kernel is told of all ranks' memories.
//
// One piece of device memory a rank, of the same size and layout on all of them, readable and writable by all. It lasts from call to call;
// kernels keep its state themselves, so a captured graph may be replayed. Before the first call, and after a failed one once no rank's
// kernel runs any more, everything before `lamport` is 0 and everything from there on is 0xff.
//
//   flags      uint64 [kMaxBlocks][kMaxRanks]   how far block b of rank r has come; written by rank r
//   alarm      uint32                           not 0: waits end at once; written by any rank or by the host
//   state      State                            of this rank alone; `status` is for the host
//   data       2 x data_bytes                   operands, taken in turn
//   lamport    3 x lamport_bytes                packets of all ranks, taken in turn; a word of ones has not arrived
#pragma once
#include "elements.cuh"

namespace rankmesh::cuda {

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

struct State {
  Progress progress;
  /** Blocks of this call that have read it. */
  uint32_t done;
  /** 0, or why the workspace may not be used any more: calls end at once then, their results unwritten. */
  uint32_t status;
};

constexpr size_t kAlarmAt = sizeof(uint64_t) * kMaxBlocks * kMaxRanks;
constexpr size_t kStateAt = kAlarmAt + 128;
constexpr size_t kDataAt = kStateAt + 128;
static_assert(sizeof(State) <= 128 && kDataAt % 128 == 0);

/** Sizes are multiples of 128 bytes. */
struct Sizes {
  /** Of one operand: `DataBytes` of the largest call. */
  uint64_t data_bytes;
  /** Of one third: `LamportBytes` of the largest call by packets; 0 for none. */
  uint64_t lamport_bytes;
};

__host__ __device__ constexpr uint64_t LamportAt(const Sizes& sizes) { return kDataAt + 2 * sizes.data_bytes; }
__host__ __device__ constexpr uint64_t WorkspaceBytes(const Sizes& sizes) { return LamportAt(sizes) + 3 * sizes.lamport_bytes; }
__host__ __device__ constexpr uint64_t RoundUp(uint64_t bytes) { return (bytes + 127) / 128 * 128; }

/** Of `rows` rows of n elements of T; a sum without rows is one row. Rows begin at whole packets. */
template <typename T>
__host__ __device__ constexpr uint64_t DataBytes(int64_t rows, int64_t n) {
  return RoundUp(static_cast<uint64_t>(rows * VectorsOf<T>(n)) * sizeof(Packet));
}

template <typename T>
__host__ __device__ constexpr uint64_t LamportBytes(int ranks, int64_t rows, int64_t n) {
  return RoundUp(static_cast<uint64_t>(ranks * rows * VectorsOf<T>(n)) * sizeof(Packet));
}

/** Threads of a block that norms rows of n elements. A row's bits depend on them, so a launch takes no other number. */
template <typename T>
__host__ __device__ constexpr int RowThreads(int64_t n) {
  int threads = 32;
  while (threads < kMaxThreads && threads < VectorsOf<T>(n)) threads *= 2;
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

  __device__ uint64_t* Flag(int of, int block, int by) const { return reinterpret_cast<uint64_t*>(memory[of]) + block * kMaxRanks + by; }
  __device__ uint32_t* Alarm(int of) const { return reinterpret_cast<uint32_t*>(memory[of] + kAlarmAt); }
  __device__ State* Own() const { return reinterpret_cast<State*>(memory[rank] + kStateAt); }
  /** The operand of rank `of` in the call after `epoch` others. */
  __device__ Packet* Data(int of, uint64_t epoch) const {
    return reinterpret_cast<Packet*>(memory[of] + kDataAt + (epoch & 1) * sizes.data_bytes);
  }
  /** The third for packets of the call after `turn` others. */
  __device__ Packet* Third(int of, uint32_t turn) const {
    return reinterpret_cast<Packet*>(memory[of] + LamportAt(sizes) + turn % 3 * sizes.lamport_bytes);
  }
};

}  // namespace rankmesh::cuda
