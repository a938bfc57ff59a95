// The operations of an engine as calls without checks: what its kernels are given, on whatever kind of hardware.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rankmesh::engine {

/** As runtime/device/engine/commands.ts numbers them. */
enum Op : uint32_t { kWait, kEmbedding, kMatmul, kMatmulTree, kRope, kAttention, kSiluMul, kRmsNorm, kAdd, kSoftmax, kTopK, kCast, kCopy, kMeet, kReduce, kReduceNorm, kGather, kOps };
enum Type : uint8_t { kF32, kBf16, kF16, kWord, kQ8_0, kQ4_0, kQ4_1, kQ4_K, kQ5_K, kQ6_K, kTypes };

/** Elements that a type stores together, and the bytes of all of them. */
struct Format {
  size_t values;
  size_t bytes;
};

constexpr Format kFormats[kTypes] = {{1, 4}, {1, 2}, {1, 2}, {1, 4}, {32, 34}, {32, 18}, {32, 20}, {256, 144}, {256, 176}, {256, 210}};

constexpr size_t kOperands = 6;
constexpr size_t kNumbers = 7;

/** How elements of several ranks become one: min and max of words come unsigned and signed. */
enum Reduction : uint32_t { kSum, kProd, kMin, kMax, kMinSigned, kMaxSigned, kReductions };

/** One of the operands that a collective has one of for each rank. */
struct Slice {
  const std::byte* at;
  /** Of sums the joins behind this slice (see commands.ts), of gathered rows their bytes. */
  size_t number;
};

/** Sums that wait for their right parts, at most. */
constexpr size_t kDepth = 64;
/** Elements of a row that are one piece of work. */
constexpr size_t kPiece = 8192;

/** One operation: its sizes and operands in the order in which reader.cc reads them. */
struct Call {
  Op op;
  Type types[2];
  bool flags[3];
  float scalar;
  size_t numbers[kNumbers];
  std::byte* operands[kOperands];
  /** Of collectives alone. */
  const Slice* slices;
  size_t slice_count;
  /** Pieces of work to do, of those that the operation falls into; all others are one. */
  size_t first, last;
};

/**
 * Where the tokens of a kRope or kAttention begin, of those whose memory the host reads: numbers[4], and with flags[0] as many further as the
 * last operand says when the command runs, but not beyond `positions`.
 */
inline size_t StartOf(const Call& call, size_t operand, size_t positions) {
  const size_t start = call.numbers[4];
  if (!call.flags[0]) return start;
  const size_t most = positions - call.numbers[0], further = *reinterpret_cast<const uint32_t*>(call.operands[operand]);
  return start + further < most ? start + further : most;
}

}  // namespace rankmesh::engine
