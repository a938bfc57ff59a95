// The streams of a program are captured together: the first one begins, the others branch off from it and come back in the end.
#include "program.h"

namespace rankmesh::cuda {

Program::Program(Engine& engine, std::vector<Part> parts) : engine_(engine), device_(engine.device()), parts_(std::move(parts)) {
  const Driver& driver = device_->driver;
  device_->Enter();
  Stream& lead = *parts_.front().stream;
  const auto capturing = [&](bool is) {
    for (const Part& part : parts_) part.stream->Capturing(is);
  };
  driver.Check(driver.cuStreamBeginCapture_v2(lead.handle(), kCaptureRelaxed), "cuStreamBeginCapture");
  capturing(true);
  GraphHandle graph = nullptr;
  try {
    for (const Part& part : parts_) part.stream->WaitFor(lead);
    Run();
    for (const Part& part : parts_) lead.WaitFor(*part.stream);
    driver.Check(driver.cuStreamEndCapture(lead.handle(), &graph), "cuStreamEndCapture");
  } catch (...) {
    // Ends the capture that failed, of all streams.
    if (driver.cuStreamEndCapture(lead.handle(), &graph) == kSuccess && graph) driver.cuGraphDestroy(graph);
    capturing(false);
    throw;
  }
  capturing(false);
  const Result result = driver.cuGraphInstantiateWithFlags(&exec_, graph, 0);
  driver.cuGraphDestroy(graph);
  driver.Check(result, "cuGraphInstantiate");
}

Program::~Program() {
  engine_.Retire(std::make_shared<std::vector<Part>>(std::move(parts_)));
  if (!exec_) return;
  engine_.Retire(std::shared_ptr<void>(exec_, [device = device_](void* exec) {
    if (device->TryEnter()) device->driver.cuGraphExecDestroy(static_cast<GraphExecHandle>(exec));
  }));
}

void Program::Run() {
  std::vector<size_t> done(parts_.size());
  const auto index_of = [&](const void* stream) {
    size_t i = 0;
    while (i < parts_.size() && parts_[i].stream != stream) i++;
    if (i == parts_.size()) throw engine::BadCommand("a wait for a queue that has no part in the program");
    return i;
  };
  /** Whether the next command of a part has been run, or has come to a meeting. */
  std::vector<bool> met(parts_.size());
  const auto advance = [&](size_t i) {
    const engine::Command& command = parts_[i].commands[done[i]];
    if (command.call.op == engine::kWait && done[index_of(command.queue.get())] < command.epoch) return false;
    if (!met[i]) parts_[i].stream->Run(command);
    met[i] = command.meeting != nullptr;
    if (met[i] && !static_cast<const Gathering&>(*command.meeting).done) return false;
    met[i] = false;
    done[i]++;
    return true;
  };
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t i = 0; i < parts_.size(); i++)
      while (done[i] < parts_[i].commands.size() && advance(i)) moved = true;
  }
  for (size_t i = 0; i < parts_.size(); i++)
    if (done[i] < parts_[i].commands.size()) throw engine::BadCommand("commands that wait for each other");
}

void Program::Launch() {
  engine_.Submit([&] {
    const Driver& driver = device_->driver;
    Stream& lead = *parts_.front().stream;
    for (const Part& part : parts_) lead.WaitFor(*part.stream);
    driver.Check(driver.cuGraphLaunch(exec_, lead.handle()), "cuGraphLaunch");
    lead.Moved();
    for (const Part& part : parts_) part.stream->WaitFor(lead);
  });
}

}  // namespace rankmesh::cuda
