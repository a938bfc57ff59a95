// Drives native/nccl over NCCL's double without Node: collectives of ranks in one thread, in threads and in processes against what they should
// give, and what becomes of ranks when something goes wrong. Arguments: what, seed.
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <future>
#include <random>

#include "../../../native/nccl/communicator.h"
#include "arithmetic.h"

using namespace rankmesh::nccl;
using std::chrono::milliseconds;

namespace {

extern "C" void RankmeshDoubleEnqueue(void* stream, void (*work)(void*), void* given);

void Enqueue(Stream stream, std::function<void()> work) {
  RankmeshDoubleEnqueue(
      stream,
      [](void* given) {
        auto* const boxed = static_cast<std::function<void()>*>(given);
        (*boxed)();
        delete boxed;
      },
      new std::function<void()>(std::move(work)));
}

struct Plain : Driver {
  void Activate() override {}
  std::function<bool()> Mark(Stream stream) override {
    const auto passed = std::make_shared<std::atomic<bool>>(false);
    Enqueue(stream, [passed] { *passed = true; });
    return [passed] { return passed->load(); };
  }
};

void Expect(bool right, const std::string& what) {
  if (!right) throw std::runtime_error(what);
}

Deadline In(int ms) { return Clock::now() + milliseconds(ms); }

struct Rank {
  std::shared_ptr<Communicator> comm;
  Stream stream;
  std::future<std::string> joined;
  std::shared_ptr<std::promise<std::string>> failed = std::make_shared<std::promise<std::string>>();
};

Rank Join(const UniqueId& id, int rank, int size, int ms = 20000) {
  static std::atomic<uintptr_t> streams = 1;
  Rank made;
  made.stream = reinterpret_cast<Stream>(streams++);
  made.comm = Communicator::New(Library::Open(), std::make_shared<Plain>(), rank, size,
                                [failed = made.failed](const Error& error) { failed->set_value(std::string(error.what()) + " [" + std::to_string(error.code) + "]"); });
  const auto promise = std::make_shared<std::promise<std::string>>();
  made.joined = promise->get_future();
  made.comm->Join(id, In(ms), [promise](const Error* error) { promise->set_value(error ? error->what() : ""); });
  return made;
}

UniqueId NewId() {
  UniqueId id;
  Library::Open().Call(Library::Open().GetUniqueId, -1, &id);
  return id;
}

void Joined(Rank& rank) {
  const auto why = rank.joined.get();
  Expect(why.empty(), "did not join: " + why);
}

std::vector<Rank> GroupOf(int size) {
  std::vector<Rank> ranks;
  const auto id = NewId();
  for (int rank = 0; rank < size; rank++) ranks.push_back(Join(id, rank, size));
  for (auto& rank : ranks) Joined(rank);
  return ranks;
}

void End(std::vector<Rank>& ranks) {
  for (auto& rank : ranks) rank.comm->Close(In(20000));
  for (auto& rank : ranks) Expect(rank.comm->Ended(In(30000)), "a communicator does not end");
}

void Sync(const Rank& rank) {
  std::promise<void> passed;
  Enqueue(rank.stream, [&] { passed.set_value(); });
  Expect(passed.get_future().wait_for(std::chrono::seconds(60)) == std::future_status::ready, "a stream does not pass");
}

/** Collectives of all kinds, drawn alike by all ranks. */
struct Drawn {
  Drawn(unsigned seed, int size) : random(seed), size(size) {}

  int Below(int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); }

  Collective Next() {
    Collective one{};
    one.kind = static_cast<Kind>(Below(kKinds));
    if (one.kind == kSend || one.kind == kReceive) one.kind = kAllToAllV;
    constexpr DataType kTypes[] = {kInt8, kUint8, kInt32, kUint32, kInt64, kUint64, kFloat16, kFloat32, kFloat64, kBfloat16};
    one.type = kTypes[Below(10)];
    one.reduction = Below(nccl_double::IsFloat(one.type) ? 5 : 4);
    one.root = Below(size);
    one.count = static_cast<size_t>(Below(4) ? Below(100) : Below(20000));
    one.timeout_ms = 60000;
    return one;
  }

  std::mt19937 random;
  const int size;
};

using Bytes = std::vector<std::byte>;

struct Case {
  Collective shape;
  /** Of kAllToAllV: rows from each to each. */
  std::vector<size_t> table;
  /** By rank. */
  std::vector<Collective> given;
  std::vector<Bytes> from, to, expected;
};

