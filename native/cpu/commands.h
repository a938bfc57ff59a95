// Commands as JavaScript wrote them, checked: operands that lie in their blocks, sizes that can be. What is refused here never runs.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <unordered_map>
#include <vector>

#include "bell.h"
#include "kernels.h"

namespace rankmesh::cpu {

/** Memory that tensors lie in, aligned to 64 bytes; it lives as long as a command or a buffer refers to it. */
struct Block {
  /** Throws std::bad_alloc. */
  explicit Block(size_t bytes);
  Block(const Block&) = delete;
  ~Block();
  std::byte* data;
  size_t bytes;
};

/** How many commands a queue has run. */
struct Progress {
  alignas(64) std::atomic<uint64_t> completed = 0;
  /** It runs no more. */
  std::atomic<bool> ended = false;
  Bell bell;
};

struct Meeting;

struct Command {
  Call call{};
  std::array<std::shared_ptr<Block>, kOperands> blocks;
  std::vector<Slice> slices;
  std::vector<std::shared_ptr<Block>> slice_blocks;
  /** Of kWait: whose progress is waited for, until it is `epoch`. */
  std::shared_ptr<Progress> other;
  uint64_t epoch = 0;
  /** Of kMeet. */
  std::shared_ptr<Meeting> meeting;
};

/** Where several queues come together to share out the work of one command, which ends for all of them at once. */
struct Meeting {
  explicit Meeting(uint32_t count) : members(count) {}
  const uint32_t members;
  /** On the JavaScript thread: commands that have named it. */
  uint32_t named = 0;
  /** What the queue that leads brought. */
  Command work;
  bool led = false;
  alignas(64) std::atomic<uint32_t> arrived = 0;
  alignas(64) std::atomic<size_t> next = 0;
  alignas(64) std::atomic<size_t> finished = 0;
  /** A member has ended and will not come. */
  std::atomic<bool> broken = false;
  Bell bell;
};

/** The blocks and queues of a device, by number. Used on the JavaScript thread alone. */
struct Registry {
  std::unordered_map<uint32_t, std::shared_ptr<Block>> blocks;
  std::vector<std::shared_ptr<Progress>> queues;
  /** Those that have not been named by all their members. */
  std::unordered_map<uint64_t, std::shared_ptr<Meeting>> meetings;
  uint32_t next = 1;
};

struct BadCommand : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/** Throws BadCommand for words that are no commands. */
std::vector<Command> ReadCommands(const double* words, size_t count, Registry& registry);

}  // namespace rankmesh::cpu
