// Operations on elements and on rows, with all types, odd sizes and addresses that are not aligned, against float64.
#pragma once
#include "ops_support.h"

namespace test::ops {

/** In place, if there is one place: y, or `other`, which is then y. */
inline std::byte* PlaceOf(Random& random, Matrix& y, Matrix& other, Matrix*& result) {
  result = random.OneIn(3) ? &other : &y;
  return result->at();
}

inline void CheckAdd(Device& device, Random& random, Type type) {
  const size_t n = random.Between(0, 3000);
  const auto special = [&] { return Special(random); };
  Matrix a = Draw(random, type, n, special), b = Draw(random, type, n, special), y = Empty(random, type, n), *got = nullptr;
  std::byte* const to = PlaceOf(random, y, a, got);
  device.Run(CallOf(engine::kAdd, {n}, {type}, {a.at(), b.at(), to}));
  ExpectGuards("add", {&a, &b, &y});
  for (size_t i = 0; i < n; i++) {
    const uint32_t wanted = RoundTo(type, a.values[i] + b.values[i]);
    if (got->Bits(i) != wanted) Wrong("add %s: %x instead of %x", kNames[type], got->Bits(i), wanted);
  }
}

inline void CheckAddWords(Device& device, Random& random) {
  const size_t n = random.Between(1, 1500);
  const auto draw = [&] { return random.Bits(); };
  Matrix a = Words(random, n, draw), b = Words(random, n, draw), y = Empty(random, engine::kWord, n);
  device.Run(CallOf(engine::kAdd, {n}, {engine::kWord}, {a.at(), b.at(), y.at()}));
  ExpectGuards("add", {&y});
  for (size_t i = 0; i < n; i++) {
    if (y.Bits(i) != a.Bits(i) + b.Bits(i)) Wrong("add of words: %x", y.Bits(i));
  }
}

inline void CheckCast(Device& device, Random& random, Type from, Type to) {
  const size_t n = random.Between(0, 3000);
  const auto draw = [&] { return Special(random) * std::exp2(static_cast<float>(random.Between(-20, 10))); };
  Matrix x = Draw(random, from, n, draw), y = Empty(random, to, n);
  device.Run(CallOf(engine::kCast, {n}, {from, to}, {x.at(), y.at()}));
  ExpectGuards("cast", {&x, &y});
  for (size_t i = 0; i < n; i++) {
    if (y.Bits(i) != MoveTo(to, x.values[i])) Wrong("cast %s to %s of %g: %x", kNames[from], kNames[to], x.values[i], y.Bits(i));
  }
}

inline void CheckCopy(Device& device, Random& random) {
  const size_t n = random.Between(0, 500), from = random.Below(64), to = random.Below(64);
  Matrix block = Words(random, 200, [&] { return random.Bits(); });
  const std::vector<uint8_t> before(block.buffer.data(), block.buffer.data() + 800);
  device.Run(CallOf(engine::kCopy, {n}, {}, {block.at() + from, block.at() + to}));
  for (size_t i = 0; i < 800; i++) {
    const uint8_t wanted = i >= to && i < to + n ? before[from + i - to] : before[i];
    if (block.buffer.data()[i] != wanted) Wrong("copy of %zu bytes from %zu to %zu: byte %zu", n, from, to, i);
  }
}

inline void CheckSilu(Device& device, Random& random, Type type) {
  const size_t rows = random.Between(1, 12), n = random.Between(1, 300);
  Matrix x = Draw(random, type, rows * 2 * n, [&] { return random.Normal() * (random.OneIn(8) ? 60.0f : 2.0f); }), y = Empty(random, type, rows * n);
  Call call = CallOf(engine::kSiluMul, {rows, n}, {type}, {x.at(), y.at()});
  call.flags[0] = random.OneIn(2);
  device.Run(call);
  ExpectGuards("silu", {&x, &y});
  for (size_t i = 0; i < rows * n; i++) {
    const double gate = x.values[i / n * 2 * n + i % n], up = x.values[i / n * 2 * n + n + i % n];
    const double wanted = gate / (1 + std::exp(-gate)) * up;
    // Where exp leaves float32 the result is 0, and so is what it should be but for so much.
    ExpectNear("silu", type, i, y.Get(i), wanted, std::fabs(wanted) * 8 * 0x1p-24 + (gate < -80 ? 1e-30 : 0));
  }
}

inline void CheckNorm(Device& device, Random& random, Type type) {
  const size_t rows = random.Between(1, 12), n = random.OneIn(6) ? random.Between(4000, 9000) : random.Between(1, 700);
  Matrix x = Draw(random, type, rows * n), weight = Draw(random, type, n), y = Empty(random, type, rows * n), *got = nullptr;
  const bool centred = random.OneIn(2);
  Call call = CallOf(engine::kRmsNorm, {rows, n}, {type}, {x.at(), weight.at(), nullptr});
  call.operands[2] = PlaceOf(random, y, x, got);
  call.scalar = 1e-5f;
  call.flags[0] = centred;
  call.flags[1] = random.OneIn(2);
  device.Run(call);
  ExpectGuards("norm", {&x, &weight, &y});
  for (size_t r = 0; r < rows; r++) {
    double squares = 0;
    for (size_t i = 0; i < n; i++) squares += static_cast<double>(x.values[r * n + i]) * x.values[r * n + i];
    const double scale = 1 / std::sqrt(squares / n + call.scalar);
    for (size_t i = 0; i < n; i++) {
      const double wanted = x.values[r * n + i] * scale * (static_cast<double>(weight.values[i]) + centred);
      ExpectNear("norm", type, r * n + i, got->Get(r * n + i), wanted, std::fabs(x.values[r * n + i] * scale) * (std::fabs(weight.values[i]) + centred) * (n / 16.0 + 12) * 0x1p-24);
    }
  }
}

inline void CheckSoftmax(Device& device, Random& random) {
  const size_t rows = random.Between(1, 12), n = random.OneIn(6) ? random.Between(2000, 9000) : random.Between(1, 500);
  Matrix x = Draw(random, engine::kF32, rows * n, [&] { return random.Normal() * 8; }), y = Empty(random, engine::kF32, rows * n), *got = nullptr;
  const auto given = x.values;
  device.Run(CallOf(engine::kSoftmax, {rows, n}, {}, {x.at(), PlaceOf(random, y, x, got)}));
  ExpectGuards("softmax", {&x, &y});
  for (size_t r = 0; r < rows; r++) {
    double top = -INFINITY, sum = 0;
    for (size_t i = 0; i < n; i++) top = std::max<double>(top, given[r * n + i]);
    for (size_t i = 0; i < n; i++) sum += std::exp(given[r * n + i] - top);
    for (size_t i = 0; i < n; i++) {
      const double below = top - given[r * n + i], wanted = std::exp(-below) / sum;
      ExpectNear("softmax", engine::kF32, r * n + i, got->Get(r * n + i), wanted, wanted * (12 + 4 * below + n) * 0x1p-24);
    }
  }
}

inline void CheckTopK(Device& device, Random& random, int least, int most) {
  const size_t rows = random.Between(1, 5), n = random.Between(least, most);
  const size_t k = std::min<size_t>(n, random.OneIn(3) ? 1 : random.OneIn(4) ? random.Between(1, 200) : random.Between(1, 12));
  const bool few = random.OneIn(2);
  Matrix x = Draw(random, engine::kF32, rows * n, [&] { return few ? Special(random) : random.Normal(); });
  Matrix values = Empty(random, engine::kF32, rows * k), indices = Empty(random, engine::kWord, rows * k);
  device.Run(CallOf(engine::kTopK, {rows, n, k}, {}, {x.at(), values.at(), indices.at()}));
  ExpectGuards("topK", {&x, &values, &indices});
  for (size_t r = 0; r < rows; r++) {
    std::vector<uint32_t> order(n);
    for (size_t i = 0; i < n; i++) order[i] = static_cast<uint32_t>(i);
    const float* const row = x.values.data() + r * n;
    // NaN is below all, -0 is 0.
    std::stable_sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return row[a] > row[b] || (row[a] == row[a] && row[b] != row[b]); });
    for (size_t i = 0; i < k; i++) {
      if (indices.Bits(r * k + i) != order[i]) Wrong("topK %zu of %zu, place %zu: index %u instead of %u", k, n, i, indices.Bits(r * k + i), order[i]);
      if (values.Bits(r * k + i) != x.Bits(r * n + order[i])) Wrong("topK %zu of %zu, place %zu: value %x", k, n, i, values.Bits(r * k + i));
    }
  }
}

inline void CheckRows(Device& device, Random& random) {
  for (int round = 0; round < 2; round++) {
    for (const Type type : kFloats) {
      CheckAdd(device, random, type);
      CheckSilu(device, random, type);
      CheckNorm(device, random, type);
      for (const Type to : kFloats) CheckCast(device, random, type, to);
    }
    CheckAddWords(device, random);
    for (int i = 0; i < 3; i++) {
      CheckCopy(device, random);
      CheckSoftmax(device, random);
      CheckTopK(device, random, 1, 900);
      CheckTopK(device, random, 4000, 13000);
    }
  }
}

}  // namespace test::ops