/** Small whole numbers, so that sums are exact in every type. */
Bytes Draw(std::mt19937& random, DataType type, size_t count, bool products) {
  Bytes bytes(count * kTypeBytes[type]);
  for (size_t i = 0; i < count; i++) {
    const auto value = static_cast<int64_t>(random() % (products ? 3 : 17));
    if (nccl_double::IsFloat(type)) nccl_double::StoreFloat(type, &bytes[i * kTypeBytes[type]], static_cast<double>(value - (products ? 0 : 8)));
    else nccl_double::StoreWhole(type, &bytes[i * kTypeBytes[type]], static_cast<uint64_t>(value));
  }
  return bytes;
}

/** What elementwise reductions of a slice of every rank's operand give, in 64 bits. */
Bytes Reduced(const std::vector<Bytes>& from, DataType type, int reduction, size_t at, size_t count) {
  using namespace nccl_double;
  Bytes result(count * kTypeBytes[type]);
  for (size_t i = 0; i < count; i++) {
    std::vector<double> values;
    for (const auto& bytes : from) {
      const std::byte* const element = &bytes[(at + i) * kTypeBytes[type]];
      values.push_back(IsFloat(type) ? LoadFloat(type, element) : static_cast<double>(static_cast<int64_t>(LoadWhole(type, element))));
    }
    double total = values[0];
    for (size_t rank = 1; rank < values.size(); rank++) {
      const double next = values[rank];
      total = reduction == rankmesh::nccl::kProd ? total * next : reduction == rankmesh::nccl::kMax ? std::max(total, next) : reduction == rankmesh::nccl::kMin ? std::min(total, next) : total + next;
    }
    if (reduction == rankmesh::nccl::kAvg) total *= 1.0 / static_cast<double>(values.size());
    std::byte* const into = &result[i * kTypeBytes[type]];
    if (IsFloat(type)) StoreFloat(type, into, total);
    else StoreWhole(type, into, static_cast<uint64_t>(static_cast<int64_t>(total)));
  }
  return result;
}

Bytes Slice(const Bytes& bytes, size_t at, size_t count) { return {bytes.begin() + static_cast<ptrdiff_t>(at), bytes.begin() + static_cast<ptrdiff_t>(at + count)}; }

Case MakeCase(Drawn& drawn) {
  Case made;
  Collective shape = drawn.Next();
  const auto size = static_cast<size_t>(drawn.size);
  if (shape.kind == kAllGatherV || shape.kind == kReduceScatterV) {
    for (size_t rank = 0; rank < size; rank++) shape.counts.push_back(static_cast<size_t>(drawn.Below(3) ? drawn.Below(3000) : 0));
  }
  if (shape.kind == kAllToAllV)
    for (size_t i = 0; i < size * size; i++) made.table.push_back(static_cast<size_t>(drawn.Below(3) ? drawn.Below(20000) : 0));
  const size_t bytes = kTypeBytes[shape.type];
  for (size_t rank = 0; rank < size; rank++) {
    Collective own = shape;
    if (shape.kind == kAllToAllV) {
      for (size_t peer = 0; peer < size; peer++) own.counts.push_back(made.table[rank * size + peer]);
      for (size_t peer = 0; peer < size; peer++) own.counts.push_back(made.table[peer * size + rank]);
    }
    const auto extent = ExtentOf(own, static_cast<int>(rank), drawn.size);
    made.from.push_back(Draw(drawn.random, shape.type, extent.from, shape.reduction == rankmesh::nccl::kProd));
    made.to.emplace_back(extent.to * bytes, std::byte{0xa5});
    made.given.push_back(own);
  }
  size_t before = 0;
  for (size_t rank = 0; rank < size; rank++) {
    Bytes expected;
    const auto add = [&](const Bytes& part) { expected.insert(expected.end(), part.begin(), part.end()); };
    const bool here = static_cast<int>(rank) == shape.root;
    const size_t block = shape.count * bytes;
    switch (shape.kind) {
      case kAllReduce:
        expected = Reduced(made.from, shape.type, shape.reduction, 0, shape.count);
        break;
      case kReduce:
        if (here) expected = Reduced(made.from, shape.type, shape.reduction, 0, shape.count);
        break;
      case kBroadcast:
        expected = made.from[static_cast<size_t>(shape.root)];
        break;
      case kGather:
        if (!here) break;
        [[fallthrough]];
      case kAllGather:
      case kAllGatherV:
        for (const auto& part : made.from) add(part);
        break;
      case kReduceScatter:
        expected = Reduced(made.from, shape.type, shape.reduction, rank * shape.count, shape.count);
        break;
      case kReduceScatterV:
        expected = Reduced(made.from, shape.type, shape.reduction, before, shape.counts[rank]);
        before += shape.counts[rank];
        break;
      case kAllToAll:
        for (const auto& part : made.from) add(Slice(part, rank * block, block));
        break;
      case kScatter:
        expected = Slice(made.from[static_cast<size_t>(shape.root)], rank * block, block);
        break;
      case kAllToAllV:
        for (size_t peer = 0; peer < size; peer++) {
          size_t at = 0;
          for (size_t i = 0; i < rank; i++) at += made.table[peer * size + i];
          add(Slice(made.from[peer], at * bytes, made.table[peer * size + rank] * bytes));
        }
        break;
      default:
        break;
    }
    made.expected.push_back(expected);
    made.given[rank].from = made.from[rank].data();
    made.given[rank].to = made.to[rank].data();
  }
  return made;
}

