// Reads the commands, checked against the communicator that they name, and gathers them until NCCL gets them together.
#include "commands.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "../cuda/program.h"
#include "../engine/reader.h"

namespace rankmesh::nccl {
namespace {

struct Numbers {
  std::mutex mutex;
  std::unordered_map<uint32_t, std::weak_ptr<Communicator>> communicators;
  uint32_t next = 1;
};

Numbers& All() {
  static Numbers* const all = new Numbers();
  return *all;
}

std::shared_ptr<Communicator> Find(uint32_t number) {
  const std::lock_guard lock(All().mutex);
  const auto found = All().communicators.find(number);
  return found == All().communicators.end() ? nullptr : found->second.lock();
}

/** A collective that a stream has come to, and the memory that it uses. */
struct Gathered {
  Issue issue;
  std::shared_ptr<engine::Block> from, to;
};

thread_local std::optional<std::vector<Gathered>> gathered;

/** One call as the programs have it that ranks of this thread capture together: given to NCCL when all of these have come to it. */
struct Round {
  size_t members;
  std::vector<Issue> issues;
  bool given = false;
};

/** A round that not all members have named. */
struct Named {
  std::weak_ptr<Round> round;
  size_t named = 0;
};

/** The round `number`, as commands of this thread name it, each once. */
std::shared_ptr<Round> RoundOf(uint64_t number, size_t members) {
  thread_local std::unordered_map<uint64_t, Named> all;
  Named& entry = all[number];
  auto round = entry.round.lock();
  if (!round) {
    round = std::make_shared<Round>(Round{members, {}});
    entry = {round};
  }
  if (++entry.named == members) all.erase(number);
  return round;
}

/** A communicator as a program has it that holds calls of it: launches are watched like its other collectives. */
struct Holder : cuda::Party {
  std::shared_ptr<Communicator> communicator;
  double timeout_ms = 0;

  void Launched(cuda::StreamHandle stream) override { communicator->Expect(stream, timeout_ms, "a recorded step"); }
};

struct Command : cuda::StreamExtra {
  std::shared_ptr<Communicator> communicator;
  Collective collective;
  std::shared_ptr<engine::Block> from, to;
  std::shared_ptr<Round> round;

  void Run(cuda::Stream& stream) override {
    const Issue issue{communicator, collective, stream.handle()};
    if (!stream.capturing()) {
      if (!gathered) throw engine::BadCommand("a collective of NCCL's that is in no group");
      gathered->push_back({issue, from, to});
      return;
    }
    round->issues.push_back(issue);
    if (round->issues.size() < round->members) return;
    nccl::Run(round->issues, true);
    round->given = true;
  }

  bool Waits() const override { return !round->given; }

  void Captured(const std::shared_ptr<cuda::Executable>& executable) override {
    auto& party = executable->parties[communicator.get()];
    if (!party) {
      const auto holder = std::make_shared<Holder>();
      holder->communicator = communicator;
      communicator->Keep({executable, [program = std::weak_ptr(executable)](const std::string& why) {
                            if (const auto alive = program.lock()) alive->End(why);
                          }});
      party = holder;
    }
    auto& timeout = static_cast<Holder&>(*party).timeout_ms;
    timeout = std::max(timeout, collective.timeout_ms);
  }
};

void Read(engine::Reader& reader, engine::Command& command) {
  const auto read = std::make_shared<Command>();
  auto& [kind, type, reduction, root, count, counts, from, to, timeout] = read->collective;
  read->communicator = Find(static_cast<uint32_t>(reader.Size(UINT32_MAX)));
  if (!read->communicator) reader.Fail("a communicator that is not there");
  const int size = read->communicator->size();
  kind = static_cast<Kind>(reader.Size(kKinds - 1));
  type = static_cast<DataType>(reader.Size(kDataTypes - 1));
  reduction = static_cast<int>(reader.Size(INT_MAX));
  root = static_cast<int>(reader.Size(size - 1));
  count = static_cast<size_t>(reader.Size());
  timeout = reader.Word();
  const auto number = static_cast<uint64_t>(reader.Size());
  const auto members = static_cast<size_t>(reader.Size(UINT32_MAX));
  if (members == 0) reader.Fail("a collective without ranks");
  read->round = RoundOf(number, members);
  const int listed = kind == kAllToAllV ? 2 * size : kind == kAllGatherV || kind == kReduceScatterV ? size : 0;
  for (int i = 0; i < listed; i++) counts.push_back(static_cast<size_t>(reader.Size()));
  const auto extent = ExtentOf(read->collective, read->communicator->rank(), size);
  const auto bytes = static_cast<double>(kTypeBytes[type]);
  from = reader.Place(static_cast<double>(extent.from) * bytes, bytes, read->from);
  to = reader.Place(static_cast<double>(extent.to) * bytes, bytes, read->to);
  command.extra = read;
}

}  // namespace

void AddCommands(engine::Registry& registry) { registry.extras[kOp] = Read; }

uint32_t NumberOf(const std::shared_ptr<Communicator>& communicator) {
  const std::lock_guard lock(All().mutex);
  std::erase_if(All().communicators, [](const auto& entry) { return entry.second.expired(); });
  All().communicators[All().next] = communicator;
  return All().next++;
}

void Begin() { gathered.emplace(); }

void End(bool issue) {
  const auto all = std::exchange(gathered, std::nullopt);
  if (!all || !issue) return;
  std::vector<Issue> issues;
  for (const auto& one : *all) issues.push_back(one.issue);
  Run(issues);
}

}  // namespace rankmesh::nccl
