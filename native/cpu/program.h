// Programs: commands of several queues, read once, that the queues run again and again.
#pragma once
#include "commands.h"

namespace rankmesh::cpu {

/** What the commands of one queue refer to in a run: of a wait the part whose queue it is for, of a meeting its number. */
struct Part {
  std::vector<Command> commands;
  std::vector<size_t> refers;
};

struct Program {
  std::vector<Part> parts;
  /** Members of each meeting, and what its lead brings. */
  std::vector<std::shared_ptr<Meeting>> meetings;

  /** Takes a part whose queue is the `queues`-th of those that it may wait for. Throws BadCommand for waits for others. */
  void Add(std::vector<Command> commands, const std::vector<std::shared_ptr<Progress>>& queues);
};

/** One run of a program: what its waits and its meetings are this time. */
struct Run {
  /** `bases` are the commands of each part's queue so far. */
  Run(std::shared_ptr<const Program> program, std::vector<uint64_t> bases);
  const std::shared_ptr<const Program> program;
  const std::vector<uint64_t> bases;
  std::vector<std::shared_ptr<Gathering>> gatherings;
};

}  // namespace rankmesh::cpu