void Compare(const Case& one, size_t rank) {
  Expect(one.to[rank] == one.expected[rank], "kind " + std::to_string(one.shape.kind) + ", type " + std::to_string(one.shape.type) + ", reduction " +
                                                 std::to_string(one.shape.reduction) + ", count " + std::to_string(one.shape.count) + ": rank " + std::to_string(rank) + " got something else");
}

constexpr int kRounds = 40;

/** All ranks in this thread: one group of NCCL's for each collective. */
void InOneThread(unsigned seed) {
  for (int size = 1; size <= 4; size++) {
    auto ranks = GroupOf(size);
    Drawn drawn(seed + static_cast<unsigned>(size), size);
    std::vector<Case> cases;
    for (int round = 0; round < kRounds; round++) cases.push_back(MakeCase(drawn));
    for (const auto& one : cases) {
      std::vector<Issue> issues;
      for (size_t rank = 0; rank < ranks.size(); rank++) issues.push_back({ranks[rank].comm, one.given[rank], ranks[rank].stream});
      Run(issues);
    }
    for (size_t rank = 0; rank < ranks.size(); rank++) {
      Sync(ranks[rank]);
      for (const auto& one : cases) Compare(one, rank);
    }
    End(ranks);
  }
}

/** One rank of a group whose others are elsewhere. */
void Apart(const UniqueId& id, int rank, int size, unsigned seed) {
  std::vector<Rank> own;
  own.push_back(Join(id, rank, size));
  Joined(own[0]);
  Drawn drawn(seed, size);
  for (int round = 0; round < kRounds; round++) {
    const Case one = MakeCase(drawn);
    Run({{own[0].comm, one.given[static_cast<size_t>(rank)], own[0].stream}});
    Sync(own[0]);
    Compare(one, static_cast<size_t>(rank));
  }
  End(own);
}

void InThreads(unsigned seed) {
  const auto id = NewId();
  std::vector<std::future<void>> ranks;
  for (int rank = 0; rank < 3; rank++) ranks.push_back(std::async(std::launch::async, [=] { Apart(id, rank, 3, seed); }));
  for (auto& rank : ranks) rank.get();
}

