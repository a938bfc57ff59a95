// Commands as JavaScript wrote them, checked: operands that lie in their blocks, sizes that can be. What is refused here never runs.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <unordered_map>
#include <vector>

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
};

struct Command {
  Call call;
  std::array<std::shared_ptr<Block>, kOperands> blocks;
  /** Of kWait: whose progress is waited for, until it is `epoch`. */
  std::shared_ptr<Progress> other;
  uint64_t epoch = 0;
};

/** The blocks and queues of a device, by number. Used on the JavaScript thread alone. */
struct Registry {
  std::unordered_map<uint32_t, std::shared_ptr<Block>> blocks;
  std::vector<std::shared_ptr<Progress>> queues;
  uint32_t next = 1;
};

struct BadCommand : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/** Throws BadCommand for words that are no commands. */
std::vector<Command> ReadCommands(const double* words, size_t count, const Registry& registry);

}  // namespace rankmesh::cpu
