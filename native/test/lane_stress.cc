// Members of a lane as threads: reductions of all sizes, checked against sums made apart; epochs wrap on the way.
// Arguments: members, rounds, seed. Built with -fsanitize=thread it also tells of memory that is touched without order.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <thread>

#include "../reduce.h"

using namespace rankmesh;

namespace {

/** Epochs begin here. */
constexpr int32_t kFirst = INT32_MAX - 100;
constexpr size_t kSlot = 1 << 12;
constexpr size_t kBlock = 1 << 16;

struct Shared {
  alignas(128) int32_t words[kLine * 9]{};
  alignas(128) std::byte slots[8][kSlot]{};
  alignas(128) std::byte blocks[8][kBlock]{};
};

int64_t ValueOf(uint32_t seed, int round, uint32_t member, size_t i) {
  return static_cast<int64_t>((seed ^ (static_cast<uint32_t>(round) * 2654435761u)) % 1000003 * (member + 1) + i * 31);
}

void Member(Shared& shared, uint32_t me, uint32_t members, int rounds, uint32_t seed) {
  const Lane lane{shared.words + kLine, members, me, shared.words};
  std::vector<std::byte*> slots, blocks;
  for (uint32_t member = 0; member < members; member++) {
    slots.push_back(shared.slots[member]);
    blocks.push_back(shared.blocks[member]);
  }
  Reducer carried(lane, slots, kSlot, 0), placed(lane, blocks, kBlock, 1);
  std::mt19937 random(seed);
  std::vector<int64_t> own(kBlock / sizeof(int64_t));
  // The alarm word counts too: a wait that sees it change goes on.
  int32_t epoch = kFirst, alarm = 0;

  for (int round = 0; round < rounds; round++) {
    const bool in_place = random() % 2;
    const size_t count = random() % (round % 8 ? 200 : own.size());
    auto* const data = in_place ? reinterpret_cast<int64_t*>(blocks[me]) : own.data();
    for (size_t i = 0; i < count; i++) data[i] = ValueOf(seed, round, me, i);
    Result result;
    do {
      result = (in_place ? placed : carried)
                   .Reduce({reinterpret_cast<std::byte*>(data), count, Type::kInt64, Op::kSum, round}, epoch, alarm, std::chrono::microseconds(50));
      alarm = std::atomic_ref<int32_t>(*lane.alarm).load();
    } while (result == Result::kExpired || result == Result::kAlarmed);
    bool good = result == Result::kArrived;
    for (size_t i = 0; i < count && good; i++) {
      int64_t sum = 0;
      for (uint32_t member = 0; member < members; member++) sum += ValueOf(seed, round, member, i);
      good = data[i] == sum;
    }
    if (!good) {
      std::printf("member %u round %d: %zu elements %s, result %d\n", me, round, count, in_place ? "in place" : "carried", static_cast<int>(result));
      std::fflush(stdout);
      std::abort();
    }
    if (me == 0 && round % 16 == 0) std::atomic_ref<int32_t>(*lane.alarm).fetch_add(1);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const auto argument = [&](int i, long other) { return argc > i ? std::atol(argv[i]) : other; };
  const auto members = static_cast<uint32_t>(argument(1, 4));
  const auto rounds = static_cast<int>(argument(2, 1000));
  const auto seed = static_cast<uint32_t>(argument(3, 1));
  auto shared = std::make_unique<Shared>();
  for (uint32_t member = 0; member < members; member++) shared->words[kLine * (1 + member)] = kFirst;
  std::vector<std::thread> threads;
  for (uint32_t me = 0; me < members; me++) threads.emplace_back(Member, std::ref(*shared), me, members, rounds, seed);
  for (auto& thread : threads) thread.join();
  std::printf("%u members, %d reductions each\n", members, rounds);
  return 0;
}
