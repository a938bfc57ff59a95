// Collectives of NCCL as commands of a CUDA device's queues. What queues of this thread are given between Begin and End goes to NCCL at the end.
#pragma once
#include <cstdint>
#include <memory>

#include "../engine/commands.h"
#include "communicator.h"

namespace rankmesh::nccl {

/** As runtime/device/engine/commands.ts numbers it. */
constexpr uint32_t kOp = 19;

/** A registry of a CUDA device reads these commands from now on. */
void AddCommands(engine::Registry& registry);

/** The number by which commands of any thread name a communicator, as long as it lives. */
uint32_t NumberOf(const std::shared_ptr<Communicator>& communicator);

/** Collectives that streams come to on this thread are gathered from now on. */
void Begin();
/** Gives them to NCCL, as one group, or forgets them. @throws Error, which names the rank. */
void End(bool issue);

}  // namespace rankmesh::nccl
