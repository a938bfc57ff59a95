// Products with all types of weights, plain and in the order of the tree, and embeddings, against float64; the tree's also bit by bit.
#pragma once
#include "ops_support.h"

namespace test::ops {

/** k, or n, of rows of weights of a type. */
inline size_t Inner(Random& random, Type type, int most) {
  const size_t values = engine::kFormats[type].values;
  if (values > 1) return values * static_cast<size_t>(random.Between(1, std::max(most / static_cast<int>(values), 1)));
  return static_cast<size_t>(random.OneIn(2) ? 8 * random.Between(1, std::max(most / 8, 1)) : random.Between(1, most));
}

/** Whether launches of this call go to cuBLASLt, which gives no bits. */
inline bool HasGemm(Device& device, const Call& call) {
  struct Nowhere : rankmesh::cuda::Scratch {
    std::byte* Take(size_t) override { return nullptr; }
  } nowhere;
  for (const auto& step : rankmesh::cuda::LaunchesOf(call, device.traits(), nowhere)) {
    if (std::get_if<rankmesh::cuda::Gemm>(&step)) return true;
  }
  return false;
}

inline void CheckMatmul(Device& device, Random& random, Type type, Type weight, size_t tokens) {
  const size_t k = all_aligned && engine::kFormats[weight].values == 1 ? 8 * random.Between(1, 60) : Inner(random, weight, 700), outs = random.Between(1, random.OneIn(4) ? 130 : 20);
  const size_t column = random.OneIn(3) ? 4 * random.Between(0, 2) + !all_aligned : 0;
  const size_t width = all_aligned ? (column + outs + 3) / 4 * 4 : column + outs + (random.OneIn(3) ? random.Between(0, 5) : 0);
  // To bfloat16, or to integers, which may be the same.
  const size_t rounding = random.OneIn(3) ? random.Between(1, 2) : 0;
  const bool has_bias = random.OneIn(2);
  Matrix x = Draw(random, type, tokens * k), w = Draw(random, weight, outs * k), bias = Draw(random, engine::kF32, outs);
  Matrix y = Empty(random, engine::kF32, tokens * width);
  Call call = CallOf(engine::kMatmul, {tokens, k, outs, width, column, rounding}, {type, weight}, {x.at(), w.at(), has_bias ? bias.at() : x.at(), y.at()});
  call.flags[0] = has_bias;
  device.Run(call);
  ExpectGuards("matmul", {&x, &w, &bias, &y});
  const bool elsewhere = HasGemm(device, call);
  const uint32_t poison = Empty(random, engine::kF32, 1).Bits(0);
  for (size_t t = 0; t < tokens; t++) {
    for (size_t c = 0; c < width; c++) {
      if ((c < column || c >= column + outs) && y.Bits(t * width + c) != poison) Wrong("matmul: written outside of its columns");
    }
    for (size_t o = 0; o < outs; o++) {
      double sum = 0, size = 0;
      for (size_t i = 0; i < k; i++) {
        const double term = static_cast<double>(x.values[t * k + i]) * w.values[o * k + i];
        sum += term;
        size += std::fabs(term);
      }
      const double rounded = elsewhere && rounding ? 1.01 * 0x1p-8 : 0;
      const double wanted = has_bias ? sum + bias.values[o] : sum;
      ExpectNear("matmul", engine::kF32, t * width + column + o, y.Get(t * width + column + o), wanted, size * ((k + 2) * 0x1p-24 + rounded));
    }
  }
  // The same tokens, some of them alone: their bits are the same.
  if (elsewhere || tokens > 64) return;
  const size_t first = random.Below(static_cast<int>(tokens)), count = random.Between(1, static_cast<int>(tokens - first));
  Matrix part = Empty(random, engine::kF32, count * width);
  call.numbers[0] = count;
  call.operands[0] = x.at() + first * k * engine::kFormats[type].bytes;
  call.operands[3] = part.at();
  if (HasGemm(device, call)) return;
  device.Run(call);
  for (size_t t = 0; t < count; t++) ExpectSame("matmul of fewer tokens", part, t * width + column, y, (first + t) * width + column, outs);
}

/** As runtime/core/tree.ts and native/cpu/products.inc define it, from the top: sums of blocks [start, start + 2^level) that exist. */
class Tree {
 public:
  Tree(const Matrix& x, const Matrix& w, size_t k, size_t block) : x_(x), w_(w), k_(k), block_(block), blocks_((k + block - 1) / block) {}

