// Rotary embeddings and attention over a cache, against float64; how many queries travel together leaves their bits alone.
#pragma once
#include "ops_support.h"

namespace test::ops {

inline void CheckRope(Device& device, Random& random) {
  const size_t kv = random.Between(1, 3), heads = kv * random.Between(1, 3), half = random.Between(1, 20), dim = 2 * half;
  const size_t tokens = random.Between(1, 20), start = random.Below(10), positions = start + tokens + random.Below(5);
  const bool known = random.OneIn(2);
  // What is added to start, perhaps beyond the end.
  const uint32_t further = random.OneIn(4) ? 1000 : static_cast<uint32_t>(random.Below(4));
  const size_t at = known ? start : std::min(start + further, positions - tokens), width = (heads + 2 * kv) * dim;
  Matrix x = Draw(random, engine::kF32, tokens * width), table = Draw(random, engine::kF32, positions * dim);
  Matrix q = Empty(random, engine::kF32, tokens * heads * dim), keys = Draw(random, engine::kF32, positions * kv * dim), values = Draw(random, engine::kF32, positions * kv * dim);
  Matrix position = Words(random, 1, [&] { return further; });
  Call call = CallOf(engine::kRope, {tokens, heads, kv, dim, start, known ? start + tokens : positions}, {}, {x.at(), table.at(), q.at(), keys.at(), values.at(), known ? x.at() : position.at()});
  call.flags[0] = !known;
  device.Run(call);
  ExpectGuards("rope", {&x, &table, &q, &keys, &values});
  for (size_t t = 0; t < tokens; t++) {
    for (size_t head = 0; head < heads + 2 * kv; head++) {
      const float* const from = x.values.data() + t * width + head * dim;
      const Matrix& to = head < heads ? q : head < heads + kv ? keys : values;
      const size_t row = head < heads ? (t * heads + head) * dim : ((at + t) * kv + (head - heads) % kv) * dim;
      for (size_t i = 0; i < half; i++) {
        const double a = from[i], b = from[i + half];
        const double c = head < heads + kv ? table.values[(at + t) * dim + 2 * i] : 1, s = head < heads + kv ? table.values[(at + t) * dim + 2 * i + 1] : 0;
        const double error = 4 * 0x1p-24 * (std::fabs(a) + std::fabs(b)) * (std::fabs(c) + std::fabs(s));
        ExpectNear("rope", engine::kF32, row + i, to.Get(row + i), a * c - b * s, error);
        ExpectNear("rope", engine::kF32, row + i + half, to.Get(row + i + half), b * c + a * s, error);
      }
    }
  }
  for (size_t row = 0; row < positions; row++) {
    if (row >= at && row < at + tokens) continue;
    for (size_t i = 0; i < kv * dim; i++) {
      if (keys.Get(row * kv * dim + i) != keys.values[row * kv * dim + i] || values.Get(row * kv * dim + i) != values.values[row * kv * dim + i]) Wrong("rope: a row of the cache that is not its own is changed");
    }
  }
}

/** The first query at position least or behind it. */
inline void CheckAttention(Device& device, Random& random, size_t dim, int least, int most, bool windowed, bool portable = false) {
  const size_t kv = random.Between(1, 2), group = random.OneIn(5) ? random.Between(17, 33) : random.Between(1, 4), heads = kv * group;
  const size_t tokens = random.OneIn(3) ? 1 : random.Between(1, group > 4 ? 3 : 20), start = random.Between(least, most);
  const size_t window = windowed ? random.Between(1, 200) : 0, here = start + tokens, spare = random.Below(300);
  const float scale = random.OneIn(2) ? 1 / std::sqrt(static_cast<float>(dim)) : 0.3f;
  Matrix q = Draw(random, engine::kF32, tokens * heads * dim), y = Empty(random, engine::kF32, tokens * heads * dim);
  // What no query sees is not to be looked at: NaN.
  size_t drawn = 0;
  const auto cache = [&] {
    drawn = 0;
    return Draw(random, engine::kF32, (here + spare) * kv * dim, [&] { return drawn++ < here * kv * dim ? random.Normal() : std::nanf(""); });
  };
  Matrix keys = cache(), values = cache();
  const bool known = random.OneIn(2);
  const size_t base = known ? start : random.Below(static_cast<int>(start + 1));
  Matrix position = Words(random, 1, [&] { return static_cast<uint32_t>(start - base); });
  Call call = CallOf(engine::kAttention, {tokens, heads, kv, dim, base, window, known ? here : here + spare}, {}, {q.at(), keys.at(), values.at(), y.at(), known ? q.at() : position.at()});
  call.scalar = scale;
  call.flags[0] = !known;
  call.flags[1] = portable;
  device.Run(call);
  ExpectGuards("attention", {&q, &keys, &values, &y});
  for (size_t t = 0; t < tokens; t++) {
    const size_t m = start + t, first = window > 0 && m + 1 > window ? m + 1 - window : 0;
    for (size_t head = 0; head < heads; head++) {
      std::vector<double> scores;
      double top = -INFINITY, lowest = INFINITY, sum = 0, largest = 0;
      for (size_t j = first; j <= m; j++) {
        double dot = 0;
        for (size_t i = 0; i < dim; i++) dot += static_cast<double>(q.values[(t * heads + head) * dim + i]) * keys.values[(j * kv + head / group) * dim + i];
        scores.push_back(dot * scale);
        top = std::max(top, scores.back());
        lowest = std::min(lowest, scores.back());
      }
      for (double& score : scores) sum += score = std::exp(score - top);
      for (size_t i = 0; i < dim; i++) {
        double mixed = 0;
        for (size_t j = first; j <= m; j++) {
          const double value = values.values[(j * kv + head / group) * dim + i];
          mixed += scores[j - first] / sum * value;
          largest = std::max(largest, std::fabs(value));
        }
        const double error = (16 + 4 * (top - lowest) + scores.size() + 3 * dim) * 0x1p-24 * largest;
        const size_t at = (t * heads + head) * dim + i;
        ExpectNear("attention", engine::kF32, at, y.Get(at), mixed, error);
      }
    }
  }
  // Some of the queries alone, at a position that is known.
  const size_t from = random.Below(static_cast<int>(tokens)), count = random.Between(1, static_cast<int>(tokens - from));
  Matrix part = Empty(random, engine::kF32, count * heads * dim);
  call = CallOf(engine::kAttention, {count, heads, kv, dim, start + from, window, start + from + count}, {}, {q.at() + from * heads * dim * 4, keys.at(), values.at(), part.at(), q.at()});
  call.scalar = scale;
  call.flags[1] = portable;
  device.Run(call);
  ExpectSame("attention of fewer queries", part, 0, y, from * heads * dim, count * heads * dim);
}

inline void CheckAttentions(Device& device, Random& random) {
  for (int i = 0; i < 8; i++) CheckRope(device, random);
  for (const size_t dim : {4, 64, 68, 128, 132, 256}) {
    CheckAttention(device, random, dim, 0, 20, random.OneIn(2));
    CheckAttention(device, random, dim, 128, 400, false);
    CheckAttention(device, random, dim, 0, 400, true);
    CheckAttention(device, random, dim, 0, 100, random.OneIn(2), true);
  }
  CheckAttention(device, random, 4 * random.Between(1, 20), 700, 1000, random.OneIn(2));
}

}  // namespace test::ops
