// What a product's pieces are, and who is in a team.
#include "team.h"

#include <algorithm>

#include "processors.h"

namespace rankmesh::cpu {
namespace {

/** A piece is at least so many rows, and so many bytes of weights: some microseconds. Each piece rounds x anew, where it is rounded. */
constexpr size_t kRows = 16;
constexpr size_t kPieceBytes = 1 << 17;
constexpr size_t kRoundedBytes = 1 << 19;
/** Pieces of a product, at most. */
constexpr size_t kPieces = 32;
/** With more tokens a product has memory of its own for each call. */
constexpr size_t kFewTokens = 4;

/** Bytes of a row of weights. */
size_t RowBytes(const Call& call) {
  const auto [values, bytes] = kFormats[call.types[1]];
  return call.numbers[1] / values * bytes;
}

}  // namespace

Call Work::Piece(size_t piece) const {
  const size_t first = piece * rows_;
  Call part = call_;
  part.numbers[2] = std::min(rows_, call_.numbers[2] - first);
  part.numbers[4] += first;
  part.operands[1] += first * RowBytes(call_);
  if (call_.flags[0]) part.operands[2] += first * sizeof(float);
  return part;
}

Work* Team::Join() {
  const std::lock_guard lock(mutex_);
  const size_t place = static_cast<size_t>(std::find(taken_.begin(), taken_.end(), false) - taken_.begin());
  if (place == kMost) return nullptr;
  taken_[place] = true;
  members_ = std::max<size_t>(members_, place + 1);
  present_++;
  return &works_[place];
}

void Team::Leave(Work* work) {
  if (!work) return;
  const std::lock_guard lock(mutex_);
  work->processor = -1;
  taken_[static_cast<size_t>(work - works_.data())] = false;
  present_--;
}

void Team::KeepApart(Work* own) {
  if (!own || present_ < 2) return;
  const int here = Processor();
  if (own->processor != here) own->processor = here;
  if (here < 0) return;
  // The one that came first stays.
  for (const Work* other = works_.data(); other < own; other++) {
    if (other->processor != here) continue;
    std::array<const std::atomic<int>*, kMost> taken;
    size_t count = 0;
    for (const Work& work : works_)
      if (&work != own) taken[count++] = &work.processor;
    MoveAway(taken.data(), count);
    own->processor = Processor();
    return;
  }
}

void Team::Rest(Work* own) {
  if (own) own->processor = -1;
}

size_t Team::PieceOf(const Call& call) const {
  if (call.op != kMatmul || present_ < 2 || call.numbers[0] > kFewTokens) return 0;
  const size_t outs = call.numbers[2], row = RowBytes(call);
  if (row == 0) return 0;
  const size_t bytes = call.numbers[5] == 0 ? kPieceBytes : kRoundedBytes;
  const size_t rows = std::max({kRows, bytes / row, outs / kPieces}) / kRows * kRows;
  return outs >= 2 * rows ? rows : 0;
}

}  // namespace rankmesh::cpu
