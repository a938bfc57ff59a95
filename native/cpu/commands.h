// What the CPU engine adds to commands: memory of the system, how far queues have come, and where their threads meet.
#pragma once
#include <atomic>

#include "../engine/commands.h"
#include "bell.h"

namespace rankmesh::cpu {

using namespace engine;

/** Memory aligned to 64 bytes. */
struct HostBlock : Block {
  /** Throws std::bad_alloc. */
  explicit HostBlock(size_t bytes);
  HostBlock(const HostBlock&) = delete;
  ~HostBlock();
};

/** How many commands a queue has run. */
struct Progress {
  alignas(64) std::atomic<uint64_t> completed = 0;
  /** It runs no more. */
  std::atomic<bool> ended = false;
  Bell bell;
};

/** A meeting of threads that share out the pieces of one command's work. */
struct Gathering : Meeting {
  using Meeting::Meeting;
  alignas(64) std::atomic<uint32_t> arrived = 0;
  alignas(64) std::atomic<size_t> next = 0;
  alignas(64) std::atomic<size_t> finished = 0;
  /** A member has ended and will not come. */
  std::atomic<bool> broken = false;
  Bell bell;
};

/** Its queues are of Progress, its meetings Gatherings. */
struct CpuRegistry : Registry {
  std::shared_ptr<Meeting> NewMeeting(uint32_t members) override { return std::make_shared<Gathering>(members); }
};

}  // namespace rankmesh::cpu
