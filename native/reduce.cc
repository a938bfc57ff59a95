// All-reduce among the members of a lane: in one step, each reading all operands, or in two, each combining its share for all.
#include "reduce.h"

#include <algorithm>
#include <cstring>

namespace rankmesh {
namespace {

/** Bytes of one round: what a core writes should still be in its cache when the others read it. */
constexpr size_t kRound = 256 * 1024;
/** Up to here, reading all operands is cheaper than meeting twice, however many members. */
constexpr size_t kOneShot = 16 * 1024;
/** Bytes that are combined for one member and then copied to the others, still in the first cache. */
constexpr size_t kCopy = 8 * 1024;
/** Shares begin on lines of their own. */
constexpr size_t kShare = 64;

/** Words of a member's line, each for an even and an odd epoch. */
enum Word : size_t { kSignature = 2, kCount = 4, kKind = 6, kBlock = 8, kOffset = 10 };

size_t CapacityOf(size_t bytes, uint32_t block) { return block ? bytes : std::min(kRound, bytes / 2 / kShare * kShare); }

}  // namespace

Reducer::Reducer(Lane lane, std::vector<std::byte*> memory, size_t bytes, uint32_t block)
    : lane_(lane), memory_(std::move(memory)), bytes_(bytes), block_(block), capacity_(CapacityOf(bytes, block)), parts_(memory_), at_(memory_) {}

bool Reducer::Contains(const std::byte* data, size_t bytes) const {
  const std::byte* const own = memory_[lane_.me];
  return data >= own && bytes <= capacity_ && data - own <= static_cast<ptrdiff_t>(capacity_ - bytes);
}

/** With two members, one step moves no more than two would. */
bool Reducer::one_shot() const { return block_ == 0 && (lane_.members <= 2 || operand_.count * SizeOf(operand_.type) <= kOneShot); }

Result Reducer::Reduce(const Operand& operand, int32_t& epoch, int32_t alarm, std::chrono::nanoseconds most) {
  if (!pending_) {
    operand_ = operand;
    pending_ = true;
    stage_ = Stage::kBegin;
    done_ = 0;
    if (block_) offset_ = static_cast<size_t>(operand.data - memory_[lane_.me]);
  }
  const Result result = Advance(epoch, alarm, most);
  pending_ = result == Result::kExpired || result == Result::kAlarmed;
  return result;
}

Result Reducer::Advance(int32_t& epoch, int32_t alarm, std::chrono::nanoseconds most) {
  const size_t size = SizeOf(operand_.type);
  const auto next = [&] { return static_cast<int32_t>(static_cast<uint32_t>(epoch) + 1); };
  for (;;) {
    std::byte* const own = operand_.data + done_ * size;
    if (stage_ == Stage::kBegin) {
      const size_t half = block_ ? offset_ : (next() & 1) * (bytes_ / 2 / kShare * kShare);
      for (uint32_t member = 0; member < lane_.members; member++) parts_[member] = memory_[member] + half;
      round_ = std::min(operand_.count - done_, capacity_ / size);
      if (!block_) std::memcpy(parts_[lane_.me], own, round_ * size);
      if (done_ == 0) Sign(next());
      Post(lane_, epoch = next());
      stage_ = Stage::kGather;
    }
    if (const Result result = Wait(lane_, epoch, alarm, most); result != Result::kArrived) return result;
    if (stage_ == Stage::kGather) {
      if (done_ == 0) {
        if (const Result result = CompareSignatures(epoch); result != Result::kArrived) return result;
      }
      if (one_shot()) {
        Combine(operand_.type, operand_.op, parts_.data(), lane_.members, own, round_);
      } else {
        ReduceOwnShare();
        Post(lane_, epoch = next());
        stage_ = Stage::kScatter;
        continue;
      }
    } else if (!block_) {
      std::memcpy(own, parts_[lane_.me], round_ * size);
    }
    done_ += round_;
    if (done_ >= operand_.count) return Result::kArrived;
    stage_ = Stage::kBegin;
  }
}

void Reducer::Sign(int32_t epoch) const {
  int32_t* const line = lane_.Line(lane_.me) + (static_cast<uint32_t>(epoch) & 1);
  line[kSignature] = operand_.signature;
  line[kCount] = static_cast<int32_t>(operand_.count);
  line[kKind] = static_cast<int32_t>(operand_.type) << 2 | static_cast<int32_t>(operand_.op);
  line[kBlock] = static_cast<int32_t>(block_);
  line[kOffset] = block_ ? static_cast<int32_t>(offset_ / 4) : 0;
}

Result Reducer::CompareSignatures(int32_t epoch) const {
  const size_t parity = static_cast<uint32_t>(epoch) & 1;
  const int32_t* const own = lane_.Line(lane_.me) + parity;
  Result result = Result::kArrived;
  for (uint32_t member = 0; member < lane_.members; member++) {
    const int32_t* const line = lane_.Line(member) + parity;
    if (line[kSignature] != own[kSignature] || line[kCount] != own[kCount] || line[kKind] != own[kKind]) return Result::kMismatched;
    if (line[kBlock] != own[kBlock] || line[kOffset] != own[kOffset]) result = Result::kElsewhere;
  }
  return result;
}

/** Combines this member's share of the round into every member's memory. */
void Reducer::ReduceOwnShare() {
  const size_t size = SizeOf(operand_.type);
  const size_t lines = (round_ * size + kShare - 1) / kShare;
  const size_t share = (lines + lane_.members - 1) / lane_.members * kShare / size;
  const size_t end = std::min(round_, (lane_.me + 1) * share);
  for (size_t from = lane_.me * share; from < end; from += kCopy / size) {
    const size_t count = std::min(end - from, kCopy / size);
    for (uint32_t member = 0; member < lane_.members; member++) at_[member] = parts_[member] + from * size;
    Combine(operand_.type, operand_.op, at_.data(), lane_.members, at_[0], count);
    for (uint32_t member = 1; member < lane_.members; member++) std::memcpy(at_[member], at_[0], count * size);
  }
}

}  // namespace rankmesh
