// Commands as JavaScript wrote them, checked: operands that lie in their blocks, sizes that can be. What is refused here never runs.
#pragma once
#include <array>
#include <functional>
#include <memory>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "call.h"

namespace rankmesh::engine {

/** Memory that commands use, of which each kind of engine has kinds of its own; it lives as long as somebody refers to it. */
struct Block {
  virtual ~Block() = default;
  std::byte* data = nullptr;
  size_t bytes = 0;
};

struct Meeting;

/** What a command of one kind of engine alone holds. */
struct Extra {
  virtual ~Extra() = default;
};

struct Command {
  Call call{};
  std::array<std::shared_ptr<Block>, kOperands> blocks;
  std::vector<Slice> slices;
  std::vector<std::shared_ptr<Block>> slice_blocks;
  /** Of kWait: the queue that is waited for, as its engine registered it, until `epoch` of its commands have run. */
  std::shared_ptr<void> queue;
  uint64_t epoch = 0;
  /** Of kMeet. */
  std::shared_ptr<Meeting> meeting;
  /** Of ops from kOps on. */
  std::shared_ptr<Extra> extra;
};

/** Where several queues come together for the work of one command, which ends for all of them at once. */
struct Meeting {
  explicit Meeting(uint32_t count) : members(count) {}
  virtual ~Meeting() = default;
  const uint32_t members;
  /** On the JavaScript thread: commands that have named it. */
  uint32_t named = 0;
  /** What the queue that leads brought. */
  Command work;
  bool led = false;
};

class Reader;

/** Reads the words behind the op of a command that is not of all engines, and sets its `extra`. */
using ReadExtra = std::function<void(Reader&, Command&)>;

/** The blocks and queues of a device, by number. Used on the JavaScript thread alone. */
struct Registry {
  virtual ~Registry() = default;
  virtual std::shared_ptr<Meeting> NewMeeting(uint32_t members) { return std::make_shared<Meeting>(members); }

  std::unordered_map<uint32_t, std::shared_ptr<Block>> blocks;
  std::vector<std::shared_ptr<void>> queues;
  /** Those that have not been named by all their members. */
  std::unordered_map<uint64_t, std::shared_ptr<Meeting>> meetings;
  /** By op, from kOps on. */
  std::unordered_map<uint32_t, ReadExtra> extras;
  uint32_t next = 1;
};

struct BadCommand : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/** Throws BadCommand for words that are no commands. */
std::vector<Command> ReadCommands(const double* words, size_t count, Registry& registry);

}  // namespace rankmesh::engine
