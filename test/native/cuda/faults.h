// Ranks that do not come: every kernel ends within its limit, the status names who was missing, and the host can end a wait.
#pragma once
#include "support.h"

namespace test::faults {

constexpr int kRanks = 4;
constexpr uint64_t kForever = uint64_t{1} << 60;
constexpr int64_t kRows = 3, kWidth = 300;

/** What all ranks are given, and what one has of its own. */
struct Shared {
  Buffer residual, gamma;
};
struct Rank {
  Buffer in, h, y;
};

inline void Launch(emulation::Machine& machine, const Group& group, Algorithm way, bool norm, int r, const Shared& shared, Rank& rank,
                   uint64_t limit) {
  const Peers peers = group.PeersOf(r, limit);
  Operands in{};
  in.of[r] = rank.in.data();
  if (norm) {
    LaunchNorm<Bfloat16>(machine, way, 2,
                         {peers, in, shared.residual.data(), rank.h.data(), shared.gamma.data(), nullptr, rank.y.data(), kRows, kWidth,
                          1e-6f, 0, {}});
  } else {
    LaunchSum<Bfloat16>(machine, way, 2, 64, {peers, in, rank.y.data(), kRows * kWidth});
  }
}

inline void Expect(const Group& group, int rank, uint32_t wanted, const char* what) {
  if (group.StatusOf(rank) != wanted) Wrong("%s: status of rank %d is %x instead of %x", what, rank, group.StatusOf(rank), wanted);
}

inline void Run(Random& random, Algorithm way, bool norm) {
  Group group(kRanks, {DataBytes<Bfloat16>(kRows, kWidth), LamportBytes<Bfloat16>(kRanks, kRows, kWidth)});
  const auto elements = [&](int64_t count) { return Elements<Bfloat16>(random, count, Values::kOrdinary); };
  const Shared shared{elements(kRows * kWidth), elements(kWidth)};
  std::vector<Rank> ranks;
  for (int r = 0; r < kRanks; r++) ranks.push_back({elements(kRows * kWidth), Buffer(kRows * kWidth * 2), Buffer(kRows * kWidth * 2)});
  const int absent = random.Below(kRanks);
  const auto all = [&](emulation::Machine& machine, uint64_t limit, int but = -1) {
    for (int r = 0; r < kRanks; r++) {
      if (r != but) Launch(machine, group, way, norm, r, shared, ranks[r], limit);
    }
  };
  {
    // A call in which all are there, then three without one of them: the later two end at once.
    emulation::Machine machine(kRanks, random.Bits());
    constexpr uint64_t kLimit = 10'000'000;
    all(machine, kLimit);
    machine.Run();
    for (int r = 0; r < kRanks; r++) Expect(group, r, 0, "before");
    for (Rank& rank : ranks) rank.y = Buffer(rank.y.size());
    const uint64_t begin = machine.now();
    for (int call = 0; call < 3; call++) all(machine, kLimit, absent);
    machine.Run();
    // All ranks' threads share the steps.
    if (machine.now() - begin > 3 * kLimit) Wrong("waits of %lu ns took %lu", kLimit, machine.now() - begin);
    for (int r = 0; r < kRanks; r++) {
      if (r == absent) continue;
      const uint32_t status = group.StatusOf(r);
      // Who hears of it first need not wait to the end.
      if ((status & 0xffff) != 1u << absent || (status & (kExpired | kTold)) == 0 || (status & kAborted)) {
        Wrong("%s: status of rank %d is %x, rank %d was missing", NameOf(way), r, status, absent);
      }
      if (!ranks[r].y.Untouched()) Wrong("%s: a call without rank %d has written results", NameOf(way), absent);
    }
    // The late one is told that it was late.
    Launch(machine, group, way, norm, absent, shared, ranks[absent], kForever);
    machine.Run();
    Expect(group, absent, kTold | 1u << absent, "late");
  }
  {
    group.Reset();
    emulation::Machine machine(kRanks, random.Bits());
    all(machine, kForever, absent);
    machine.Run([&] {
      if (machine.now() < 400'000) return;
      for (int r = 0; r < kRanks; r++) group.Alarm(r);
    });
    for (int r = 0; r < kRanks; r++) Expect(group, r, r == absent ? 0 : kAborted, "aborted");
  }
  group.Reset();
  emulation::Machine machine(kRanks, random.Bits());
  all(machine, kForever);
  machine.Run();
  for (int r = 0; r < kRanks; r++) {
    Expect(group, r, 0, "after");
    const bool same = std::memcmp(ranks[r].y.data(), ranks[0].y.data(), ranks[0].y.size()) == 0;
    if (!same || ranks[r].y.Untouched()) Wrong("a workspace set up anew gives no results");
  }
}

inline void Check(Random& random) {
  for (const Algorithm way : kWays) {
    Run(random, way, false);
    Run(random, way, true);
  }
  std::printf("faults of %d ways\n", 6);
}

}  // namespace test::faults
