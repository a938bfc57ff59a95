// Reads the words of the peers' commands. All begin alike: way, blocks, ranks, rank, bytes of an operand and of a third of packets in the
// workspaces, nanoseconds that a wait may take, whether there is a multicast. All operands come last: the ranks' workspaces, this rank's state,
// where the host is told, the multicast of the workspaces, and the others.
#include "peer_commands.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "peer_arguments.h"

namespace rankmesh::cuda {
namespace {

using engine::Reader;

/** Kernels of peers_list.h, by way. */
#define RANKMESH_WAYS(prefix) {prefix "_one_shot", prefix "_two_shot", prefix "_packets"}
/** By most ranks: 2, 4, 8, 16; of those that quantise there are fewer. */
#define RANKMESH_PLAIN(prefix) {RANKMESH_WAYS(prefix "_2"), RANKMESH_WAYS(prefix "_4"), RANKMESH_WAYS(prefix "_8"), RANKMESH_WAYS(prefix "_16")}
#define RANKMESH_QUANT(prefix) {RANKMESH_WAYS(prefix "_8"), RANKMESH_WAYS(prefix "_8"), RANKMESH_WAYS(prefix "_8"), RANKMESH_WAYS(prefix "_16")}
/** By element type. */
using Names = const char* const[3][4][3];
constexpr Names kSums = {RANKMESH_PLAIN("peer_sum_f32"), RANKMESH_PLAIN("peer_sum_bf16"), RANKMESH_PLAIN("peer_sum_f16")};
constexpr Names kPlain = {RANKMESH_PLAIN("peer_plain_f32"), RANKMESH_PLAIN("peer_plain_bf16"), RANKMESH_PLAIN("peer_plain_f16")};
constexpr Names kQuant = {RANKMESH_QUANT("peer_quant_f32"), RANKMESH_QUANT("peer_quant_bf16"), RANKMESH_QUANT("peer_quant_f16")};
constexpr Names kMoe = {RANKMESH_QUANT("peer_moe_f32"), RANKMESH_QUANT("peer_moe_bf16"), RANKMESH_QUANT("peer_moe_f16")};
/** Of any reduction, words behind the other types; by way. */
constexpr const char* kJoins[4][2] = {{"peer_join_f32_one_shot", "peer_join_f32_two_shot"},
                                      {"peer_join_bf16_one_shot", "peer_join_bf16_two_shot"},
                                      {"peer_join_f16_one_shot", "peer_join_f16_two_shot"},
                                      {"peer_join_word_one_shot", "peer_join_word_two_shot"}};

constexpr double kMostRows = 1ull << 32;

/** The beginning of a command. */
struct Head {
  Algorithm way;
  unsigned blocks;
  bool multicast;
  Peers peers{};

  const char* Of(const Names& names, int type) const {
    const int most = peers.ranks <= 2 ? 0 : peers.ranks <= 4 ? 1 : peers.ranks <= 8 ? 2 : 3;
    return names[type][most][static_cast<int>(way)];
  }
};

Head ReadHead(Reader& reader, bool by_two_shot) {
  Head head;
  head.way = static_cast<Algorithm>(static_cast<int>(reader.Size(2)));
  if (head.way == Algorithm::kTwoShot && !by_two_shot) reader.Fail("a way that its kernel does not know");
  head.blocks = static_cast<unsigned>(reader.Size(kMaxBlocks));
  head.peers.ranks = static_cast<int>(reader.Size(kMaxRanks));
  head.peers.rank = static_cast<int>(reader.Size(kMaxRanks - 1));
  if (head.blocks < 1 || head.peers.rank >= head.peers.ranks) reader.Fail("no blocks, or a rank that is not there");
  head.peers.sizes.data_bytes = static_cast<uint64_t>(reader.Size());
  head.peers.sizes.lamport_bytes = static_cast<uint64_t>(reader.Size());
  if (head.peers.sizes.data_bytes % 128 != 0 || head.peers.sizes.lamport_bytes % 128 != 0) reader.Fail("sizes that are not aligned");
  head.peers.limit = static_cast<uint64_t>(reader.Size(1ull << 53));
  head.multicast = reader.Size(1) != 0;
  return head;
}

/** What the command's kernel is given, as it is read. */
class Placing {
 public:
  Placing(Reader& reader, engine::Command& command) : reader_(reader), made_(std::make_shared<PeerLaunch>()) { command.extra = made_; }

  /** Where `there`, else null; the words are there in any case. */
  std::byte* Place(double bytes, double alignment, bool there = true) {
    std::byte* const at = reader_.Place(there ? bytes : 0, there ? alignment : 1, made_->blocks.emplace_back());
    return there ? at : nullptr;
  }

