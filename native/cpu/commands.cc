// Reads commands: for each op its numbers, types, flags and operands, in the order in which runtime/device/cpu/commands.ts lists them.
#include "commands.h"

#include <cmath>
#include <new>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace rankmesh::cpu {
namespace {

/** No size that a command gives is larger. */
constexpr double kMost = 1ull << 48;
constexpr double kMostSlices = 1 << 20;

class Reader {
 public:
  Reader(const double* words, size_t count, Registry& registry) : words_(words), left_(count), registry_(registry) {}

  bool empty() const { return left_ == 0; }

  Command Next() {
    Command command;
    command_ = &command;
    command.call.last = 1;
    numbers_ = operands_ = types_ = flags_ = 0;
    const auto op = static_cast<uint32_t>(Size(kOps - 1));
    command.call.op = static_cast<Op>(op);
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
        const auto tokens = Number(), heads = Number(), kv = Number(), dim = Number(), start = Number();
        if (std::fmod(dim, 2) != 0) Fail("an odd head size");
        Operand(tokens * (heads + 2 * kv) * dim * 4, 4), Operand((start + tokens) * dim * 4, 4), Operand(tokens * heads * dim * 4, 4);
        Operand((start + tokens) * kv * dim * 4, 4), Operand((start + tokens) * kv * dim * 4, 4);
        break;
      }
      case kAttention: {
        const auto tokens = Number(), heads = Number(), kv = Number(), dim = Number(), start = Number();
        Number();
        Scalar();
        if (kv < 1 || std::fmod(heads, kv) != 0) Fail("heads that kv heads do not divide");
        Operand(tokens * heads * dim * 4, 4);
        for (int i = 0; i < 2; i++) Operand((start + tokens) * kv * dim * 4, 4);
        Operand(tokens * heads * dim * 4, 4);
        break;
      }
      case kSiluMul: {
        const auto rows = Number(), n = Number(), type = Float();
        Operand(rows * 2 * n * type, type), Operand(rows * n * type, type);
        break;
      }
      case kRmsNorm: {
        const auto rows = Number(), n = Number(), type = Float();
        Scalar();
        Flag();
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
    return command;
  }

 private:
  [[noreturn]] void Fail(const std::string& what) const {
    throw BadCommand("command of op " + std::to_string(command_->call.op) + " has " + what);
  }

  double Word() {
    if (left_ == 0) Fail("too few words");
    left_--;
    return *words_++;
  }

  double Size(double most = kMost) {
    const double value = Word();
    if (!(value >= 0 && value <= most && value == std::floor(value))) Fail("a number that is no size: " + std::to_string(value));
    return value;
  }

  double Number() {
    const double value = Size();
    command_->call.numbers[numbers_++] = static_cast<size_t>(value);
    return value;
  }

  /** Bytes of an element. */
  double Float(Type most = kF16) {
    const auto type = static_cast<Type>(Size(most));
    command_->call.types[types_++] = type;
    return static_cast<double>(kFormats[type].bytes);
  }

  /** Bytes of an element of a weight with rows of `n` elements; a fraction, and exact, for blocks. */
  double Weight(double n) {
    const auto type = static_cast<Type>(Size(kTypes - 1));
    const auto [values, bytes] = kFormats[type];
    if (type == kWord || std::fmod(n, static_cast<double>(values)) != 0) Fail("rows that are no weights");
    weight_ = type;
    command_->call.types[types_++] = type;
    return static_cast<double>(bytes) / static_cast<double>(values);
  }

  /** Blocks begin anywhere. */
  double WeightAlignment() const { return kFormats[weight_].values > 1 ? 1 : static_cast<double>(kFormats[weight_].bytes); }

  bool Flag() { return command_->call.flags[flags_++] = Size(1) != 0; }

  void Scalar() { command_->call.scalar = static_cast<float>(Word()); }

  void Operand(double bytes, double alignment) {
    command_->call.operands[operands_] = Place(bytes, alignment, command_->blocks[operands_]);
    operands_++;
  }

