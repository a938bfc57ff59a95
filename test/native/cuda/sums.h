// Plain all-reduces: many calls on one workspace, every rank's results against sums made apart.
#pragma once
#include "support.h"

namespace test::sums {

template <typename T>
struct Call {
  Algorithm way;
  int64_t count;
  bool in_place, shared, rounded;
  std::vector<Buffer> in, out, given;
};

template <typename T>
void Check(Call<T>& call, int ranks) {
  using Bits = typename T::Bits;
  for (int r = 0; r < ranks; r++) {
    if (!call.out[r].GuardsHold()) Wrong("%s %s: written outside of %ld elements on rank %d", NameOf<T>(), NameOf(call.way), call.count, r);
  }
  for (int64_t i = 0; i < call.count; i++) {
    float sum = T::Widen(call.given[0].template As<Bits>()[i]);
    double exact = sum, size = std::fabs(sum);
    for (int r = 1; r < ranks; r++) {
      const float value = T::Widen(call.given[r].template As<Bits>()[i]);
      sum += value;
      if (call.rounded) sum = T::Widen(T::Round(sum));
      exact += value;
      size += std::fabs(value);
    }
    const Bits wanted = T::Round(sum);
    for (int r = 0; r < ranks; r++) {
      const Bits got = (call.in_place ? call.in : call.out)[r].template As<Bits>()[i];
      const double value = T::Widen(got);
      const double allowed = Tolerance<T>(exact) + size * ranks * 0x1p-24;
      const bool near = call.rounded || !std::isfinite(exact) || !std::isfinite(value) || std::fabs(value - exact) <= allowed;
      if (got == wanted && near) continue;
      Wrong("%s %s%s, %d ranks, element %ld of %ld on rank %d: %x instead of %x, %g of %g", NameOf<T>(), NameOf(call.way),
            call.shared ? ", shared" : "", ranks, i, call.count, r, got, wanted, value, exact);
    }
  }
}

template <typename T>
void Run(Random& random, int ranks, int calls, int most) {
  using Bits = typename T::Bits;
  const Group group(ranks, {DataBytes(1, most, sizeof(typename T::Bits)), LamportBytes(ranks, 1, most, sizeof(typename T::Bits))}, random.OneIn(3));
  emulation::Machine machine(ranks, random.Bits());
  std::vector<Call<T>> all(calls);
  const bool mixed = random.OneIn(2);
  const Algorithm one = kWays[random.Below(3)];
  for (auto& call : all) {
    call.way = mixed ? kWays[random.Below(3)] : one;
    // Empty calls too, for which ranks do not wait.
    call.count = random.OneIn(8) ? 0 : random.OneIn(6) ? most : random.Below(random.OneIn(2) ? std::min(40, most) : most);
    call.in_place = random.OneIn(4);
    call.shared = !call.in_place && random.OneIn(2);
    call.rounded = random.OneIn(4);
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
      LaunchSum<T>(machine, call.way, blocks, threads, {group.PeersOf(r), operands, out.data(), call.count});
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

inline void Check(Random& random, int rounds) {
  int calls = 0;
  for (int round = 0; round < rounds; round++) {
    for (const int ranks : {1, 2, 4, 8, random.Between(3, kMostRanks)}) {
      const int each = random.Between(8, 12), most = random.Between(1, 1500);
      EachType([&]<typename T>(T) {
        Run<T>(random, ranks, each, most);
        calls += each;
      });
    }
  }
  std::printf("%d sums\n", calls);
}

}  // namespace test::sums
