// The fused all-reduce behind experts: each rank's sum of expert rows against one made apart, then as the plain fused all-reduce of those.
#pragma once
#include "norms.h"

namespace test::experts {

/** What one rank brings. */
struct Given {
  Buffer rows, scale, index, shared;
};

/** An element of a rank's row of a token, rounded, with the order and the roundings of the contract, which is near the exact sum. */
template <typename T>
typename T::Bits Joined(const Experts& experts, int64_t all, int64_t n, int64_t token, int64_t i) {
  using Bits = typename T::Bits;
  float sum = 0;
  double exact = 0, size = 0;
  for (int j = 0; j < experts.k; j++) {
    const int64_t entry = experts.index ? token * experts.k + j : j * all + token;
    const int64_t row = experts.index ? experts.index[entry] : entry;
    if (row < 0 || row >= experts.count) continue;
    const float value = T::Widen(static_cast<const Bits*>(experts.rows)[row * n + i]);
    const float scale = ScaleAt(experts, entry);
    const float product = value * scale;
    sum += product;
    exact += static_cast<double>(value) * scale;
    size += std::fabs(static_cast<double>(value) * scale);
  }
  if (experts.routed != 1) sum *= experts.routed;
  exact *= experts.routed;
  size *= std::fabs(experts.routed);
  if (experts.shared) {
    const float value = T::Widen(static_cast<const Bits*>(experts.shared)[token * n + i]);
    sum += value;
    exact += value;
    size += std::fabs(value);
  }
  if (std::fabs(sum - exact) > size * (experts.k + 3) * 0x1p-23) Wrong("the sum of experts is %g instead of %g", sum, exact);
  return T::Round(sum);
}

template <typename T>
void Run(Random& random, int ranks, const norms::Shape& s) {
  using Bits = typename T::Bits;
  const int64_t count = s.rows * s.n;
  const Group group(ranks, {DataBytes(s.rows, s.n, sizeof(typename T::Bits)), LamportBytes(ranks, s.rows, s.n, sizeof(typename T::Bits))},
                    random.OneIn(3));
  emulation::Machine machine(ranks, random.Bits());
  const bool indexed = random.OneIn(2), with_scale = !indexed || random.OneIn(2), with_shared = random.OneIn(2), with_sum = random.OneIn(2);
  const int k = random.Between(1, 5);
  const int64_t rows = indexed ? random.Between(1, 12) : k * s.rows;
  const auto scale_type = static_cast<ScaleType>(indexed ? random.Below(3) : 0);
  const float routed = random.OneIn(2) ? 1.0f : 2.5f;
  norms::Inputs<T> inputs{{}, Elements<T>(random, count, Values::kOrdinary), Elements<T>(random, s.n, Values::kOrdinary), Buffer(s.n * sizeof(Bits)), Buffer()};
  std::memset(inputs.bias.data(), 0, inputs.bias.size());
  std::vector<Given> given;
  std::vector<Experts> experts;
  for (int r = 0; r < ranks; r++) {
    const auto scales = [&] {
      if (scale_type == ScaleType::kFloat32) return Elements<Float32>(random, s.rows * k, Values::kOrdinary);
      if (scale_type == ScaleType::kBfloat16) return Elements<Bfloat16>(random, s.rows * k, Values::kOrdinary);
      return Elements<Float16>(random, s.rows * k, Values::kOrdinary);
    };
    Given& own = given.emplace_back(Given{Elements<T>(random, rows * s.n, Values::kOrdinary), scales(), Buffer(s.rows * k * 4),
                                          Elements<T>(random, count, Values::kOrdinary, random.OneIn(4) ? sizeof(Bits) : 0)});
    // Rows of other ranks, and rows that there are none of.
    for (int64_t i = 0; i < s.rows * k; i++) own.index.As<int32_t>()[i] = random.Between(-1, static_cast<int>(rows));
    experts.push_back({own.rows.data(), with_scale ? own.scale.data() : nullptr, indexed ? own.index.As<int32_t>() : nullptr,
                       with_shared ? own.shared.data() : nullptr, rows, k, scale_type, routed});
    Buffer& in = inputs.in.emplace_back(count * sizeof(Bits));
    for (int64_t i = 0; i < count; i++) in.template As<Bits>()[i] = Joined<T>(experts[r], s.rows, s.n, i / s.n, i % s.n);
  }
  std::vector<norms::Results> results[2];
  std::vector<Buffer> sums[2];
  for (const Algorithm way : {Algorithm::kOneShot, Algorithm::kLamport}) {
    const int64_t cut = random.OneIn(2) ? s.rows : random.Below(static_cast<int>(s.rows) + 1);
    const auto blocks = static_cast<unsigned>(random.Between(1, 3));
    for (int r = 0; r < ranks; r++) {
      auto& to = results[way == Algorithm::kLamport].emplace_back(norms::Results{
          Buffer(count * sizeof(Bits)), Buffer(count * sizeof(Bits)), Buffer(s.CodesOf(s.rows)), Buffer(s.ScaleBytes())});
      Buffer& sum = sums[way == Algorithm::kLamport].emplace_back(count * sizeof(Bits));
      MoeArgs args{{group.PeersOf(r), {}, inputs.residual.data(), to.h.data(), inputs.gamma.data(), nullptr, to.y.data(),
                    with_sum ? sum.data() : nullptr, cut, 0, s.rows, s.n, s.eps, s.weight_bias,
                    {s.quant, s.layout, s.factor, s.group, to.codes.data(), to.scales.data(), s.pad}},
                   experts[r]};
      const auto launch = [&] {
        machine.Launch(r, blocks, RowThreads(s.n, sizeof(typename T::Bits)), [args, way] {
          if (way == Algorithm::kOneShot) MoeAllReduceNorm<T, kMaxRanks, Algorithm::kOneShot>(args);
          else MoeAllReduceNorm<T, kMaxRanks, Algorithm::kLamport>(args);
        });
      };
      launch();
      args.norm.first = cut;
      args.norm.rows = s.rows - cut;
      if (args.norm.rows > 0) launch();
    }
  }
  machine.Run();
  norms::Results& first = results[0][0];
  norms::CheckRows(s, inputs, first);
  norms::CheckCodes<T>(s, first);
  for (int way = 0; way < 2; way++) {
    for (int r = 0; r < ranks; r++) {
      if (group.StatusOf(r) != 0) Wrong("status %x on rank %d", group.StatusOf(r), r);
      norms::Results& to = results[way][r];
      norms::Same("h", to.h, first.h.data(), first.h.size());
      norms::Same("y", to.y, first.y.data(), first.y.size());
      norms::Same("codes", to.codes, first.codes.data(), first.codes.size());
      norms::Same("scales", to.scales, first.scales.data(), first.scales.size());
      for (int64_t i = 0; with_sum && i < count; i++) {
        float sum = T::Widen(inputs.in[0].template As<Bits>()[i]);
        for (int p = 1; p < ranks; p++) sum += T::Widen(inputs.in[p].template As<Bits>()[i]);
        const Bits got = sums[way][r].template As<Bits>()[i];
        if (got != T::Round(sum)) Wrong("the sum of experts over ranks is %x instead of %x", got, T::Round(sum));
      }
      if (!with_sum && !sums[way][r].Untouched()) Wrong("the sum is written though nobody wants it");
    }
  }
}

inline void Check(Random& random, int rounds) {
  int calls = 0;
  for (int round = 0; round < rounds; round++) {
    for (const int ranks : {1, 2, 4, 8}) {
      const int64_t rows = random.Between(0, 5), n = random.OneIn(2) ? 8 * random.Between(1, 40) : random.Between(1, 200);
      EachType([&]<typename T>(T) {
        norms::Shape shape = norms::Draw(random, rows, n);
        shape.bias = shape.pre = shape.rounded = false;
        Run<T>(random, ranks, shape);
        calls += 2;
      });
    }
  }
  std::printf("%d sums of experts\n", calls);
}

}  // namespace test::experts
