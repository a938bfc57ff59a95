// Which kernels a command takes, and how many blocks and threads of them. The kernels' own files say what their grids mean.
#include "launches.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <string_view>
#include <unordered_map>

#include "../engine/commands.h"
#include "ops_list.h"
#include "peer_arguments.h"

namespace rankmesh::cuda {
namespace {

using namespace ops;
using engine::BadCommand;
using engine::Call;
using engine::Type;

/** Tokens up to which a product reads weights once for eight at a time, where cuBLASLt could do it and where it cannot. */
constexpr size_t kFewTokens = 8;
constexpr size_t kSomeTokens = 64;
/** Tokens from which on weights become bfloat16 for cuBLASLt, where a product may be rounded. */
constexpr size_t kManyTokens = 48;
/** Of intermediate results that grow with the number of tokens: tokens go in batches that need no more, if they can. */
constexpr size_t kBatchBytes = 64 << 20;
/** Threads of a block where that is free, and most such blocks for each multiprocessor. */
constexpr unsigned kThreads = 256;
constexpr uint64_t kWaves = 16;
constexpr uint64_t kMostBlocksOfGrid = 0x7fffffff;

constexpr const char* kTypeNames[engine::kTypes] = {"f32", "bf16", "f16", "word", "q8_0", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k"};

/** The kernel whose name is these parts side by side; always the same pointer for one name. */
template <typename... Parts>
const char* Named(const Parts&... parts) {
  static const std::unordered_map<std::string_view, const char*> names = {
#define KERNEL(name, ...) {#name, #name},
      RANKMESH_OPS(KERNEL)
#undef KERNEL
  };
  char text[64];
  size_t length = 0;
  for (const std::string_view part : {std::string_view(parts)...}) length += part.copy(text + length, sizeof text - length);
  const auto found = names.find(std::string_view(text, length));
  if (found == names.end()) throw BadCommand("no CUDA kernel is called " + std::string(text, length));
  return found->second;
}

constexpr size_t DivideUp(size_t a, size_t b) { return (a + b - 1) / b; }
constexpr size_t Aligned(size_t bytes) { return DivideUp(bytes, 256) * 256; }

bool IsPlain(Type type) { return engine::kFormats[type].values == 1; }
bool IsAligned(const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; }

/** Threads of a block that multiplies rows of k: each has four units of weights or more, if there are. */
unsigned MatvecThreads(size_t k) {
  unsigned threads = 32;
  while (threads < kMatvecThreads && size_t{threads} * 2 * 4 * kEight <= k) threads *= 2;
  return threads;
}

class Planner {
 public:
  Planner(const Call& call, const Traits& traits, Scratch& scratch) : call_(call), traits_(traits), scratch_(scratch) {}

  std::vector<Step> Plan() {
    switch (call_.op) {
      case engine::kEmbedding: Embedding(); break;
      case engine::kMatmul: Matmul(); break;
      case engine::kMatmulTree: MatmulTree(); break;
      case engine::kRope: Rope(); break;
      case engine::kAttention: Attention(); break;
      case engine::kSiluMul: SiluMul(); break;
      case engine::kRmsNorm: RmsNorm(); break;
      case engine::kAdd: Add(); break;
      case engine::kSoftmax: Softmax(); break;
      case engine::kTopK: TopK(); break;
      case engine::kCast: Cast(call_.types[0], call_.operands[0], call_.types[1], call_.operands[1], Number(0)); break;
      case engine::kCopy: CopyBytes(call_.operands[1], call_.operands[0], Number(0)); break;
      case engine::kReduce: Reduce(); break;
      case engine::kReduceNorm: ReduceNorm(); break;
      case engine::kGather: Gather(); break;
      default: throw BadCommand("op " + std::to_string(call_.op) + " is not one of kernels");
    }
    return std::move(steps_);
  }

 private:
  size_t Number(size_t i) const { return call_.numbers[i]; }
  int64_t Signed(size_t i) const { return static_cast<int64_t>(call_.numbers[i]); }
  template <typename T>
  T* At(size_t operand) const {
    return reinterpret_cast<T*>(call_.operands[operand]);
  }

  template <typename Args>
  void Run(const char* kernel, uint64_t blocks, unsigned threads, const Args& args, size_t shared_bytes = 0) {
    if (blocks == 0) return;
    if (blocks > kMostBlocksOfGrid) throw BadCommand("an operation of " + std::to_string(blocks) + " blocks, more than the " + std::to_string(kMostBlocksOfGrid) + " of a CUDA kernel");
    auto& launch = std::get<Launch>(steps_.emplace_back(Launch{kernel, {static_cast<unsigned>(blocks), 1, 1}, threads, static_cast<unsigned>(shared_bytes), {}}));
    launch.arguments.resize(sizeof args);
    std::memcpy(launch.arguments.data(), &args, sizeof args);
  }

  /** Blocks for so many items, one for a thread at a time, of kernels that take any number of them. */
  uint64_t Spread(uint64_t items) const {
    return std::min<uint64_t>(DivideUp(items, kThreads), kWaves * static_cast<uint64_t>(std::max(traits_.multiprocessors, 1)));
  }

  void Cast(Type from, const void* x, Type to, void* y, size_t n) {
    const CastArgs args{x, y, static_cast<int64_t>(n)};
    Run(Named("rankmesh_cast_", kTypeNames[from], "_", kTypeNames[to]), Spread(DivideUp(n, kEight)), kThreads, args);
  }

  void CopyBytes(std::byte* to, const std::byte* from, size_t bytes) {
    if (bytes == 0 || to == from) return;
    const bool apart = to + bytes <= from || from + bytes <= to;
    if (!apart) {
      std::byte* const between = scratch_.Take(bytes);
      steps_.emplace_back(Copy{between, from, bytes});
      from = between;
    }
    steps_.emplace_back(Copy{to, from, bytes});
  }

  void Embedding() {
    RunEmbedding(call_.types[0], call_.types[1],
                 {At<uint32_t>(0), At<void>(1), At<void>(2), Signed(0), Signed(1), Signed(2), static_cast<uint32_t>(Number(3))});
  }

  void RunEmbedding(Type from, Type to, const EmbeddingArgs& args) {
    const size_t units = DivideUp(static_cast<size_t>(args.n), IsPlain(from) ? kEight : 32);
    Run(Named("rankmesh_embedding_", kTypeNames[from], "_", kTypeNames[to]), Spread(static_cast<size_t>(args.tokens) * units), kThreads, args);
  }

  void Matmul() {
    const size_t tokens = Number(0), k = Number(1), outs = Number(2), pitch = Number(3);
    const Type x = call_.types[0], w = call_.types[1];
    ProductArgs args{At<void>(0), At<void>(1), call_.flags[0] ? At<float>(2) : nullptr, At<float>(3) + Number(4), Signed(0), Signed(1), Signed(2), Signed(3)};
    if (tokens == 0 || outs == 0) return;
    // What x may be rounded to where w is bfloat16 too: tensor cores are faster by far.
    const Type rounded = Number(5) != 0 && w == engine::kBf16 ? engine::kBf16 : x;
    if (tokens > kFewTokens && traits_.cublaslt && rounded == w && GemmFits(args, w)) {
      if (rounded != x) args.x = Converted(x, rounded, args.x, tokens * k, 0);
      steps_.emplace_back(Gemm{w, tokens, k, outs, args.x, args.w, args.y, pitch});
      return AddBias(args);
    }
    if (tokens >= kManyTokens && traits_.cublaslt && Number(5) != 0 && w != engine::kF32 && MatmulOfRounded(args, x, w)) return;
    const bool some = tokens <= kSomeTokens;
    const bool direct = x == engine::kF32 || (some && x == w);
    if (!direct) args.x = Converted(x, engine::kF32, args.x, tokens * k, 0);
    if (some) {
      const size_t at_once = tokens == 1 ? 1 : tokens <= 4 ? 4 : 8;
      const unsigned threads = MatvecThreads(k);
      const char digit[] = {static_cast<char>('0' + at_once), 0};
      Run(Named("rankmesh_matvec_", kTypeNames[direct ? x : engine::kF32], "_", kTypeNames[w], "_", digit),
          DivideUp(outs, kMatvecOuts) * DivideUp(tokens, at_once), threads, args, threads / 32 * at_once * kMatvecOuts * sizeof(float));
    } else {
      Run(Named("rankmesh_matmul_", kTypeNames[w]), DivideUp(outs, kTile) * DivideUp(tokens, kTile), kTileThreads, args, kTileBytes);
    }
  }

  void AddBias(const ProductArgs& args) {
    if (!args.bias) return;
    Run(Named("rankmesh_add_bias"), Spread(static_cast<size_t>(args.tokens * args.outs)), kThreads, BiasArgs{args.bias, args.y, args.tokens, args.outs, args.pitch});
  }

  /** With x and w rounded to bfloat16, some rows of w at a time. False where cuBLASLt does not take that. */
  bool MatmulOfRounded(ProductArgs args, Type x, Type w) {
    const size_t tokens = Number(0), k = Number(1), outs = Number(2), row = 2 * k;
    const size_t batch = std::min(outs, std::max<size_t>(kBatchBytes / row / 4 * 4, 4)), weights = Aligned(batch * row);
    if (k % 8 != 0 || args.pitch % 4 != 0 || !IsAligned(args.y) || (x == engine::kBf16 && !IsAligned(args.x))) return false;
    std::byte* scratch = nullptr;
    if (x == engine::kBf16) {
      scratch = scratch_.Take(weights);
    } else {
      args.x = Converted(x, engine::kBf16, args.x, tokens * k, weights);
      scratch = static_cast<std::byte*>(const_cast<void*>(args.x)) - weights;
    }
    const auto [values, bytes] = engine::kFormats[w];
    for (size_t o = 0; o < outs; o += batch) {
      const size_t count = std::min(batch, outs - o);
      const auto rows = static_cast<int64_t>(count);
      RunEmbedding(w, engine::kBf16, {nullptr, At<std::byte>(1) + o * k / values * bytes, scratch, rows, args.k, rows, 0});
      steps_.emplace_back(Gemm{engine::kBf16, tokens, k, count, args.x, scratch, args.y + o, Number(3)});
    }
    AddBias(args);
    return true;
  }

  /** x as another type, behind the first `ahead` bytes of scratch memory. */
  std::byte* Converted(Type from, Type to, const void* x, size_t n, size_t ahead) {
    std::byte* const at = scratch_.Take(ahead + n * engine::kFormats[to].bytes) + ahead;
    Cast(from, x, to, at, n);
    return at;
  }

  static bool GemmFits(const ProductArgs& args, Type type) {
    const bool rows = args.k * static_cast<int64_t>(engine::kFormats[type].bytes) % 16 == 0 && args.pitch % 4 == 0;
    return rows && args.k > 0 && IsAligned(args.w) && IsAligned(args.y) && IsAligned(args.x);
  }

  void MatmulTree() {
    const size_t tokens = Number(0), k = Number(1), outs = Number(2), block = Number(3);
    const Type type = call_.types[0];
    const size_t leaves = DivideUp(k, block);
    if (tokens == 0 || outs == 0) return;
    const size_t at_once = tokens == 1 ? 1 : tokens <= 4 ? 4 : 8;
    const size_t batch = std::min(tokens, std::max<size_t>(kBatchBytes / (outs * leaves * sizeof(float)) / 8 * 8, 8));
    const size_t sums = Aligned(batch * outs * leaves * sizeof(float));
    const float* x = At<float>(0);
    float* scratch = nullptr;
    if (type == engine::kF32) {
      scratch = reinterpret_cast<float*>(scratch_.Take(sums));
    } else {
      std::byte* const converted = Converted(type, engine::kF32, x, tokens * k, sums);
      x = reinterpret_cast<const float*>(converted);
      scratch = reinterpret_cast<float*>(converted - sums);
    }
    const size_t span = std::max<size_t>(4 * kLeafDepth / block, 1);
    const char digit[] = {static_cast<char>('0' + at_once), 0};
    for (size_t first = 0; first < tokens; first += batch) {
      const auto count = static_cast<int64_t>(std::min(batch, tokens - first));
      const LeavesArgs of_leaves{x + first * k, At<void>(1), scratch, count, Signed(1), Signed(2), Signed(3), static_cast<int>(span)};
      const size_t blocks = DivideUp(static_cast<size_t>(count), at_once) * DivideUp(outs, kLeafOuts) * DivideUp(leaves, span);
      Run(Named("rankmesh_tree_leaves_", kTypeNames[call_.types[1]], "_", digit), blocks, kLeafOuts, of_leaves,
          (at_once * kLeafDepth + kLeafOuts * kLeafPitch) * sizeof(float));
      const TreeArgs of_tree{scratch, call_.flags[0] ? At<float>(2) : nullptr, At<float>(3) + Number(6) + first * Number(5), count, Signed(2),
                             static_cast<int64_t>(leaves), Signed(4), Signed(5), Signed(0) * Signed(5), call_.flags[1]};
      Run(Named("rankmesh_tree_join"), Spread(static_cast<size_t>(count) * outs), kThreads, of_tree);
    }
  }

  /** Of a command whose first token is at numbers[4] or, with a flag, further on by what its last operand says. */
  Start StartOf(size_t operand, size_t positions) const {
    return {Signed(4), call_.flags[0] ? At<uint32_t>(operand) : nullptr, static_cast<int64_t>(positions - Number(0)), 0};
  }

  void Rope() {
    const RopeArgs args{At<float>(0), At<float>(1), At<float>(2), At<float>(3), At<float>(4), Signed(0), Signed(1), Signed(2), Signed(3), StartOf(5, Number(5))};
    Run(Named("rankmesh_rope"), Spread(Number(0) * (Number(1) + 2 * Number(2)) * (Number(3) / 2)), kThreads, args);
  }

  void Attention() {
    const size_t tokens = Number(0), heads = Number(1), kv_heads = Number(2), dim = Number(3), start = Number(4), window = Number(5), positions = Number(6);
    if (dim % 4 != 0 || dim > 256) throw BadCommand("attention with heads of " + std::to_string(dim) + ", which is no multiple of 4 up to 256");
    if (tokens == 0 || heads == 0 || dim == 0) return;
    if (call_.flags[1]) {
      const AttentionArgs args{At<float>(0), At<float>(1), At<float>(2), At<float>(3), nullptr, Signed(0), Signed(1), Signed(2), Signed(3), StartOf(4, positions),
                               Signed(5), 0, 0, 0, 0, call_.scalar};
      return Run(Named("rankmesh_attention_portable"), tokens * heads, kPortableThreads, args, kPortableFloats * sizeof(float));
    }
    const size_t group = heads / kv_heads, parts = DivideUp(group, kAttentionRows), block_heads = DivideUp(group, parts);
    const size_t block_tokens = std::min(tokens, std::max<size_t>(kAttentionRows / block_heads, 1));
    const size_t warps = std::max<size_t>(block_heads * block_tokens, 4);
    size_t spans = SpansOf(start, tokens, window);
    if (call_.flags[0]) {
      // Wherever the tokens will be.
      spans = DivideUp(positions, kSpan);
      if (window > 0) spans = std::min(spans, DivideUp(window + tokens - 1 + kSpan - 1, kSpan) + 1);
    }
    const size_t part_bytes = heads * spans * (dim + 2) * sizeof(float);
    const size_t batch = spans == 1 ? tokens : std::min(tokens, std::max<size_t>(kBatchBytes / part_bytes, 1));
    const char* const size = dim <= 128 ? "128" : "256";
    float* const scratch = spans == 1 ? nullptr : reinterpret_cast<float*>(scratch_.Take(batch * part_bytes));
    for (size_t first = 0; first < tokens; first += batch) {
      const size_t count = std::min(batch, tokens - first);
      AttentionArgs args{At<float>(0) + first * heads * dim, At<float>(1), At<float>(2), At<float>(3) + first * heads * dim, scratch,
                         static_cast<int64_t>(count), Signed(1), Signed(2), Signed(3), StartOf(4, positions), Signed(5), static_cast<int>(spans),
                         static_cast<int>(block_tokens), static_cast<int>(block_heads), static_cast<int>(parts), call_.scalar};
      args.start.ahead = static_cast<int64_t>(first);
      Run(Named("rankmesh_attention_", size), DivideUp(count, block_tokens) * kv_heads * parts * spans, static_cast<unsigned>(32 * warps), args,
          kChunk * (dim + 4 + warps) * sizeof(float));
      if (spans > 1) Run(Named("rankmesh_attention_join_", size), Spread(count * heads * 32), kThreads, args);
    }
  }

  /** Spans of which tokens at these positions see any keys. */
  static size_t SpansOf(size_t start, size_t tokens, size_t window) {
    const size_t first = window > 0 && start + 1 > window ? start + 1 - window : 0;
    return (start + tokens - 1) / kSpan - first / kSpan + 1;
  }

  void SiluMul() {
    const SiluArgs args{At<void>(0), At<void>(1), Signed(0), Signed(1), call_.flags[0]};
    Run(Named("rankmesh_silu_mul_", kTypeNames[call_.types[0]]), Spread(Number(0) * DivideUp(Number(1), kEight)), kThreads, args);
  }

  unsigned ThreadsOfRow(Type type, size_t n) const {
    return static_cast<unsigned>(RowThreads(static_cast<int64_t>(n), static_cast<int64_t>(engine::kFormats[type].bytes)));
  }

  void RmsNorm() {
    if (Number(1) == 0) return;
    const Type type = call_.types[0];
    const NormRowsArgs args{At<void>(0), At<void>(1), At<void>(2), Signed(1), call_.scalar, call_.flags[0] ? 1.0f : 0.0f, call_.flags[1]};
    Run(Named("rankmesh_rms_norm_", kTypeNames[type]), Number(0), ThreadsOfRow(type, Number(1)), args);
  }

  void Add() {
    const Type type = call_.types[0];
    const AddArgs args{At<void>(0), At<void>(1), At<void>(2), Signed(0)};
    Run(Named("rankmesh_add_", kTypeNames[type]), Spread(type == engine::kWord ? Number(0) : DivideUp(Number(0), kEight)), kThreads, args);
  }

  void Softmax() {
    const SoftmaxArgs args{At<float>(0), At<float>(1), Signed(1)};
    Run(Named("rankmesh_softmax"), Number(0), ThreadsOfRow(engine::kF32, Number(1)), args);
  }

  void TopK() {
    const size_t rows = Number(0), n = Number(1), k = Number(2);
    if (n > UINT32_MAX) throw BadCommand("rows of " + std::to_string(n) + " values, more than have an index");
    constexpr size_t kShared = 2 * kTopThreads / 32 * sizeof(uint64_t);
    const size_t parts = DivideUp(n, kTopPart);
    TopArgs args{At<float>(0), nullptr, At<float>(1), At<uint32_t>(2), nullptr, Signed(1), Signed(1), Signed(2), static_cast<int>(parts)};
    if (parts == 1 || k > kTopPart / 4 || rows == 0) return Run(Named("rankmesh_top_k"), rows, kTopThreads, args, kShared);
    args.taken = reinterpret_cast<uint64_t*>(scratch_.Take(rows * parts * k * sizeof(uint64_t)));
    Run(Named("rankmesh_top_k_parts"), rows * parts, kTopThreads, args, kShared);
    args.candidates = args.taken;
    args.n = static_cast<int64_t>(parts * k);
    Run(Named("rankmesh_top_k_join"), rows, kTopThreads, args, kShared);
  }

  /** The slices of a reduction as a kernel is given them; true where they are joined in the order of a tree. */
  bool TakeSlices(ReduceArgs& args) const {
    if (call_.slice_count > kSlices) {
      throw BadCommand("a reduction of " + std::to_string(call_.slice_count) + " slices, more than the " + std::to_string(kSlices) + " of a CUDA kernel");
    }
    bool tree = false;
    size_t depth = 0;
    for (size_t i = 0; i < call_.slice_count; i++) {
      const auto [at, joins] = call_.slices[i];
      args.slices[i] = at;
      args.joins[i] = static_cast<uint8_t>(joins);
      tree = tree || joins != (i > 0);
      depth += 1 - joins;
      if (depth > kWaiting) throw BadCommand("a tree of slices deeper than the " + std::to_string(kWaiting) + " levels of a CUDA kernel");
    }
    args.count = static_cast<int>(call_.slice_count);
    return tree;
  }

  void RunReduce(ReduceArgs& args, Type from, Type to, bool tree) {
    if (args.n == args.pitch) {
      args.n *= args.rows;
      args.rows = 1;
    }
    const char* const kernel = from == engine::kWord ? Named("rankmesh_reduce_word") : Named(tree ? "rankmesh_reduce_tree_" : "rankmesh_reduce_", kTypeNames[from], "_", kTypeNames[to]);
    const size_t at_once = from == engine::kWord ? 1 : tree ? 4 : 8;
    Run(kernel, Spread(static_cast<size_t>(args.rows) * DivideUp(static_cast<size_t>(args.n), at_once)), kThreads, args);
  }

  void Reduce() {
    ReduceArgs args{Signed(0), Signed(1), Signed(2), At<void>(0), 0, static_cast<int>(Number(3)), static_cast<float>(Number(4)), {}, {}};
    const bool tree = TakeSlices(args);
    RunReduce(args, call_.types[0], call_.types[1], tree);
  }

  void ReduceNorm() {
    const size_t rows = Number(0), n = Number(1);
    if (rows == 0 || n == 0) return;
    Type from = call_.types[0];
    const Type type = call_.types[1];
    ReduceNormArgs args{Signed(1), At<void>(0), At<void>(1), call_.flags[1] ? At<void>(2) : nullptr, At<void>(3), call_.scalar, call_.flags[0] ? 1.0f : 0.0f, call_.flags[2], 0, {}};
    ReduceArgs sums{Signed(0), Signed(1), Signed(1), nullptr, 0, engine::kSum, 1.0f, {}, {}};
    if (TakeSlices(sums)) {
      sums.y = scratch_.Take(rows * n * sizeof(float));
      RunReduce(sums, from, engine::kF32, true);
      from = engine::kF32;
      args.count = 1;
      args.slices[0] = sums.y;
    } else {
      args.count = sums.count;
      std::copy_n(sums.slices, sums.count, args.slices);
    }
    Run(Named("rankmesh_reduce_norm_", kTypeNames[from], "_", kTypeNames[type]), rows, ThreadsOfRow(type, n), args);
  }

  void Gather() {
    const size_t rows = Number(0), pitch = Number(1);
    // What moves in one access: as much as divides all that the slices and y are made of.
    size_t bits = reinterpret_cast<uintptr_t>(call_.operands[0]) | pitch | 16;
    size_t widest = 0;
    for (size_t i = 0; i < call_.slice_count; i++) {
      bits |= reinterpret_cast<uintptr_t>(call_.slices[i].at) | call_.slices[i].number;
      widest = std::max(widest, call_.slices[i].number);
    }
    if (rows == 0 || widest == 0) return;
    const size_t unit = bits % 16 == 0 ? 16 : bits % 4 == 0 ? 4 : bits % 2 == 0 ? 2 : 1;
    const char* const kernel = Named("rankmesh_gather_", unit == 16 ? "16" : unit == 4 ? "4" : unit == 2 ? "2" : "1");
    size_t column = 0;
    for (size_t first = 0; first < call_.slice_count; first += kGathered) {
      const size_t count = std::min<size_t>(kGathered, call_.slice_count - first);
      GatherRowsArgs args{call_.operands[0], Signed(0), static_cast<int64_t>(pitch / unit), static_cast<int>(count), {}, {}};
      for (size_t i = 0; i < count; i++) {
        args.columns[i] = static_cast<int64_t>(column / unit);
        args.slices[i] = call_.slices[first + i].at;
        column += call_.slices[first + i].number;
      }
      args.columns[count] = static_cast<int64_t>(column / unit);
      Run(kernel, count * std::max<uint64_t>(Spread(rows * (widest / unit) * count) / count, 1), kThreads, args);
    }
  }

  const Call& call_;
  const Traits& traits_;
  Scratch& scratch_;
  std::vector<Step> steps_;
};

}  // namespace

std::vector<Step> LaunchesOf(const engine::Call& call, const Traits& traits, Scratch& scratch) { return Planner(call, traits, scratch).Plan(); }

}  // namespace rankmesh::cuda
