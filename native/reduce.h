// All-reduce among the members of a lane, whose operands lie in shared memory or are carried through slots of it.
#pragma once
#include <vector>

#include "combine.h"
#include "lane.h"

namespace rankmesh {

struct Operand {
  std::byte* data;
  size_t count;
  Type type;
  Op op;
  int32_t signature;
};

/**
 * One member's side. Rules that keep members out of each other's way: what is written for epoch e goes to the half e mod 2 of the own slot,
 * before e is posted; others' slots are touched after all have come to an epoch k and before k + 1 is posted, and then only the half k mod 2.
 */
class Reducer {
 public:
  /** `memory`: a pointer for each member, to `bytes` of its memory. `block` 0: slots, in two halves; else the arrays lie there. */
  Reducer(Lane lane, std::vector<std::byte*> memory, size_t bytes, uint32_t block);

  /** Begins a reduction, or goes on with one that has not ended. `epoch` is the last one posted; it is moved on. */
  Result Reduce(const Operand& operand, int32_t& epoch, int32_t alarm, std::chrono::nanoseconds most);

  /** The operand of a reduction that has not ended; null where there is none. */
  const Operand* pending() const { return pending_ ? &operand_ : nullptr; }

  const Lane& lane() const { return lane_; }
  /** Bytes of one round at most; of all of the memory where arrays lie in it. */
  size_t capacity() const { return capacity_; }
  bool Contains(const std::byte* data, size_t bytes) const;
  bool in_place() const { return block_ != 0; }

 private:
  enum class Stage : uint8_t { kBegin, kGather, kScatter };

  Result Advance(int32_t& epoch, int32_t alarm, std::chrono::nanoseconds most);
  void Sign(int32_t epoch) const;
  Result CompareSignatures(int32_t epoch) const;
  void ReduceOwnShare();
  bool one_shot() const;

  const Lane lane_;
  const std::vector<std::byte*> memory_;
  const size_t bytes_;
  const uint32_t block_;
  const size_t capacity_;
  /** Where in each member's memory an operand in place lies. */
  size_t offset_ = 0;
  Operand operand_{};
  bool pending_ = false;
  Stage stage_ = Stage::kBegin;
  size_t done_ = 0;
  size_t round_ = 0;
  /** Where the round's data lies, by member. */
  std::vector<std::byte*> parts_;
  /** The same, of the elements that are combined just now. */
  std::vector<std::byte*> at_;
};

}  // namespace rankmesh
