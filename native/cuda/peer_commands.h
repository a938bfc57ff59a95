// The commands of collectives over peers' memory: their words, and which kernel each of them is. Host code without the driver.
#pragma once
#include "../engine/reader.h"
#include "launches.h"

namespace rankmesh::cuda {

/** As runtime/device/engine/commands.ts numbers them. */
constexpr uint32_t kPeerReduce = 17, kPeerNorm = 18, kPeerGather = 20, kPeerMoe = 21;

/** What such a command is: one kernel, and the memory that it uses. */
struct PeerLaunch : engine::Extra {
  Launch launch;
  std::vector<std::shared_ptr<engine::Block>> blocks;
};

/** A registry of a CUDA device reads these commands from now on; the `extra` of each is a PeerLaunch. */
void AddPeerCommands(engine::Registry& registry);

}  // namespace rankmesh::cuda
