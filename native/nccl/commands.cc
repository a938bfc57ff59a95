// Reads the commands, checked against the communicator that they name, and gathers them until NCCL gets them together.
#include "commands.h"

#include <mutex>
#include <optional>
#include <unordered_map>
#include <utility>

#include "../cuda/stream.h"
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

struct Command : cuda::StreamExtra {
  std::shared_ptr<Communicator> communicator;
  Collective collective;
  std::shared_ptr<engine::Block> from, to;

  void Run(cuda::Stream& stream) override {
    if (!gathered) throw engine::BadCommand("a collective of NCCL's that is in no group");
    gathered->push_back({{communicator, collective, stream.handle()}, from, to});
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