  /** The memory of an operand, which `block` keeps. */
  std::byte* Place(double bytes, double alignment, std::shared_ptr<Block>& kept) {
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

  size_t AddSlice() {
    command_->slices.push_back({nullptr, static_cast<size_t>(Size())});
    return command_->slices.back().number;
  }

  void PlaceSlice(Slice& slice, double bytes, double alignment) { slice.at = Place(bytes, alignment, command_->slice_blocks.emplace_back()); }

  void EndSlices() {
    command_->call.slices = command_->slices.data();
    command_->call.slice_count = command_->slices.size();
  }

  /** How `count` slices are joined: after each so many of the sums that wait are, and in the end one is left. */
  void Joins(double count) {
    size_t depth = 0;
    for (double i = 0; i < count; i++) {
      const size_t joins = AddSlice();
      if (joins > depth || ++depth - joins > kDepth) Fail("slices that cannot be joined so");
      depth -= joins;
    }
    if (count > 0 && depth != 1) Fail("slices that are not joined");
  }

  void Slices(double bytes, double alignment) {
    for (auto& slice : command_->slices) PlaceSlice(slice, bytes, alignment);
    EndSlices();
  }

  /** Elements from the first to the last one of rows at a pitch. */
  static double Extent(double rows, double n, double pitch) { return rows < 1 ? 0 : (rows - 1) * pitch + n; }

  /** What leads brings the work, in the command that follows. */
  void Meet(Command& command) {
    const auto id = static_cast<uint64_t>(Size());
    const auto members = static_cast<uint32_t>(Size(UINT32_MAX));
    const bool leads = Size(1) != 0;
    auto& meeting = registry_.meetings[id];
    if (!meeting) meeting = std::make_shared<Meeting>(members);
    command.meeting = meeting;
    if (meeting->members != members || members < 1 || (leads && meeting->led)) Fail("a meeting that cannot be");
    if (leads) {
      if (left_ > 0 && (*words_ == double{kWait} || *words_ == double{kMeet})) Fail("work that cannot be shared out");
      meeting->work = Next();
      meeting->led = true;
      command_ = &command;
    }
    if (++meeting->named < members) return;
    const bool led = meeting->led;
    registry_.meetings.erase(id);
    if (!led) Fail("a meeting that nobody leads");
  }

  void Wait() {
    const auto queue = static_cast<size_t>(Size(UINT32_MAX));
    if (queue >= registry_.queues.size()) Fail("a queue that is not there");
    command_->other = registry_.queues[queue];
    command_->epoch = static_cast<uint64_t>(Size());
  }

  /** Whole subtrees of blocks [first, first + count). */
  static double Nodes(double first, double count) {
    double nodes = 0;
    for (auto at = static_cast<uint64_t>(first), end = at + static_cast<uint64_t>(count); at < end; nodes++) {
      uint64_t width = 1;
      while (at % (2 * width) == 0 && at + 2 * width <= end) width *= 2;
      at += width;
    }
    return nodes;
  }

  const double* words_;
  size_t left_;
  Registry& registry_;
  Command* command_ = nullptr;
  Type weight_ = kF32;
  size_t numbers_ = 0, operands_ = 0, types_ = 0, flags_ = 0;
};

/** Large blocks begin at a page of this size, so that the system may map them by such pages. */
constexpr size_t kHugePage = 1 << 21;

size_t AlignmentOf(size_t bytes) { return bytes >= kHugePage ? kHugePage : 64; }

}  // namespace

Block::Block(size_t size) : data(static_cast<std::byte*>(::operator new[](size, std::align_val_t(AlignmentOf(size))))), bytes(size) {
#ifdef __linux__
  if (bytes >= kHugePage) madvise(data, bytes, MADV_HUGEPAGE);
#endif
}

Block::~Block() { ::operator delete[](data, std::align_val_t(AlignmentOf(bytes))); }

std::vector<Command> ReadCommands(const double* words, size_t count, Registry& registry) {
  std::vector<Command> commands;
  Reader reader(words, count, registry);
  while (!reader.empty()) commands.push_back(reader.Next());
  return commands;
}

}  // namespace rankmesh::cpu