  float Sum(size_t t, size_t o) const {
    size_t level = 0;
    while ((size_t{1} << level) < blocks_) level++;
    return Node(t, o, 0, level);
  }

 private:
  float Node(size_t t, size_t o, size_t start, size_t level) const {
    if (level == 0) return Leaf(t, o, start);
    const size_t half = size_t{1} << (level - 1);
    const float left = Node(t, o, start, level - 1);
    return start + half < blocks_ ? left + Node(t, o, start + half, level - 1) : left;
  }
  float Leaf(size_t t, size_t o, size_t b) const {
    float sum = 0;
    for (size_t i = b * block_; i < std::min((b + 1) * block_, k_); i += 4) {
      float quad = x_.values[t * k_ + i] * w_.values[o * k_ + i];
      for (size_t j = 1; j < 4; j++) quad = quad + x_.values[t * k_ + i + j] * w_.values[o * k_ + i + j];
      sum = sum + quad;
    }
    return sum;
  }
  const Matrix& x_;
  const Matrix& w_;
  size_t k_, block_, blocks_;
};

/** Whole subtrees of blocks [start, start + count), as runtime/core/tree.ts lists them; each of `levels`. */
inline std::vector<std::pair<size_t, size_t>> NodesOf(size_t start, size_t count) {
  std::vector<std::pair<size_t, size_t>> nodes;
  for (size_t at = start; at < start + count;) {
    size_t width = 1;
    while (at % (2 * width) == 0 && at + 2 * width <= start + count) width *= 2;
    nodes.emplace_back(at, width);
    at += width;
  }
  return nodes;
}

inline void CheckTree(Device& device, Random& random, Type type, Type weight, size_t tokens) {
  const size_t values = engine::kFormats[weight].values;
  // Cuts are at whole blocks of weights.
  const size_t block = values > 1 && random.OneIn(2) ? values : 4 * random.Between(1, 20);
  const size_t k = values > 1 ? Inner(random, weight, 1024) : 4 * random.Between(1, 200);
  const size_t outs = random.Between(1, random.OneIn(4) ? 200 : 12), blocks = (k + block - 1) / block;
  Matrix x = Draw(random, type, tokens * k), w = Draw(random, weight, outs * k), bias = Draw(random, engine::kF32, outs);
  const bool has_bias = random.OneIn(2);
  const size_t column = random.OneIn(3) ? 3 : 0, width = column + outs + column;
  Matrix y = Empty(random, engine::kF32, tokens * width);
  Call call = CallOf(engine::kMatmulTree, {tokens, k, outs, block, 0, width, column}, {type, weight}, {x.at(), w.at(), has_bias ? bias.at() : x.at(), y.at()});
  call.flags[0] = has_bias;
  call.flags[1] = true;
  device.Run(call);
  ExpectGuards("tree", {&x, &w, &y});
  const Tree tree(x, w, k, block);
  for (size_t t = 0; t < tokens; t++) {
    for (size_t o = 0; o < outs; o++) {
      const float sum = tree.Sum(t, o), wanted = has_bias ? sum + bias.values[o] : sum, got = y.Get(t * width + column + o);
      if (std::memcmp(&wanted, &got, 4) != 0) Wrong("tree %s, block %zu of %zu: %.9g instead of %.9g", kNames[weight], block, k, got, wanted);
    }
  }
  // Cut over ranks, whose subtrees a reduction joins: the same bits.
  const size_t ranks = random.Between(1, static_cast<int>(std::min<size_t>(blocks, 5)));
  std::vector<std::unique_ptr<Matrix>> parts, sums;
  std::vector<Slice> slices;
  std::vector<std::pair<size_t, size_t>> stack;
  for (size_t r = 0; r < ranks; r++) {
    size_t from = blocks * r / ranks, to = blocks * (r + 1) / ranks;
    if (from == to) continue;
    const size_t begin = from * block, end = std::min(to * block, k), mine = end - begin;
    if (begin % values != 0 || mine % values != 0) return;  // a cut inside of blocks of weights
    const size_t item = engine::kFormats[type].bytes;
    const auto& format = engine::kFormats[weight];
    parts.push_back(std::make_unique<Matrix>(Draw(random, type, tokens * mine)));
    parts.push_back(std::make_unique<Matrix>(Draw(random, weight, outs * mine)));
    Matrix &px = *parts[parts.size() - 2], &pw = *parts.back();
    for (size_t t = 0; t < tokens; t++) std::memcpy(px.at() + t * mine * item, x.at() + (t * k + begin) * item, mine * item);
    for (size_t o = 0; o < outs; o++) {
      std::memcpy(pw.at() + o * mine / format.values * format.bytes, w.at() + (o * k + begin) / format.values * format.bytes, mine / format.values * format.bytes);
    }
    const auto nodes = NodesOf(from, to - from);
    sums.push_back(std::make_unique<Matrix>(Empty(random, engine::kF32, nodes.size() * tokens * outs)));
    device.Run(CallOf(engine::kMatmulTree, {tokens, mine, outs, block, from, outs, 0}, {type, weight}, {px.at(), pw.at(), px.at(), sums.back()->at()}));
    for (size_t n = 0; n < nodes.size(); n++) {
      size_t joins = 0;
      auto node = nodes[n];
      while (!stack.empty() && stack.back().second == node.second && stack.back().first % (2 * node.second) == 0) {
        node = {stack.back().first, 2 * node.second};
        stack.pop_back();
        joins++;
      }
      stack.push_back(node);
      slices.push_back({sums.back()->at() + n * tokens * outs * 4, joins});
    }
  }
  slices.back().number += stack.size() - 1;
  Matrix joined = Empty(random, engine::kF32, tokens * outs);
  Call reduce = CallOf(engine::kReduce, {tokens, outs, outs, 0, 1}, {engine::kF32, engine::kF32}, {joined.at()});
  reduce.slices = slices.data();
  reduce.slice_count = slices.size();
  device.Run(reduce);
  for (size_t t = 0; t < tokens; t++) {
    for (size_t o = 0; o < outs; o++) {
      const float wanted = tree.Sum(t, o), got = joined.Get(t * outs + o);
      if (std::memcmp(&wanted, &got, 4) != 0) Wrong("tree %s over %zu ranks: %.9g instead of %.9g", kNames[weight], ranks, got, wanted);
    }
  }
}

inline void CheckEmbedding(Device& device, Random& random, Type weight, Type to) {
  const size_t n = Inner(random, weight, 600), rows = random.Between(0, 9), tokens = random.Between(1, 12);
  const auto first = random.OneIn(3) ? static_cast<uint32_t>(random.Between(1, 20)) : 0;
  Matrix table = Draw(random, weight, rows * n, [&] { return Special(random); }), y = Empty(random, to, tokens * n);
  Matrix ids = Words(random, tokens, [&] { return random.OneIn(4) ? random.Bits() : static_cast<uint32_t>(random.Between(0, 30)); });
  device.Run(CallOf(engine::kEmbedding, {tokens, n, rows, first}, {weight, to}, {ids.at(), table.at(), y.at()}));
  ExpectGuards("embedding", {&ids, &table, &y});
  for (size_t i = 0; i < tokens * n; i++) {
    const uint32_t row = ids.Bits(i / n) - first, wanted = row < rows ? MoveTo(to, table.values[row * n + i % n]) : 0;
    if (y.Bits(i) != wanted) Wrong("embedding %s to %s, row %u, element %zu: %x instead of %x", kNames[weight], kNames[to], row, i % n, y.Bits(i), wanted);
  }
}

inline void CheckProducts(Device& device, Random& random) {
  for (int i = 0; i < engine::kTypes; i++) {
    const auto weight = static_cast<Type>(i);
    if (weight == engine::kWord) continue;
    for (const Type type : kFloats) {
      for (const int tokens : {1, random.Between(2, 4), random.Between(5, 8), random.Between(9, 20)}) CheckMatmul(device, random, type, weight, tokens);
      CheckTree(device, random, type, weight, random.Between(1, 20));
      CheckEmbedding(device, random, weight, type);
    }
    for (const int tokens : {1, 4, 20}) CheckTree(device, random, engine::kF32, weight, tokens);
    const auto traits = device.traits();
    device.traits().cublaslt = false;
    CheckMatmul(device, random, engine::kF32, weight, random.Between(65, 140));
    device.traits() = traits;
  }
  // As cuBLASLt is given them, most of them.
  all_aligned = true;
  device.traits().cublaslt = true;
  for (const Type type : kFloats) {
    for (int i = 0; i < 6; i++) CheckMatmul(device, random, i % 2 == 0 ? type : engine::kF32, type, random.Between(9, 40));
  }
  for (int i = 0; i < engine::kTypes; i++) {
    if (i != engine::kWord) CheckMatmul(device, random, kFloats[random.Below(3)], static_cast<Type>(i), random.Between(48, 80));
  }
  all_aligned = false;
}

}  // namespace test::ops
