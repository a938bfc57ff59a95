// What the commands of a program refer to, found once for all runs.
#include "program.h"

#include <algorithm>

namespace rankmesh::cpu {

void Program::Add(std::vector<Command> commands, const std::vector<std::shared_ptr<Progress>>& queues) {
  Part& part = parts.emplace_back();
  for (const Command& command : commands) {
    size_t refers = 0;
    if (command.call.op == kWait) {
      refers = static_cast<size_t>(std::find(queues.begin(), queues.end(), command.queue) - queues.begin());
      if (refers == queues.size()) throw BadCommand("a program waits for a queue that has no part in it");
      if (refers + 1 == parts.size()) throw BadCommand("a queue waits for itself");
    } else if (command.meeting) {
      refers = static_cast<size_t>(std::find(meetings.begin(), meetings.end(), command.meeting) - meetings.begin());
      if (refers == meetings.size()) meetings.push_back(command.meeting);
    }
    part.refers.push_back(refers);
  }
  part.commands = std::move(commands);
}

Run::Run(std::shared_ptr<const Program> given, std::vector<uint64_t> so_far) : program(std::move(given)), bases(std::move(so_far)) {
  gatherings.reserve(program->meetings.size());
  for (const auto& meeting : program->meetings) gatherings.push_back(std::make_shared<Gathering>(meeting->members));
}

}  // namespace rankmesh::cpu