  void Workspaces(Head& head) {
    Peers& peers = head.peers;
    for (int r = 0; r < peers.ranks; r++) peers.memory[r] = Place(static_cast<double>(WorkspaceBytes(peers.sizes)), 128);
    peers.state = reinterpret_cast<State*>(Place(sizeof(State), alignof(State)));
    peers.told = reinterpret_cast<uint32_t*>(Place(4, 4));
    peers.multicast = Place(static_cast<double>(WorkspaceBytes(peers.sizes)), 128, head.multicast);
  }

  template <typename Args>
  void Kernel(const char* name, unsigned blocks, int threads, const Args& args) {
    const auto* const bytes = reinterpret_cast<const std::byte*>(&args);
    made_->launch = {name, {blocks, 1, 1}, static_cast<unsigned>(threads), 0, {bytes, bytes + sizeof args}};
  }

 private:
  Reader& reader_;
  std::shared_ptr<PeerLaunch> made_;
};

/** Threads for `packets` in all, of which blocks have a share. */
int ThreadsFor(int64_t packets, unsigned blocks) {
  const int64_t share = (packets + blocks - 1) / blocks;
  return static_cast<int>(std::clamp<int64_t>((share + 31) / 32 * 32, 32, 512));
}

/** Rows fit in the workspaces. */
void CheckFits(const Reader& reader, const Head& head, double rows, double n, double size) {
  const double bytes = rows * std::ceil(n * size / kPacket) * kPacket;
  const bool packets = head.way == Algorithm::kLamport;
  if (bytes > Reader::kMost) reader.Fail("more than there is memory for");
  const double room = static_cast<double>(packets ? head.peers.sizes.lamport_bytes : head.peers.sizes.data_bytes);
  if (bytes * (packets ? head.peers.ranks : 1) > room) reader.Fail("more than the workspaces hold");
}

/** ..., count; type; reduction; is averaged, rounded; workspaces, state, told, multicast, x, y */
void ReadReduce(Reader& reader, engine::Command& command) {
  Head head = ReadHead(reader, true);
  const double count = reader.Size(), size = reader.Float(engine::kWord);
  const auto type = command.call.types[0];
  const bool words = type == engine::kWord;
  const int joining = static_cast<int>(reader.Size(words ? engine::kMaxSigned : engine::kMax));
  const bool averaged = reader.Size(1) != 0, rounded = reader.Size(1) != 0, sum = joining == engine::kSum && !averaged && !words;
  if (words && averaged) reader.Fail("a reduction that its type does not have");
  if (!sum && (rounded || head.way == Algorithm::kLamport)) reader.Fail("a way that its kernel does not know");
  CheckFits(reader, head, 1, count, size);
  Placing operands(reader, command);
  SumArgs args{};
  operands.Workspaces(head);
  args.peers = head.peers;
  args.in.of[head.peers.rank] = operands.Place(count * size, size);
  args.in.rounded = rounded;
  args.out = operands.Place(count * size, size);
  args.count = static_cast<int64_t>(count);
  const int threads = ThreadsFor(PacketsOf(args.count, static_cast<int64_t>(size)), head.blocks);
  if (sum) return operands.Kernel(head.Of(kSums, type), head.blocks, threads, args);
  const float divisor = averaged ? static_cast<float>(head.peers.ranks) : 1.0f;
  operands.Kernel(kJoins[type][static_cast<int>(head.way)], head.blocks, threads, JoinArgs{args, joining, divisor});
}

/** Bytes of codes and scales of all rows. */
struct CodeBytes {
  double codes, scales;
};

CodeBytes BytesOfCodes(const QuantArgs& quant, double rows, double n) {
  const double groups = n / quant.group, blocks = n / 16;
  switch (quant.quant) {
    case Quant::kNone: return {0, 0};
    case Quant::kFp8: return {rows * n, 0};
    case Quant::kFp8Rows: return {rows * n, rows * 4};
    case Quant::kFp8Groups:
      return {rows * n, rows < 1 ? 0 : 4 * (rows + (std::ceil(groups / 4) - 1) * std::ceil(rows / 4) * 4)};
    case Quant::kFp4: {
      const double tile = quant.layout == ScaleLayout::kTilesOf128 ? 128 : 8;
      if (quant.layout == ScaleLayout::kRows) return {rows * n / 2, rows * blocks};
      return {rows * n / 2, std::ceil(rows / tile) * tile * std::ceil(blocks / 4) * 4};
    }
  }
  return {0, 0};
}

/** What follows the head of a norm: rows, first, all, n; type; eps, weight bias; quant, layout, factor, group, pad; has bias, y, sum, pre; rounded */
struct Rows {
  NormArgs args{};
  double size;
  bool bias, out, sum, pre;
};

Rows ReadRows(Reader& reader, const Head& head) {
  Rows rows;
  NormArgs& args = rows.args;
  const double count = reader.Size(kMostRows), first = reader.Size(kMostRows), all = reader.Size(kMostRows), n = reader.Size(kMostRows);
  if (first + count > all || n < 1) reader.Fail("rows that are not there");
  rows.size = reader.Float();
  CheckFits(reader, head, count, n, rows.size);
  if (count * std::ceil(n * rows.size / kPacket) >= kMostRows) reader.Fail("more packets than are counted");
  args.rows = static_cast<int64_t>(count), args.first = static_cast<int64_t>(first), args.all = static_cast<int64_t>(all);
  args.n = static_cast<int64_t>(n);
  args.eps = static_cast<float>(reader.Word()), args.weight_bias = static_cast<float>(reader.Word());
  QuantArgs& quant = args.quant;
  quant.quant = static_cast<Quant>(static_cast<int>(reader.Size(4)));
  quant.layout = static_cast<ScaleLayout>(static_cast<int>(reader.Size(2)));
  const auto factor = static_cast<float>(reader.Word());
  quant.factor = quant.quant == Quant::kFp8 ? 1.0f / factor : factor;
  const double group = reader.Size(1ull << 31);
  if (quant.quant == Quant::kFp8Groups && (group < 1 || std::fmod(n, group) != 0)) reader.Fail("groups that do not divide a row");
  if (quant.quant == Quant::kFp4 && std::fmod(n, 16) != 0) reader.Fail("rows that are no blocks");
  quant.group = static_cast<int>(std::max(group, 1.0));
  quant.pad = reader.Size(1) != 0;
  rows.bias = reader.Size(1) != 0, rows.out = reader.Size(1) != 0, rows.sum = reader.Size(1) != 0;
  rows.pre = reader.Size(1) != 0, args.in.rounded = reader.Size(1) != 0;
  if ((rows.sum || rows.pre) && head.way == Algorithm::kTwoShot) reader.Fail("a sum that its way does not have");
  return rows;
}

/** residual, h, weight, bias, y, sum, codes, scales, pre */
void PlaceRows(Placing& operands, Rows& rows) {
  NormArgs& args = rows.args;
  const double n = static_cast<double>(args.n), all = static_cast<double>(args.all), bytes = all * n * rows.size;
  args.residual_in = operands.Place(bytes, rows.size);
  args.residual_out = operands.Place(bytes, rows.size);
  args.gamma = operands.Place(n * rows.size, rows.size);
  args.bias = operands.Place(n * rows.size, rows.size, rows.bias);
  args.out = operands.Place(bytes, rows.size, rows.out);
  args.sum = operands.Place(bytes, rows.size, rows.sum);
  const bool codes = args.quant.quant != Quant::kNone;
  const CodeBytes sizes = BytesOfCodes(args.quant, all, n);
  args.quant.codes = reinterpret_cast<uint8_t*>(operands.Place(sizes.codes, 1, codes));
  const double alignment = args.quant.quant == Quant::kFp8Rows ? 4 : 1;
  args.quant.scales = reinterpret_cast<uint8_t*>(operands.Place(sizes.scales, alignment, codes && sizes.scales > 0));
  args.pre_gamma = operands.Place(n * rows.size, rows.size, rows.pre);
}

/** ..., rows; workspaces, state, told, multicast, x, rows' operands */
void ReadNorm(Reader& reader, engine::Command& command) {
  Head head = ReadHead(reader, true);
  Rows rows = ReadRows(reader, head);
  Placing operands(reader, command);
  NormArgs& args = rows.args;
  operands.Workspaces(head);
  args.peers = head.peers;
  args.in.of[head.peers.rank] = operands.Place(static_cast<double>(args.all * args.n) * rows.size, rows.size);
  PlaceRows(operands, rows);
  const Names& names = args.quant.quant == Quant::kNone && !rows.pre ? kPlain : kQuant;
  const int threads = RowThreads(args.n, static_cast<int64_t>(rows.size));
  operands.Kernel(head.Of(names, command.call.types[0]), head.blocks, threads, args);
}

/**
 * ..., rows; expert rows, k; routed; type of scale; has scale, index, shared; workspaces, state, told, multicast, rows, scale, index, shared, rows'
 * operands
 */
void ReadMoe(Reader& reader, engine::Command& command) {
  Head head = ReadHead(reader, false);
  Rows rows = ReadRows(reader, head);
  MoeArgs args{};
  Experts& experts = args.experts;
  const double count = reader.Size(kMostRows), k = reader.Size(1 << 16);
  experts.routed = static_cast<float>(reader.Word());
  const double scale_size = reader.Float();
  const bool has_scale = reader.Size(1) != 0, has_index = reader.Size(1) != 0, has_shared = reader.Size(1) != 0;
  const double all = static_cast<double>(rows.args.all), n = static_cast<double>(rows.args.n);
  if (rows.pre) reader.Fail("a norm that its kernel does not know");
  if (!has_index && count != k * all) reader.Fail("experts without an index, whose rows are not one for each token");
  Placing operands(reader, command);
  operands.Workspaces(head);
  experts.rows = operands.Place(count * n * rows.size, rows.size);
  experts.scale = operands.Place(all * k * scale_size, scale_size, has_scale);
  experts.index = reinterpret_cast<const int32_t*>(operands.Place(all * k * 4, 4, has_index));
  experts.shared = operands.Place(all * n * rows.size, rows.size, has_shared);
  experts.count = static_cast<int64_t>(count), experts.k = static_cast<int>(k);
  experts.scale_type = static_cast<ScaleType>(command.call.types[1]);
  PlaceRows(operands, rows);
  args.norm = rows.args;
  args.norm.peers = head.peers;
  const int threads = RowThreads(rows.args.n, static_cast<int64_t>(rows.size));
  operands.Kernel(head.Of(kMoe, command.call.types[0]), head.blocks, threads, args);
}

/** ..., rows, unit, pitch of x and of y; of each rank row, first, count, from, width, start; has y; workspaces, state, told, multicast, x, y */
void ReadGather(Reader& reader, engine::Command& command) {
  Head head = ReadHead(reader, false);
  GatherArgs args{};
  const double rows = reader.Size(), unit = reader.Size(kPacket), in_pitch = reader.Size(), pitch = reader.Size();
  if (unit != 16 && unit != 4 && unit != 1) reader.Fail("a unit that is none");
  double end = 0, most = 0;
  for (int r = 0; r < head.peers.ranks; r++) {
    const double row = reader.Size(), first = reader.Size(), count = reader.Size(), from = reader.Size(), width = reader.Size(), start = reader.Size();
    if (first + count > rows * row || count * unit > static_cast<double>(head.peers.sizes.data_bytes)) reader.Fail("a span that is not there");
    if (from + width > row) reader.Fail("columns that are not there");
    args.row[r] = static_cast<int64_t>(row), args.start[r] = static_cast<int64_t>(start);
    args.first[r] = static_cast<int64_t>(first), args.count[r] = static_cast<int64_t>(count);
    args.from[r] = static_cast<int64_t>(from), args.width[r] = static_cast<int64_t>(width);
    if (width > 0) end = std::max(end, start + width);
    most = std::max(most, count);
  }
  const double own = static_cast<double>(args.row[head.peers.rank]), gaps = std::max(rows - 1, 0.0);
  if (in_pitch < own || (gaps * std::max(in_pitch, pitch) + end + own) * unit > Reader::kMost) reader.Fail("rows that do not fit");
  const bool wanted = reader.Size(1) != 0;
  Placing operands(reader, command);
  operands.Workspaces(head);
  args.peers = head.peers;
  args.in_pitch = static_cast<int64_t>(in_pitch), args.pitch = static_cast<int64_t>(pitch);
  const bool brings = rows > 0 && own > 0, gets = rows > 0 && end > 0;
  args.in = operands.Place(brings ? (gaps * in_pitch + own) * unit : 0, 1);
  args.out = operands.Place(gets ? (gaps * pitch + end) * unit : 0, 1, wanted);
  const char* const name = unit == 16 ? "peer_gather_16" : unit == 4 ? "peer_gather_4" : "peer_gather_1";
  operands.Kernel(name, head.blocks, ThreadsFor(static_cast<int64_t>(most), head.blocks), args);
}

}  // namespace

void AddPeerCommands(engine::Registry& registry) {
  registry.extras[kPeerReduce] = ReadReduce;
  registry.extras[kPeerNorm] = ReadNorm;
  registry.extras[kPeerGather] = ReadGather;
  registry.extras[kPeerMoe] = ReadMoe;
}

}  // namespace rankmesh::cuda