void InProcesses(unsigned seed) {
  const auto id = NewId();  // the double makes no thread for that
  std::vector<pid_t> children;
  for (int rank = 0; rank < 4; rank++) {
    const pid_t child = fork();
    if (child == 0) {
      try {
        Apart(id, rank, 4, seed);
        _exit(0);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rank %d: %s\n", rank, error.what());
        _exit(1);
      }
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    waitpid(child, &status, 0);
    Expect(status == 0, "a rank's process failed");
  }
}

/** Halves of four ranks, by ncclCommSplit; then a rank that joins none. */
void Splits(unsigned seed) {
  auto ranks = GroupOf(4);
  for (const bool all : {true, false}) {
    std::vector<Rank> parts;
    for (int rank = 0; rank < 4; rank++) {
      Rank part;
      part.stream = ranks[static_cast<size_t>(rank)].stream;
      part.comm = Communicator::New(Library::Open(), std::make_shared<Plain>(), 1 - rank / 2, 2, [](const Error&) {});
      const auto promise = std::make_shared<std::promise<std::string>>();
      part.joined = promise->get_future();
      // Keys turn the order around.
      part.comm->Split(ranks[static_cast<size_t>(rank)].comm, all || rank % 2 ? rank % 2 : kNoColor, 1 - rank / 2, In(20000), [promise](const Error* error) { promise->set_value(error ? error->what() : ""); });
      parts.push_back(std::move(part));
    }
    for (auto& part : parts) Joined(part);
    for (size_t color = all ? 0 : 1; color < 2; color++) {
      std::vector<Rank> pair;
      pair.push_back(std::move(parts[color + 2])), pair.push_back(std::move(parts[color]));
      Drawn drawn(seed, 2);
      for (int round = 0; round < 5; round++) {
        const Case one = MakeCase(drawn);
        Run({{pair[0].comm, one.given[0], pair[0].stream}, {pair[1].comm, one.given[1], pair[1].stream}});
        for (size_t rank = 0; rank < 2; rank++) Sync(pair[rank]), Compare(one, rank);
      }
      End(pair);
    }
    for (auto& part : parts)
      if (part.comm) part.comm->Abort("not used"), Expect(part.comm->Ended(In(10000)), "a rank without a part does not end");
  }
  End(ranks);
}

Collective Sum(float* from, float* to, double timeout_ms) {
  return {kAllReduce, kFloat32, rankmesh::nccl::kSum, 0, 1, {}, reinterpret_cast<std::byte*>(from), reinterpret_cast<std::byte*>(to), timeout_ms};
}

/** What a call throws. */
template <typename Call>
std::string Thrown(Call call) {
  try {
    call();
  } catch (const std::exception& error) {
    return error.what();
  }
  return "nothing";
}

/** The faults that the environment plants, told as they reach whoever waits. */
void Faulty(bool joins) {
  const auto id = NewId();
  std::vector<Rank> ranks;
  for (int rank = 0; rank < 2; rank++) ranks.push_back(Join(id, rank, 2, joins ? 1500 : 20000));
  if (joins) {
    for (auto& rank : ranks) std::printf("joined: %s\n", rank.joined.get().c_str());
    for (auto& rank : ranks) Expect(rank.comm->Ended(In(10000)), "a communicator does not end");
    return;
  }
  for (auto& rank : ranks) Joined(rank);
  float x[2] = {1, 2}, y[2] = {0, 0};
  std::string thrown = "nothing";
  for (int call = 0; call < 3 && thrown == "nothing"; call++)
    thrown = Thrown([&] { Run({{ranks[0].comm, Sum(x, y, 700), ranks[0].stream}, {ranks[1].comm, Sum(x + 1, y + 1, 700), ranks[1].stream}}); });
  std::printf("thrown: %s\n", thrown.c_str());
  if (thrown == "nothing") {
    // One has found it by itself; whoever hears of that aborts the others.
    std::vector<std::shared_future<std::string>> told;
    for (auto& rank : ranks) told.push_back(rank.failed->get_future().share());
    const auto ready = [](const std::shared_future<std::string>& one) { return one.wait_for(milliseconds(1)) == std::future_status::ready; };
    while (!ready(told[0]) && !ready(told[1])) std::this_thread::sleep_for(milliseconds(1));
    for (size_t rank = 0; rank < 2; rank++) std::printf("rank %zu failed: %s\n", rank, ready(told[rank]) ? told[rank].get().c_str() : "no");
    for (auto& rank : ranks) rank.comm->Abort("the other one has failed");
  }
  for (auto& rank : ranks) Expect(rank.comm->Ended(In(10000)), "a communicator does not end");
  std::printf("later: %s\n", Thrown([&] { Run({{ranks[0].comm, Sum(x, y, 700), ranks[0].stream}}); }).c_str());
  for (auto& rank : ranks) Sync(rank);
  unsetenv("RANKMESH_NCCL_DOUBLE_FAULT");
  InThreads(1);
}

/** One of two ranks does not join, then does not come to a collective, then is aborted by hand. */
void Absent(unsigned) {
  auto lonely = Join(NewId(), 0, 2, 300);
  std::printf("joined: %s\n", lonely.joined.get().c_str());
  Expect(lonely.comm->Ended(In(10000)), "a communicator does not end");
  float x = 1, y = 0;
  auto ranks = GroupOf(2);
  Run({{ranks[0].comm, Sum(&x, &y, 300), ranks[0].stream}});
  std::printf("rank 0 failed: %s\n", ranks[0].failed->get_future().get().c_str());
  Expect(ranks[0].comm->failure().has_value() && !ranks[1].comm->failure(), "it is not known which communicator has failed");
  ranks[1].comm->Abort("the other one has failed");
  ranks = GroupOf(2);
  Run({{ranks[1].comm, Sum(&x, &y, 60000), ranks[1].stream}});
  std::this_thread::sleep_for(milliseconds(30));
  for (auto& rank : ranks) rank.comm->Abort("by hand");
  for (auto& rank : ranks) Expect(rank.comm->Ended(In(10000)), "a communicator does not end");
  Sync(ranks[1]);
  std::printf("unfinished: %zu and %zu\n", ranks[0].comm->unfinished(), ranks[1].comm->unfinished());
  std::printf("later: %s\n", Thrown([&] { Run({{ranks[1].comm, Sum(&x, &y, 300), ranks[1].stream}}); }).c_str());
}

/** What may run calls again is ended before its communicator, by whom it ends, and none is kept then. */
void Reruns(unsigned) {
  const auto alive = std::make_shared<int>(0);
  for (const bool aborted : {false, true}) {
    auto ranks = GroupOf(2);
    std::vector<std::promise<std::string>> ended(2);
    for (size_t rank = 0; rank < 2; rank++) ranks[rank].comm->Keep({alive, [&ended, rank](const std::string& why) { ended[rank].set_value(why); }});
    for (auto& rank : ranks) {
      if (aborted) rank.comm->Abort("by hand");
      else rank.comm->Close(In(10000));
    }
    for (auto& rank : ranks) Expect(rank.comm->Ended(In(10000)), "a communicator does not end");
    for (auto& one : ended) std::printf("ended: %s\n", one.get_future().get().c_str());
    std::printf("later: %s\n", Thrown([&] { ranks[0].comm->Keep({alive, [](const std::string&) {}}); }).c_str());
  }
}

/** Scaled sums, registered memory and windows: what came with later versions. */
void Extras(unsigned) {
  auto ranks = GroupOf(2);
  const auto& nccl = Library::Open();
  std::printf("version %s\n", VersionText(nccl.version).c_str());
  const auto say = [](const char* what, const std::string& thrown) { std::printf("%s: %s\n", what, thrown.c_str()); };
  say("scaled", Thrown([&] {
        for (const DataType type : {kFloat32, kFloat64, kFloat16, kBfloat16, kInt32}) {
          const double scales[2] = {3, -2.5}, whole[2] = {3, -2};
          const bool floats = nccl_double::IsFloat(type);
          const auto& scale = floats ? scales : whole;
          std::byte x[2][8], y[2][8];
          std::vector<Issue> issues;
          for (size_t rank = 0; rank < 2; rank++) {
            if (floats) nccl_double::StoreFloat(type, x[rank], 4);
            else nccl_double::StoreWhole(type, x[rank], 4);
            const int reduction = ranks[rank].comm->CreateScaledSum(scale[rank], type);
            issues.push_back({ranks[rank].comm, {kAllReduce, type, reduction, 0, 1, {}, x[rank], y[rank], 20000}, ranks[rank].stream});
          }
          Run(issues);
          for (size_t rank = 0; rank < 2; rank++) {
            Sync(ranks[rank]);
            const double sum = floats ? nccl_double::LoadFloat(type, y[rank]) : static_cast<double>(static_cast<int64_t>(nccl_double::LoadWhole(type, y[rank])));
            Expect(sum == 4 * scale[0] + 4 * scale[1], "a scaled sum is wrong: " + std::to_string(sum));
            ranks[rank].comm->DestroyScaledSum(issues[rank].collective.reduction);
          }
        }
      }));
  say("registered", Thrown([&] {
        void* memory = nullptr;
        nccl.Call(nccl.MemAlloc, -1, &memory, size_t{10000});
        void* const known = ranks[0].comm->Register(memory, 10000, false);
        ranks[0].comm->Deregister(known);
        nccl.Call(nccl.MemFree, -1, memory);
      }));
  say("window", Thrown([&] {
        void* memory = nullptr;
        nccl.Call(nccl.MemAlloc, -1, &memory, size_t{10000});
        void* const window = ranks[0].comm->Register(memory, 10000, true);
        ranks[0].comm->Deregister(window);
        nccl.Call(nccl.MemFree, -1, memory);
      }));
  say("split", Thrown([&] { nccl.Need(nccl.CommSplit); }));
  End(ranks);
}

}  // namespace

int main(int count, char** given) {
  const std::string what = count > 1 ? given[1] : "";
  const auto seed = static_cast<unsigned>(count > 2 ? std::stoul(given[2]) : 1);
  try {
    if (what == "processes") InProcesses(seed);
    else if (what == "one-thread") InOneThread(seed);
    else if (what == "threads") InThreads(seed);
    else if (what == "splits") Splits(seed);
    else if (what == "faulty" || what == "faulty-join") Faulty(what == "faulty-join");
    else if (what == "absent") Absent(seed);
    else if (what == "reruns") Reruns(seed);
    else if (what == "extras") Extras(seed);
    else throw std::runtime_error("no such test: " + what);
    std::printf("done\n");
    return 0;
  } catch (const std::exception& error) {
    std::printf("FAILED: %s\n", error.what());
    return 1;
  }
}
