// Plain all-reduces: many calls on one workspace, every rank's results against sums made apart, or against what else joins all ranks.
#pragma once
#include "support.h"

namespace test::sums {

template <typename T>
struct Call {
  Algorithm way;
  int64_t count;
  bool in_place, shared, rounded;
  int joining;
  float divisor;
  std::vector<Buffer> in, out, given;
};

inline float Joined(int joining, float a, float b) {
  if (joining == kJoinSum) return a + b;
  if (joining == kJoinProd) return a * b;
  if (std::isnan(a) || std::isnan(b)) return std::nanf("");
  return joining == kJoinMin ? std::min(b, a) : std::max(b, a);  // of equals the last, as these give their first
}

inline uint32_t Joined(int joining, uint32_t a, uint32_t b) {
  const auto x = static_cast<int32_t>(a), y = static_cast<int32_t>(b);
  if (joining == kJoinSum) return a + b;
  if (joining == kJoinProd) return a * b;
  if (joining == kJoinMin || joining == kJoinMax) return joining == kJoinMin ? std::min(a, b) : std::max(a, b);
  return static_cast<uint32_t>(joining == kJoinMinSigned ? std::min(x, y) : std::max(x, y));
}

template <typename T>
void Check(Call<T>& call, int ranks) {
  using Bits = typename T::Bits;
  for (int r = 0; r < ranks; r++) {
    if (!call.out[r].GuardsHold()) Wrong("%s %s: written outside of %ld elements on rank %d", NameOf<T>(), NameOf(call.way), call.count, r);
  }
  for (int64_t i = 0; i < call.count; i++) {
    auto sum = T::Widen(call.given[0].template As<Bits>()[i]);
    double exact = sum, size = std::fabs(exact);
    for (int r = 1; r < ranks; r++) {
      const auto value = T::Widen(call.given[r].template As<Bits>()[i]);
      sum = Joined(call.joining, sum, value);
      if (call.rounded) sum = T::Widen(T::Round(sum));
      exact += value;
      size += std::fabs(static_cast<double>(value));
    }
    if (call.divisor != 1) sum /= call.divisor;
    const Bits wanted = T::Round(sum);
    const bool inexact = call.rounded || call.joining != kJoinSum || std::is_same_v<T, Word>;
    for (int r = 0; r < ranks; r++) {
      const Bits got = (call.in_place ? call.in : call.out)[r].template As<Bits>()[i];
      const double value = T::Widen(got) * static_cast<double>(call.divisor);
      const double allowed = Tolerance<T>(exact) + size * ranks * 0x1p-24 + call.divisor * 0x1p-24;
      const bool near = inexact || !std::isfinite(exact) || !std::isfinite(value) || std::fabs(value - exact) <= allowed;
      if (got == wanted && near) continue;
      Wrong("%s %s%s, joining %d over %g, %d ranks, element %ld of %ld on rank %d: %x instead of %x, %g of %g", NameOf<T>(), NameOf(call.way),
            call.shared ? ", shared" : "", call.joining, static_cast<double>(call.divisor), ranks, i, call.count, r, got, wanted, value, exact);
    }
  }
}

/** `told`: by the kernels that are told how to join, rather than by those of sums. */
template <typename T>
void Run(Random& random, int ranks, int calls, int most, bool told) {
  using Bits = typename T::Bits;
  const Group group(ranks, {DataBytes(1, most, sizeof(typename T::Bits)), LamportBytes(ranks, 1, most, sizeof(typename T::Bits))}, random.OneIn(3));
  emulation::Machine machine(ranks, random.Bits());
  std::vector<Call<T>> all(calls);
  const bool mixed = random.OneIn(2);
  const int ways = told ? 2 : 3;
  const Algorithm one = kWays[random.Below(ways)];
  for (auto& call : all) {
    call.way = mixed ? kWays[random.Below(ways)] : one;
    // Empty calls too, for which ranks do not wait.
    call.count = random.OneIn(8) ? 0 : random.OneIn(6) ? most : random.Below(random.OneIn(2) ? std::min(40, most) : most);
    call.in_place = random.OneIn(4);
    call.shared = !call.in_place && random.OneIn(2);
    call.rounded = !told && random.OneIn(4);
    call.joining = told ? random.Below(std::is_same_v<T, Word> ? kJoinMaxSigned + 1 : kJoinMax + 1) : int{kJoinSum};
    call.divisor = told && call.joining == kJoinSum && !std::is_same_v<T, Word> && random.OneIn(2) ? static_cast<float>(ranks) : 1.0f;
    const Values values = random.OneIn(3) ? Values::kSpecial : Values::kOrdinary;
    const auto blocks = static_cast<unsigned>(random.Between(1, 3)), threads = static_cast<unsigned>(32 * random.Between(1, 2));
    for (int r = 0; r < ranks; r++) {
      const size_t offset = random.OneIn(3) ? sizeof(Bits) : 0;
      call.in.push_back(Elements<T>(random, call.count, values, offset));
      call.given.emplace_back(call.count * sizeof(Bits));
      std::memcpy(call.given[r].data(), call.in[r].data(), call.count * sizeof(Bits));
      call.out.emplace_back(call.count * sizeof(Bits), random.OneIn(3) ? sizeof(Bits) : 0);
    }
    for (int r = 0; r < ranks; r++) {
      Buffer &in = call.in[r], &out = call.in_place ? in : call.out[r];
      Operands operands = OperandsOf(call.in, 0, r, call.shared);
      operands.rounded = call.rounded;
      const SumArgs args{group.PeersOf(r), operands, out.data(), call.count};
      if (told) LaunchJoin<T>(machine, call.way, blocks, threads, {args, call.joining, call.divisor});
      else if constexpr (!std::is_same_v<T, Word>) LaunchSum<T>(machine, call.way, blocks, threads, args);
      // What comes after the call may write to the operand.
      if (call.in_place) continue;
      machine.Launch(r, 1, 32, [&in] {
        for (size_t i = threadIdx.x; i < in.size(); i += 32) in.data()[i] = 0x11;
      });
    }
  }
  machine.Run();
  for (int r = 0; r < ranks; r++) {
    if (group.StatusOf(r) != 0) Wrong("status %x on rank %d", group.StatusOf(r), r);
  }
  for (auto& call : all) Check(call, ranks);
}

inline void Check(Random& random, int rounds, bool told) {
  int calls = 0;
  for (int round = 0; round < rounds; round++) {
    for (const int ranks : {1, 2, 4, 8, random.Between(3, kMostRanks)}) {
      const int each = random.Between(8, 12), most = random.Between(1, 1500);
      EachType([&]<typename T>(T) {
        Run<T>(random, ranks, each, most, told);
        calls += each;
      });
      if (!told || kFewKernels) continue;
      Run<Word>(random, ranks, each, most, true);
      calls += each;
    }
  }
  std::printf("%d %s\n", calls, told ? "reductions" : "sums");
}

}  // namespace test::sums
