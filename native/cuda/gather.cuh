// All ranks' operands, or parts of them, in their places of each rank's result: each copies its own to the workspace, ranks meet, each reads what
// it wants of the others'.
//
// Operands are rows of units, as many rows on all ranks, of any length each; a rank has some columns of each rank's rows in the rows of its result,
// wherever it wants them. A launch moves a span of every rank's units, alike on all ranks, of which a block has a share; a call may be several
// launches. A rank may do without a result, and bring nothing.
#pragma once
#include "signal.cuh"

namespace rankmesh::cuda {

/** `Unit` is Packet, uint32_t or uint8_t; memory of the ranks may lie anywhere. */
template <typename Unit>
__device__ inline Unit LoadUnit(const void* from, int64_t at) {
  const auto* const unit = static_cast<const Unit*>(from) + at;
  if (reinterpret_cast<uintptr_t>(from) % sizeof(Unit) == 0) return *unit;
  Unit value;
  for (size_t i = 0; i < sizeof(Unit); i++) reinterpret_cast<uint8_t*>(&value)[i] = reinterpret_cast<const uint8_t*>(unit)[i];
  return value;
}

template <typename Unit>
__device__ inline void StoreUnit(void* to, int64_t at, const Unit& value) {
  auto* const unit = static_cast<Unit*>(to) + at;
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Unit) == 0) {
    *unit = value;
    return;
  }
  for (size_t i = 0; i < sizeof(Unit); i++) reinterpret_cast<uint8_t*>(unit)[i] = reinterpret_cast<const uint8_t*>(&value)[i];
}

/** Grid: any number of blocks up to kMaxBlocks, of 32 to 512 threads. */
template <typename Unit>
__device__ inline void AllGather(const GatherArgs& args) {
  const Peers& peers = args.peers;
  const Progress now = peers.state->progress;
  if (!Open(peers)) return;
  Advance(peers, {now.epoch + 1, now.sent, now.turn});
  const int block = static_cast<int>(blockIdx.x), blocks = static_cast<int>(gridDim.x);
  const int64_t own = args.count[peers.rank];
  for (int64_t at = FirstOf(own, block, blocks) + threadIdx.x; at < FirstOf(own, block + 1, blocks); at += blockDim.x) {
    const int64_t from = args.first[peers.rank] + at, gap = args.in_pitch - args.row[peers.rank];
    StoreUnit(peers.Data(peers.rank, now.epoch), at, LoadUnit<Unit>(args.in, gap == 0 ? from : from + from / args.row[peers.rank] * gap));
  }
  if (!Meet(peers, PointOf(now.epoch, 0)) || args.out == nullptr) return;
  for (int i = 0; i < peers.ranks; i++) {
    const int r = (peers.rank + i) % peers.ranks;  // not all of them the same at once
    const int64_t end = FirstOf(args.count[r], block + 1, blocks);
    for (int64_t at = FirstOf(args.count[r], block, blocks) + threadIdx.x; at < end; at += blockDim.x) {
      const int64_t from = args.first[r] + at, row = from / args.row[r], column = from - row * args.row[r] - args.from[r];
      if (column < 0 || column >= args.width[r]) continue;
      StoreUnit(args.out, row * args.pitch + args.start[r] + column, LoadUnit<Unit>(peers.Data(r, now.epoch), at));
    }
  }
}

}  // namespace rankmesh::cuda
