// The streams of a program are captured together: the first one begins, the others branch off from it and come back in the end.
#include "program.h"

#include <utility>

namespace rankmesh::cuda {

void Executable::Launch(StreamHandle stream) {
  GraphExecHandle handle;
  {
    const std::lock_guard lock(mutex_);
    if (!ended_.empty()) throw std::runtime_error(ended_);
    launching_ = true;
    handle = handle_;
  }
  // Without the lock: where the device has enough to do, this waits for it.
  const Result result = device_->driver.cuGraphLaunch(handle, stream);
  std::string ended;
  {
    const std::lock_guard lock(mutex_);
    launching_ = false;
    ended = ended_;
  }
  if (!ended.empty()) End(ended);
  device_->driver.Check(result, "cuGraphLaunch");
}

void Executable::End(const std::string& why) {
  GraphExecHandle handle;
  {
    const std::lock_guard lock(mutex_);
    if (ended_.empty()) ended_ = why;
    if (launching_) return;
    handle = std::exchange(handle_, nullptr);
  }
  if (handle && device_->TryEnter()) device_->driver.cuGraphExecDestroy(handle);
}

std::string Executable::ended() {
  const std::lock_guard lock(mutex_);
  return ended_;
}

Program::Program(Given given)
    : engine_(*given.engine), device_(engine_.device()), parts_(std::move(given.parts)), done_(parts_.size()), come_(parts_.size()) {}

std::vector<std::unique_ptr<Program>> Program::Capture(std::vector<Given> all) {
  std::vector<std::unique_ptr<Program>> programs;
  for (Given& given : all) {
    programs.emplace_back(new Program(std::move(given)));
    programs.back()->Begin();
  }
  for (bool moved = true; moved;) {
    moved = false;
    for (const auto& program : programs) moved = program->Advance() || moved;
  }
  for (const auto& program : programs) program->Finish();
  return programs;
}

Program::~Program() {
  GraphHandle graph = nullptr;
  if (capturing_) {
    // Ends the capture that failed, of all streams.
    if (device_->TryEnter() && device_->driver.cuStreamEndCapture(parts_.front().stream->handle(), &graph) == kSuccess && graph)
      device_->driver.cuGraphDestroy(graph);
    Capturing(false);
  }
  engine_.Retire(std::make_shared<std::vector<Part>>(std::move(parts_)));
  if (executable_) engine_.Retire(std::move(executable_));
}

void Program::Capturing(bool is) {
  capturing_ = is;
  for (const Part& part : parts_) part.stream->Capturing(is);
}

void Program::Begin() {
  device_->Enter();
  Stream& lead = *parts_.front().stream;
  device_->driver.Check(device_->driver.cuStreamBeginCapture_v2(lead.handle(), kCaptureRelaxed), "cuStreamBeginCapture");
  Capturing(true);
  for (const Part& part : parts_) part.stream->WaitFor(lead);
}

bool Program::Advance() {
  device_->Enter();
  const auto index_of = [&](const void* stream) {
    size_t i = 0;
    while (i < parts_.size() && parts_[i].stream != stream) i++;
    if (i == parts_.size()) throw engine::BadCommand("a wait for a queue that has no part in the program");
    return i;
  };
  const auto waits = [](const engine::Command& command) {
    if (command.meeting) return !static_cast<const Gathering&>(*command.meeting).done;
    const auto* const extra = dynamic_cast<const StreamExtra*>(command.extra.get());
    return extra && extra->Waits();
  };
  const auto advance = [&](size_t i) {
    const engine::Command& command = parts_[i].commands[done_[i]];
    if (command.call.op == engine::kWait && done_[index_of(command.queue.get())] < command.epoch) return false;
    if (!come_[i]) parts_[i].stream->Run(command);
    come_[i] = waits(command);
    if (come_[i]) return false;
    done_[i]++;
    return true;
  };
  bool any = false;
  for (bool moved = true; moved;) {
    moved = false;
    for (size_t i = 0; i < parts_.size(); i++)
      while (done_[i] < parts_[i].commands.size() && advance(i)) any = moved = true;
  }
  return any;
}

void Program::Finish() {
  for (size_t i = 0; i < parts_.size(); i++)
    if (done_[i] < parts_[i].commands.size()) throw engine::BadCommand("commands that wait for each other");
  const Driver& driver = device_->driver;
  device_->Enter();
  Stream& lead = *parts_.front().stream;
  for (const Part& part : parts_) lead.WaitFor(*part.stream);
  GraphHandle graph = nullptr;
  driver.Check(driver.cuStreamEndCapture(lead.handle(), &graph), "cuStreamEndCapture");
  Capturing(false);
  GraphExecHandle handle = nullptr;
  const Result result = driver.cuGraphInstantiateWithFlags(&handle, graph, 0);
  driver.cuGraphDestroy(graph);
  driver.Check(result, "cuGraphInstantiate");
  executable_ = std::make_shared<Executable>(device_, handle);
  for (const Part& part : parts_)
    for (const engine::Command& command : part.commands)
      if (auto* const extra = dynamic_cast<StreamExtra*>(command.extra.get())) extra->Captured(executable_);
}

void Program::Launch() {
  engine_.Submit([&] {
    Stream& lead = *parts_.front().stream;
    for (const Part& part : parts_) lead.WaitFor(*part.stream);
    executable_->Launch(lead.handle());
    lead.Moved();
    for (const auto& [about, party] : executable_->parties) party->Launched(lead.handle());
    for (const Part& part : parts_) part.stream->WaitFor(lead);
  });
}

}  // namespace rankmesh::cuda
