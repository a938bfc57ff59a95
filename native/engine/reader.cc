// For each op its numbers, types, flags and operands, in the order in which runtime/device/engine/commands.ts lists them.
#include "reader.h"

#include <cmath>

namespace rankmesh::engine {
namespace {

/** Elements from the first to the last one of rows at a pitch. */
double Extent(double rows, double n, double pitch) { return rows < 1 ? 0 : (rows - 1) * pitch + n; }

/** Whole subtrees of blocks [first, first + count). */
double Nodes(double first, double count) {
  double nodes = 0;
  for (auto at = static_cast<uint64_t>(first), end = at + static_cast<uint64_t>(count); at < end; nodes++) {
    uint64_t width = 1;
    while (at % (2 * width) == 0 && at + 2 * width <= end) width *= 2;
    at += width;
  }
  return nodes;
}

}  // namespace

Command Reader::Next() {
  Command command;
  Command* const outer = command_;
  command_ = &command;
  command.call.last = 1;
  numbers_ = operands_ = types_ = flags_ = 0;
  const auto op = static_cast<uint32_t>(Size(UINT32_MAX));
  command.call.op = static_cast<Op>(op);
  if (op < kOps) {
    Read(command);
  } else {
    const auto extra = registry_.extras.find(op);
    if (extra == registry_.extras.end()) Fail("an op that this engine does not have");
    extra->second(*this, command);
  }
  command_ = outer;
  return command;
}

void Reader::Read(Command& command) {
  switch (command.call.op) {
    case kWait:
      Wait();
      break;
    case kEmbedding: {
      const auto tokens = Number(), n = Number(), rows = Number();
      Number();
      const auto from = Weight(n), to = Float();
      Operand(tokens * 4, 4), Operand(rows * n * from, WeightAlignment()), Operand(tokens * n * to, to);
      break;
    }
    case kMatmul:
    case kMatmulTree: {
      const auto tokens = Number(), k = Number(), outs = Number();
      double nodes = 1;
      if (command.call.op == kMatmulTree) {
        const auto block = Number(), first = Number();
        if (k < 1 || block < 4 || std::fmod(block, 4) != 0 || std::fmod(k, 4) != 0 || first + std::ceil(k / block) > 65536) Fail("a tree that cannot be");
        nodes = Nodes(first, std::ceil(k / block));
      }
      const auto width = Number(), column = Number();
      if (column + outs > width) Fail("columns that are not there");
      if (command.call.op == kMatmul && Number() > 2) Fail("a rounding that is none");
      const auto x = Float(), w = Weight(k);
      const bool bias = Flag();
      if (command.call.op == kMatmulTree && Flag()) nodes = 1;
      if (nodes != 1 && width != outs) Fail("subtrees in columns");
      Operand(tokens * k * x, x), Operand(outs * k * w, WeightAlignment()), Operand(bias ? outs * 4 : 0, bias ? 4 : 1);
      Operand(nodes * tokens * width * 4, 4);
      break;
    }
    case kRope: {
      const auto tokens = Number(), heads = Number(), kv = Number(), dim = Number(), start = Number(), positions = Number();
      const bool position = Flag();
      if (std::fmod(dim, 2) != 0) Fail("an odd head size");
      if (start + tokens > positions) Fail("tokens at positions that are not there");
      Operand(tokens * (heads + 2 * kv) * dim * 4, 4), Operand(positions * dim * 4, 4), Operand(tokens * heads * dim * 4, 4);
      Operand(positions * kv * dim * 4, 4), Operand(positions * kv * dim * 4, 4), Operand(position ? 4 : 0, position ? 4 : 1);
      break;
    }
    case kAttention: {
      const auto tokens = Number(), heads = Number(), kv = Number(), dim = Number(), start = Number();
      Number();
      const auto positions = Number();
      Scalar();
      const bool position = Flag();
      Flag();
      if (start + tokens > positions) Fail("tokens at positions that are not there");
      if (kv < 1 || std::fmod(heads, kv) != 0) Fail("heads that kv heads do not divide");
      Operand(tokens * heads * dim * 4, 4);
      for (int i = 0; i < 2; i++) Operand(positions * kv * dim * 4, 4);
      Operand(tokens * heads * dim * 4, 4), Operand(position ? 4 : 0, position ? 4 : 1);
      break;
    }
    case kSiluMul: {
      const auto rows = Number(), n = Number(), type = Float();
      Flag();
      Operand(rows * 2 * n * type, type), Operand(rows * n * type, type);
      break;
    }
    case kRmsNorm: {
      const auto rows = Number(), n = Number(), type = Float();
      Scalar();
      Flag(), Flag();
      Operand(rows * n * type, type), Operand(n * type, type), Operand(rows * n * type, type);
      break;
    }
    case kAdd: {
      const auto n = Number(), type = Float(kWord);
      for (int i = 0; i < 3; i++) Operand(n * type, type);
      break;
    }
    case kSoftmax: {
      const auto rows = Number(), n = Number();
      if (n < 1) Fail("empty rows");
      for (int i = 0; i < 2; i++) Operand(rows * n * 4, 4);
      break;
    }
    case kTopK: {
      const auto rows = Number(), n = Number(), k = Number();
      if (k < 1 || k > n) Fail("a k that is not in [1, n]");
      Operand(rows * n * 4, 4), Operand(rows * k * 4, 4), Operand(rows * k * 4, 4);
      break;
    }
    case kCast: {
      const auto n = Number(), from = Float(), to = Float();
      Operand(n * from, from), Operand(n * to, to);
      break;
    }
    case kCopy: {
      const auto bytes = Number();
      Operand(bytes, 1), Operand(bytes, 1);
      break;
    }
    case kMeet:
      Meet(command);
      break;
    case kReduce: {
      const auto rows = Number(), n = Number(), pitch = Number(), count = Size(kMostSlices), reduction = Number(), divisor = Number();
      if (pitch < n || reduction > double{kReductions - 1} || divisor < 1) Fail("a reduction that cannot be");
      const auto x = Float(kWord), y = Float(kWord);
      const bool words = command.call.types[0] == kWord;
      if (words != (command.call.types[1] == kWord) || (words ? divisor != 1 : reduction > double{kMax})) Fail("a reduction that its types do not have");
      Joins(count);
      Slices(Extent(rows, n, pitch) * x, x), Operand(rows * n * y, y);
      command.call.last = static_cast<size_t>(rows * std::ceil(n / kPiece));
      break;
    }
    case kReduceNorm: {
      const auto rows = Number(), n = Number(), count = Size(kMostSlices), x = Float(), type = Float();
      Scalar();
      Flag();
      const bool bias = Flag();
      Flag();
      Joins(count);
      Slices(rows * n * x, x), Operand(rows * n * type, type), Operand(n * type, type), Operand(bias ? n * type : 0, bias ? type : 1);
      Operand(rows * n * type, type);
      command.call.last = n < 1 ? 0 : static_cast<size_t>(rows);
      break;
    }
    case kGather: {
      const auto rows = Number(), count = Size(kMostSlices), pitch = Number();
      double width = 0;
      for (double i = 0; i < count; i++) width += static_cast<double>(AddSlice());
      if (width > pitch) Fail("rows that are wider than their pitch");
      for (auto& slice : command.slices) PlaceSlice(slice, rows * static_cast<double>(slice.number), 1);
      EndSlices();
      Operand(rows * pitch, 1);
      command.call.last = command.slices.size();
      break;
    }
    case kOps:
      break;
  }
}

void Reader::Fail(const std::string& what) const {
  throw BadCommand("command of op " + std::to_string(command_->call.op) + " has " + what);
}

double Reader::Word() {
  if (left_ == 0) Fail("too few words");
  left_--;
  return *words_++;
}

double Reader::Size(double most) {
  const double value = Word();
  if (!(value >= 0 && value <= most && value == std::floor(value))) Fail("a number that is no size: " + std::to_string(value));
  return value;
}

double Reader::Number() {
  const double value = Size();
  command_->call.numbers[numbers_++] = static_cast<size_t>(value);
  return value;
}

double Reader::Float(Type most) {
  const auto type = static_cast<Type>(Size(most));
  command_->call.types[types_++] = type;
  return static_cast<double>(kFormats[type].bytes);
}

double Reader::Weight(double n) {
  const auto type = static_cast<Type>(Size(kTypes - 1));
  const auto [values, bytes] = kFormats[type];
  if (type == kWord || std::fmod(n, static_cast<double>(values)) != 0) Fail("rows that are no weights");
  weight_ = type;
  command_->call.types[types_++] = type;
  return static_cast<double>(bytes) / static_cast<double>(values);
}

bool Reader::Flag() { return command_->call.flags[flags_++] = Size(1) != 0; }

void Reader::Scalar() { command_->call.scalar = static_cast<float>(Word()); }

void Reader::Operand(double bytes, double alignment) {
  command_->call.operands[operands_] = Place(bytes, alignment, command_->blocks[operands_]);
  operands_++;
}

std::byte* Reader::Place(double bytes, double alignment, std::shared_ptr<Block>& kept) {
  const auto id = static_cast<uint32_t>(Size(UINT32_MAX));
  const double offset = Size();
  const auto found = registry_.blocks.find(id);
  if (found == registry_.blocks.end()) Fail("an operand in block " + std::to_string(id) + ", which is not there");
  const auto& block = found->second;
  if (!(offset + bytes <= static_cast<double>(block->bytes))) Fail("an operand that passes the end of its block");
  if (std::fmod(offset, alignment) != 0) Fail("an operand that is not aligned");
  kept = block;
  return block->data + static_cast<size_t>(offset);
}

size_t Reader::AddSlice() {
  command_->slices.push_back({nullptr, static_cast<size_t>(Size())});
  return command_->slices.back().number;
}

void Reader::EndSlices() {
  command_->call.slices = command_->slices.data();
  command_->call.slice_count = command_->slices.size();
}

void Reader::Joins(double count) {
  size_t depth = 0;
  for (double i = 0; i < count; i++) {
    const size_t joins = AddSlice();
    if (joins > depth || ++depth - joins > kDepth) Fail("slices that cannot be joined so");
    depth -= joins;
  }
  if (count > 0 && depth != 1) Fail("slices that are not joined");
}

void Reader::Slices(double bytes, double alignment) {
  for (auto& slice : command_->slices) PlaceSlice(slice, bytes, alignment);
  EndSlices();
}

/** What leads brings the work, in the command that follows. */
void Reader::Meet(Command& command) {
  const auto id = static_cast<uint64_t>(Size());
  const auto members = static_cast<uint32_t>(Size(UINT32_MAX));
  const bool leads = Size(1) != 0;
  auto& meeting = registry_.meetings[id];
  if (!meeting) meeting = registry_.NewMeeting(members);
  command.meeting = meeting;
  if (meeting->members != members || members < 1 || (leads && meeting->led)) Fail("a meeting that cannot be");
  if (leads) {
    if (left_ > 0 && (*words_ == double{kWait} || *words_ == double{kMeet})) Fail("work that cannot be shared out");
    meeting->work = Next();
    meeting->led = true;
  }
  if (++meeting->named < members) return;
  const bool led = meeting->led;
  registry_.meetings.erase(id);
  if (!led) Fail("a meeting that nobody leads");
}

void Reader::Wait() {
  const auto queue = static_cast<size_t>(Size(UINT32_MAX));
  if (queue >= registry_.queues.size()) Fail("a queue that is not there");
  command_->queue = registry_.queues[queue];
  command_->epoch = static_cast<uint64_t>(Size());
}

std::vector<Command> ReadCommands(const double* words, size_t count, Registry& registry) {
  std::vector<Command> commands;
  Reader reader(words, count, registry);
  while (!reader.empty()) commands.push_back(reader.Next());
  return commands;
}

}  // namespace rankmesh::engine
