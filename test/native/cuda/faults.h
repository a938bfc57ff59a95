// Ranks that do not come: every kernel ends within its limit, the status names who was missing, and the host can end a wait.
#pragma once
#include "support.h"

namespace test::faults {

constexpr int kRanks = 4;
constexpr int64_t kRows = 3, kWidth = 300;
constexpr unsigned kBlocks = 2;
constexpr uint64_t kForever = uint64_t{1} << 60;
/** Emulated nanoseconds; longer than ranks are let stand still. */
constexpr uint64_t kLimit = 10'000'000;

/** A group, what its calls read and write, and the way they go. */
class Scene {
 public:
  Scene(Random& random, Algorithm way, bool norm)
      : group(kRanks, {DataBytes(kRows, kWidth, sizeof(Bfloat16::Bits)), LamportBytes(kRanks, kRows, kWidth, sizeof(Bfloat16::Bits))},
              random.OneIn(2)),
        machine(kRanks, random.Bits()),
        absent(random.Below(kRanks)),
        way_(way),
        norm_(norm),
        residual_(Elements<Bfloat16>(random, kRows * kWidth, Values::kOrdinary)),
        gamma_(Elements<Bfloat16>(random, kWidth, Values::kOrdinary)) {
    for (int r = 0; r < kRanks; r++) {
      in_.push_back(Elements<Bfloat16>(random, kRows * kWidth, Values::kOrdinary));
      h_.emplace_back(kRows * kWidth * 2);
      y.emplace_back(kRows * kWidth * 2);
    }
  }

  void Launch(int r, uint64_t limit) {
    const Peers peers = group.PeersOf(r, limit);
    const Operands in = OperandsOf(in_, 0, r, false);
    if (norm_) {
      LaunchNorm<Bfloat16>(machine, way_, kBlocks,
                           {peers, in, residual_.data(), h_[r].data(), gamma_.data(), nullptr, y[r].data(), nullptr, kRows, 0, kRows, kWidth, 1e-6f,
                            0, {}});
    } else {
      LaunchSum<Bfloat16>(machine, way_, kBlocks, 64, {peers, in, y[r].data(), kRows * kWidth});
    }
  }
  void LaunchOthers(uint64_t limit) {
    for (int r = 0; r < kRanks; r++) {
      if (r != absent) Launch(r, limit);
    }
  }
  /** The absent rank meets the others once, and does no more. */
  void LaunchHalf() {
    const Peers peers = group.PeersOf(absent);
    const unsigned threads = norm_ ? RowThreads(kWidth, sizeof(Bfloat16::Bits)) : 64;
    machine.Launch(absent, kBlocks, threads, [peers] { Meet(peers, PointOf(peers.state->progress.epoch, 0)); });
  }

  void Expect(int rank, uint32_t wanted, const char* what) const {
    if (group.StatusOf(rank) == wanted) return;
    Wrong("%s, %s: status of rank %d is %x instead of %x", NameOf(way_), what, rank, group.StatusOf(rank), wanted);
  }
  /** All others say that this rank alone was missing: by their own clock, or told so before that. */
  void ExpectMissing(const char* what) const {
    for (int r = 0; r < kRanks; r++) {
      const uint32_t status = group.StatusOf(r);
      if (r == absent || ((status & 0xffff) == 1u << absent && (status & (kExpired | kTold)) != 0 && (status & kAborted) == 0)) continue;
      Wrong("%s, %s: status of rank %d is %x, rank %d was missing", NameOf(way_), what, r, status, absent);
    }
  }
  void ExpectNothingWritten() const {
    for (int r = 0; r < kRanks; r++) {
      if (!y[r].Untouched()) Wrong("%s: a call without rank %d has written results", NameOf(way_), absent);
    }
  }

  Group group;
  emulation::Machine machine;
  const int absent;
  std::vector<Buffer> y;

 private:
  Algorithm way_;
  bool norm_;
  Buffer residual_, gamma_;
  std::vector<Buffer> in_, h_;
};

/** A call in which all are there; all write the same. */
inline void Works(Scene& scene, const char* when) {
  for (Buffer& y : scene.y) y = Buffer(y.size());
  scene.LaunchOthers(kForever);
  scene.Launch(scene.absent, kForever);
  scene.machine.Run();
  for (int r = 0; r < kRanks; r++) {
    scene.Expect(r, 0, when);
    const bool same = std::memcmp(scene.y[r].data(), scene.y[0].data(), scene.y[0].size()) == 0;
    if (!same || scene.y[r].Untouched()) Wrong("%s: no results on rank %d", when, r);
  }
  for (Buffer& y : scene.y) y = Buffer(y.size());
}

/** Three calls without one rank: the later two end at once. Then it comes, and is told that it was late. */
inline void Misses(Scene& scene) {
  const uint64_t begin = scene.machine.now();
  for (int call = 0; call < 3; call++) scene.LaunchOthers(kLimit);
  scene.machine.Run();
  const uint64_t took = scene.machine.now() - begin;
  if (took > 2 * kLimit) Wrong("waits of %lu ns took %lu", kLimit, took);
  scene.ExpectMissing("absent");
  scene.Launch(scene.absent, kForever);
  scene.machine.Run();
  scene.Expect(scene.absent, kTold | 1u << scene.absent, "late");
  scene.ExpectNothingWritten();
}

inline void Leaves(Scene& scene) {
  scene.LaunchOthers(kLimit);
  scene.LaunchHalf();
  scene.machine.Run();
  scene.ExpectMissing("left");
  scene.ExpectNothingWritten();
}

/** The host ends waits that have no limit. */
inline void Aborts(Scene& scene) {
  scene.LaunchOthers(kForever);
  const uint64_t end = scene.machine.now() + 400'000;
  scene.machine.Run([&] {
    for (int r = 0; r < kRanks && scene.machine.now() > end; r++) scene.group.Alarm(r);
  });
  for (int r = 0; r < kRanks; r++) scene.Expect(r, r == scene.absent ? 0 : kAborted, "aborted");
  scene.ExpectNothingWritten();
}

inline void Check(Random& random) {
  int ways = 0;
  for (const Algorithm way : kWays) {
    for (const bool norm : {false, true}) {
      Scene scene(random, way, norm);
      Works(scene, "at first");
      Misses(scene);
      scene.group.Reset();
      if (way == Algorithm::kTwoShot) Leaves(scene);
      scene.group.Reset();
      Aborts(scene);
      scene.group.Reset();
      Works(scene, "set up anew");
      ways++;
    }
  }
  std::printf("faults of %d ways\n", ways);
}

}  // namespace test::faults
