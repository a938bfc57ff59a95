// Slices of several ranks: joined in their order, bit by bit, with all reductions; with a norm behind them; side by side.
#pragma once
#include "ops_support.h"

namespace test::ops {

/** As native/cpu/collectives.inc joins two, where NaN wins over every number, and the last of equals. */
inline float JoinedFloats(uint32_t kind, float a, float b) {
  if (kind == engine::kSum) return a + b;
  if (kind == engine::kProd) return a * b;
  if (a != a) return a;
  if (b != b) return b;
  return kind == engine::kMin ? (a < b ? a : b) : (a > b ? a : b);
}

inline uint32_t JoinedInts(uint32_t kind, uint32_t a, uint32_t b) {
  const auto x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
  if (kind == engine::kSum) return a + b;
  if (kind == engine::kProd) return a * b;
  if (kind == engine::kMin) return std::min(a, b);
  if (kind == engine::kMax) return std::max(a, b);
  return static_cast<uint32_t>(kind == engine::kMinSigned ? std::min(x, y) : std::max(x, y));
}

/** The joins of a chain, or of some other tree. */
inline std::vector<size_t> JoinsOf(Random& random, size_t count, bool tree) {
  std::vector<size_t> joins;
  size_t depth = 0;
  for (size_t i = 0; i < count; i++) {
    size_t some = tree ? static_cast<size_t>(random.Below(static_cast<int>(std::min<size_t>(depth, 3)) + 1)) : i > 0;
    if (tree && i == 1) some = 0;
    if (i + 1 == count) some = depth;
    if (depth + 1 - some > 20) some = depth - 10;
    joins.push_back(some);
    depth += 1 - some;
  }
  return joins;
}

inline float Folded(uint32_t kind, const std::vector<Slice>& slices, const std::vector<Matrix>& matrices, size_t at) {
  std::vector<float> stack;
  for (size_t s = 0; s < slices.size(); s++) {
    float sum = matrices[s].values[at];
    for (size_t j = 0; j < slices[s].number; j++) {
      sum = JoinedFloats(kind, stack.back(), sum);
      stack.pop_back();
    }
    stack.push_back(sum);
  }
  return stack.empty() ? 0 : stack.back();
}

inline void CheckReduce(Device& device, Random& random, Type from, Type to, bool tree) {
  const size_t rows = random.Between(1, 9), n = random.Between(1, 400), pitch = n + (random.OneIn(2) ? random.Below(9) : 0);
  const size_t count = tree ? random.Between(3, 20) : random.OneIn(10) ? 0 : random.OneIn(6) ? random.Between(17, 400) : random.Between(1, 16);
  const auto kind = static_cast<uint32_t>(random.OneIn(2) ? 0 : random.Below(4));
  const size_t divisor = random.OneIn(3) ? random.Between(2, 9) : 1, extent = (rows - 1) * pitch + n;
  const auto joins = JoinsOf(random, count, tree);
  std::vector<Matrix> matrices;
  std::vector<Slice> slices;
  // 2^24, 1 and -2^24, whose sum shows the order, among others.
  const auto draw = [&] { return random.OneIn(2) ? std::vector<float>{0x1p24f, 1.0f, -0x1p24f}[random.Below(3)] : from == engine::kF16 || !random.OneIn(4) ? random.Normal() : Draw<Float32>(random, Values::kSpecial); };
  for (size_t s = 0; s < count; s++) matrices.push_back(Draw(random, from, extent, draw));
  for (size_t s = 0; s < count; s++) slices.push_back({matrices[s].at(), joins[s]});
  Matrix y = Empty(random, to, rows * n);
  Call call = CallOf(engine::kReduce, {rows, n, pitch, kind, divisor}, {from, to}, {y.at()});
  call.slices = slices.data();
  call.slice_count = count;
  device.Run(call);
  ExpectGuards("reduce", {&y});
  for (size_t i = 0; i < rows * n; i++) {
    float wanted = Folded(kind, slices, matrices, i / n * pitch + i % n);
    if (divisor != 1) wanted /= static_cast<float>(divisor);
    if (y.Bits(i) != RoundTo(to, wanted)) Wrong("reduction %u of %zu %s to %s: %x instead of %x", kind, count, kNames[from], kNames[to], y.Bits(i), RoundTo(to, wanted));
  }
}

inline void CheckReduceWords(Device& device, Random& random) {
  const size_t rows = random.Between(1, 5), n = random.Between(1, 200), pitch = n + random.Below(3), count = random.Between(0, 16);
  const auto kind = static_cast<uint32_t>(random.Below(engine::kReductions));
  const auto joins = JoinsOf(random, count, false);
  std::vector<Matrix> matrices;
  std::vector<Slice> slices;
  for (size_t s = 0; s < count; s++) matrices.push_back(Words(random, (rows - 1) * pitch + n, [&] { return random.Bits(); }));
  for (size_t s = 0; s < count; s++) slices.push_back({matrices[s].at(), joins[s]});
  Matrix y = Empty(random, engine::kWord, rows * n);
  Call call = CallOf(engine::kReduce, {rows, n, pitch, kind, 1}, {engine::kWord, engine::kWord}, {y.at()});
  call.slices = slices.data();
  call.slice_count = count;
  device.Run(call);
  ExpectGuards("reduce", {&y});
  for (size_t i = 0; i < rows * n; i++) {
    uint32_t wanted = 0;
    for (size_t s = 0; s < count; s++) {
      const uint32_t word = matrices[s].Bits(i / n * pitch + i % n);
      wanted = s == 0 ? word : JoinedInts(kind, wanted, word);
    }
    if (y.Bits(i) != wanted) Wrong("reduction %u of words: %x instead of %x", kind, y.Bits(i), wanted);
  }
}

/** y and residual bit by bit those of the sum, additions and the norm by themselves, where types do not round in between. */
inline void CheckReduceNorm(Device& device, Random& random, Type from, Type type, bool tree) {
  const size_t rows = random.Between(1, 6), n = random.OneIn(6) ? random.Between(4000, 6000) : random.Between(1, 600), count = random.Between(0, 9);
  const auto joins = JoinsOf(random, count, tree);
  const bool has_bias = random.OneIn(2), centred = random.OneIn(2), portable = random.OneIn(2);
  std::vector<Matrix> matrices;
  std::vector<Slice> slices;
  for (size_t s = 0; s < count; s++) matrices.push_back(Draw(random, from, rows * n));
  for (size_t s = 0; s < count; s++) slices.push_back({matrices[s].at(), joins[s]});
  Matrix residual = Draw(random, type, rows * n), weight = Draw(random, type, n), bias = Draw(random, type, n), y = Empty(random, type, rows * n);
  Call call = CallOf(engine::kReduceNorm, {rows, n}, {from, type}, {residual.at(), weight.at(), has_bias ? bias.at() : residual.at(), y.at()});
  call.slices = slices.data();
  call.slice_count = count;
  call.scalar = 1e-6f;
  call.flags[0] = centred;
  call.flags[1] = has_bias;
  call.flags[2] = portable;
  device.Run(call);
  ExpectGuards("reduceNorm", {&residual, &weight, &bias, &y});
  for (size_t i = 0; i < rows * n; i++) {
    float s = residual.values[i] + Folded(engine::kSum, slices, matrices, i);
    if (has_bias) s += bias.values[i % n];
    if (residual.Bits(i) != RoundTo(type, s)) Wrong("reduceNorm of %zu %s: residual %x instead of %x", count, kNames[from], residual.Bits(i), RoundTo(type, s));
  }
  Matrix normed = Empty(random, type, rows * n);
  call = CallOf(engine::kRmsNorm, {rows, n}, {type}, {residual.at(), weight.at(), normed.at()});
  call.scalar = 1e-6f;
  call.flags[0] = centred;
  call.flags[1] = portable;
  device.Run(call);
  ExpectSame("reduceNorm", y, 0, normed, 0, rows * n);
}

/** Slices of whole units of so many bytes. */
inline void CheckGather(Device& device, Random& random, int unit) {
  const size_t rows = random.Between(1, 9), count = random.OneIn(8) ? random.Between(150, 400) : random.Between(1, 12);
  std::vector<std::unique_ptr<Buffer>> buffers;
  std::vector<Slice> slices;
  size_t width = 0;
  for (size_t s = 0; s < count; s++) {
    const size_t bytes = static_cast<size_t>(unit) * random.Below(20);
    buffers.push_back(std::make_unique<Buffer>(rows * bytes, static_cast<size_t>(unit) * random.Below(2)));
    for (size_t i = 0; i < rows * bytes; i++) buffers.back()->data()[i] = static_cast<uint8_t>(random.Bits());
    slices.push_back({reinterpret_cast<std::byte*>(buffers.back()->data()), bytes});
    width += bytes;
  }
  const size_t pitch = width + static_cast<size_t>(unit) * random.Below(3);
  Buffer y(rows * pitch);
  Call call = CallOf(engine::kGather, {rows, pitch}, {}, {reinterpret_cast<std::byte*>(y.data())});
  call.slices = slices.data();
  call.slice_count = count;
  device.Run(call);
  if (!y.GuardsHold()) Wrong("gather: written outside");
  const Buffer untouched(1);
  for (size_t r = 0; r < rows; r++) {
    size_t column = 0;
    for (size_t s = 0; s < count; s++) {
      const size_t bytes = slices[s].number;
      if (bytes > 0 && std::memcmp(y.data() + r * pitch + column, slices[s].at + r * bytes, bytes) != 0) Wrong("gather of %zu: row %zu of slice %zu", count, r, s);
      column += bytes;
    }
    for (; column < pitch; column++) {
      if (y.data()[r * pitch + column] != untouched.data()[0]) Wrong("gather: written behind the slices");
    }
  }
}

inline void CheckCollectives(Device& device, Random& random) {
  for (const Type from : kFloats) {
    for (const Type to : kFloats) {
      for (int i = 0; i < 4; i++) CheckReduce(device, random, from, to, i % 2 == 0);
      CheckReduceNorm(device, random, from, to, false);
      CheckReduceNorm(device, random, from, to, true);
    }
  }
  for (int i = 0; i < 6; i++) CheckReduceWords(device, random);
  for (const int unit : {1, 2, 4, 8, 16}) {
    CheckGather(device, random, unit);
    CheckGather(device, random, unit);
  }
}

}  // namespace test::ops
