// Gathers: operands of any length, or columns of them, side by side or apart, in one launch or several, between reductions on the same workspace.
#pragma once
#include "support.h"

namespace test::gathers {

template <typename Unit>
void Run(Random& random, int ranks) {
  const int64_t rows = random.Between(0, 4);
  const bool whole = random.OneIn(2);
  GatherArgs shape{};
  // What each rank wants: of all the same rows, or columns of its own.
  std::vector<GatherArgs> wants(ranks);
  int64_t most = 0;
  for (int r = 0; r < ranks; r++) {
    shape.row[r] = random.OneIn(5) ? 0 : random.Below(200);
    most = std::max(most, rows * shape.row[r]);
    for (auto& want : wants) {
      want.from[r] = whole ? 0 : random.Below(static_cast<int>(shape.row[r]) + 1);
      want.width[r] = whole ? shape.row[r] : random.Below(static_cast<int>(shape.row[r] - want.from[r]) + 1);
      want.start[r] = want.pitch + (whole ? 0 : random.Below(3));
      want.pitch = want.start[r] + want.width[r];
    }
  }
  std::vector<int64_t> gaps;
  const int pieces = random.Between(1, 3);
  const int64_t data = static_cast<int64_t>(RoundUp((most / pieces + 1) * sizeof(Unit)));
  const Group group(ranks, {static_cast<uint64_t>(data), LamportBytes(ranks, 1, 64, sizeof(Bfloat16::Bits))});
  emulation::Machine machine(ranks, random.Bits());
  const auto offset = [&] { return random.OneIn(3) ? size_t{1} : size_t{0}; };
  std::vector<Buffer> in, out;
  std::vector<bool> wanted;
  for (int r = 0; r < ranks; r++) {
    gaps.push_back(random.OneIn(2) ? 0 : random.Below(5));
    in.emplace_back(rows * (shape.row[r] + gaps[r]) * sizeof(Unit), offset());
    for (size_t i = 0; i < in[r].size(); i++) in[r].data()[i] = static_cast<uint8_t>(random.Bits());
    out.emplace_back(rows * wants[r].pitch * sizeof(Unit), offset());
    wanted.push_back(!random.OneIn(4));
  }
  std::vector<Buffer> x, y;
  for (int r = 0; r < ranks; r++) x.push_back(Elements<Bfloat16>(random, 64, Values::kOrdinary)), y.emplace_back(128);
  const auto blocks = static_cast<unsigned>(random.Between(1, 3));
  const Algorithm way = kWays[random.Below(3)];
  for (int r = 0; r < ranks; r++) {
    for (int piece = 0; piece < pieces; piece++) {
      GatherArgs args = wants[r];
      std::copy_n(shape.row, ranks, args.row);
      args.in_pitch = shape.row[r] + gaps[r];
      args.peers = group.PeersOf(r);
      args.in = in[r].data();
      args.out = wanted[r] ? out[r].data() : nullptr;
      for (int p = 0; p < ranks; p++) {
        args.first[p] = FirstOf(rows * shape.row[p], piece, pieces);
        args.count[p] = FirstOf(rows * shape.row[p], piece + 1, pieces) - args.first[p];
      }
      machine.Launch(r, blocks, 32, [args] { AllGather<Unit>(args); });
      if (data >= 128) LaunchSum<Bfloat16>(machine, way, 1, 32, {group.PeersOf(r), OperandsOf(x, 0, r, false), y[r].data(), 64});
    }
    // What comes after the call may write to the operand.
    Buffer& own = in[r];
    machine.Launch(r, 1, 32, [&own] {
      for (size_t i = threadIdx.x; i < own.size(); i += 32) own.data()[i] = static_cast<uint8_t>(own.data()[i] + 1);
    });
  }
  machine.Run();
  for (int r = 0; r < ranks; r++) {
    if (group.StatusOf(r) != 0) Wrong("status %x on rank %d", group.StatusOf(r), r);
    if (!wanted[r]) {
      if (!out[r].Untouched()) Wrong("a gather is written though nobody wants it");
      continue;
    }
    if (!out[r].GuardsHold()) Wrong("a gather is written outside");
    for (int p = 0; p < ranks; p++) {
      const GatherArgs& want = wants[r];
      for (int64_t row = 0; row < rows; row++) {
        const uint8_t* const got = out[r].data() + (row * want.pitch + want.start[p]) * sizeof(Unit);
        const uint8_t* const given = in[p].data() + (row * (shape.row[p] + gaps[p]) + want.from[p]) * sizeof(Unit);
        for (size_t i = 0; i < want.width[p] * sizeof(Unit); i++) {
          if (got[i] != static_cast<uint8_t>(given[i] - 1)) Wrong("%d ranks: row %ld of rank %d is wrong on rank %d", ranks, row, p, r);
        }
      }
    }
  }
}

inline void Check(Random& random, int rounds) {
  int calls = 0;
  for (int round = 0; round < rounds; round++) {
    for (const int ranks : {1, 2, 4, 8, random.Between(3, kMostRanks)}) {
      Run<Packet>(random, ranks);
      Run<uint32_t>(random, ranks);
      Run<uint8_t>(random, ranks);
      calls += 3;
    }
  }
  std::printf("%d gathers\n", calls);
}

}  // namespace test::gathers
