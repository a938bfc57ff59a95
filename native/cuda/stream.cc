// Commands become launches, products, and copies. Streams wait for each other by events, and the thread waits for none of them.
#include "stream.h"

#include <algorithm>

#include "engine.h"
#include "peer_commands.h"

namespace rankmesh::cuda {
namespace {

/** CU_LAUNCH_PARAM_BUFFER_POINTER, CU_LAUNCH_PARAM_BUFFER_SIZE, CU_LAUNCH_PARAM_END. */
void* const kParametersAt = reinterpret_cast<void*>(1);
void* const kParametersSize = reinterpret_cast<void*>(2);
void* const kParametersEnd = nullptr;

}  // namespace

Stream::Stream(Engine& engine) : engine_(engine), device_(engine.device()) {
  device_->Enter();
  mark_ = std::make_unique<Event>(device_, kEventUntimed);
  device_->driver.Check(device_->driver.cuStreamCreate(&handle_, kStreamNonBlocking), "cuStreamCreate");
}

void Stream::Close() {
  mark_.reset();
  measurements_.clear();
  scratch_.clear();
  workspace_.reset();
  if (handle_ && device_->TryEnter()) device_->driver.cuStreamDestroy_v2(handle_);
  handle_ = nullptr;
}

void Stream::Run(const engine::Command& command) {
  if (!handle_) return;
  if (command.call.op == engine::kWait) {
    WaitFor(*static_cast<Stream*>(command.queue.get()));
    return;
  }
  if (!command.meeting) {
    RunTimed(command);
    return;
  }
  auto& meeting = static_cast<Gathering&>(*command.meeting);
  meeting.streams.push_back(this);
  if (meeting.streams.size() < meeting.members) return;
  for (Stream* const other : meeting.streams) WaitFor(*other);
  RunTimed(meeting.work);
  for (Stream* const other : meeting.streams) other->WaitFor(*this);
  meeting.done = true;
}

void Stream::RunTimed(const engine::Command& command) {
  moved_ = true;
  if (!measuring_ || capturing_) {
    RunWork(command);
    return;
  }
  Measurement measurement{{command.call.op, command.call.types[0], command.call.types[1]},
                          std::make_unique<Event>(device_, kEventTimed),
                          std::make_unique<Event>(device_, kEventTimed)};
  measurement.start->Record(handle_);
  RunWork(command);
  measurement.end->Record(handle_);
  measurements_.push_back(std::move(measurement));
}

void Stream::RunWork(const engine::Command& command) {
  if (auto* const extra = dynamic_cast<StreamExtra*>(command.extra.get())) {
    extra->Run(*this);
  } else if (const auto* const peers = dynamic_cast<const PeerLaunch*>(command.extra.get())) {
    Launch(peers->launch);
  } else if (command.call.op == engine::kCopy) {
    // Between any two kinds of memory.
    Copy(command.call.operands[1], command.call.operands[0], command.call.numbers[0]);
  } else if (!RunSteps(LaunchesOf(command.call, engine_.traits, *this))) {
    Traits own = engine_.traits;
    own.cublaslt = false;
    RunSteps(LaunchesOf(command.call, own, *this));
  }
}

bool Stream::RunSteps(const std::vector<Step>& steps) {
  for (const Step& step : steps) {
    if (const auto* const launch = std::get_if<cuda::Launch>(&step)) {
      Launch(*launch);
    } else if (const auto* const gemm = std::get_if<Gemm>(&step)) {
      if (!workspace_) workspace_ = std::make_unique<DeviceBlock>(device_, Blas::kWorkspaceBytes);
      if (!engine_.blas->Multiply(*gemm, handle_, workspace_->data)) return false;
    } else if (const auto* const copy = std::get_if<cuda::Copy>(&step)) {
      Copy(copy->to, copy->from, copy->bytes);
    }
  }
  return true;
}

void Stream::Launch(const cuda::Launch& launch) {
  if (launch.grid[0] == 0 || launch.grid[1] == 0 || launch.grid[2] == 0) return;
  moved_ = true;
  const Driver& driver = device_->driver;
  size_t bytes = launch.arguments.size();
  void* extra[] = {kParametersAt, const_cast<std::byte*>(launch.arguments.data()), kParametersSize, &bytes, kParametersEnd};
  const FunctionHandle function = device_->Kernel(launch.kernel, launch.shared_bytes);
  const Result result = driver.cuLaunchKernel(function, launch.grid[0], launch.grid[1], launch.grid[2], launch.block, 1, 1, launch.shared_bytes, handle_,
                                              nullptr, extra);
  if (result != kSuccess) driver.Fail(result, std::string("cuLaunchKernel of ") + launch.kernel);
}

void Stream::Copy(std::byte* to, const std::byte* from, size_t bytes) {
  if (bytes == 0) return;
  moved_ = true;
  device_->driver.Check(device_->driver.cuMemcpyAsync(PointerOf(to), PointerOf(from), bytes, handle_), "cuMemcpyAsync");
}

Event& Stream::Mark() {
  if (moved_) mark_->Record(handle_);
  moved_ = false;
  return *mark_;
}

void Stream::WaitFor(Stream& other) {
  // One that has been left has nothing more to wait for.
  if (&other == this || !other.handle_) return;
  const Event& mark = other.Mark();
  moved_ = true;
  device_->driver.Check(device_->driver.cuStreamWaitEvent(handle_, mark.handle(), 0), "cuStreamWaitEvent");
}

void Stream::Write(std::byte* to, const std::byte* from, size_t bytes) {
  engine_.ForPieces(from, bytes, [&](const std::byte* piece, size_t at, size_t length, Event& used) {
    Copy(to + at, piece, length);
    used.Record(handle_);
  });
}

std::byte* Stream::Take(size_t bytes) {
  if (scratch_.empty() || scratch_.back()->bytes < bytes) {
    const size_t least = scratch_.empty() ? size_t{1} << 16 : 2 * scratch_.back()->bytes;
    scratch_.push_back(std::make_unique<DeviceBlock>(device_, std::max(bytes, least)));
  }
  return scratch_.back()->data;
}

void Stream::Measure() {
  measurements_.clear();
  measuring_ = true;
}

std::map<Stream::Variant, Stream::Times> Stream::Measured() {
  measuring_ = false;
  std::map<Variant, Times> times;
  const Driver& driver = device_->driver;
  for (const Measurement& measurement : measurements_) {
    float milliseconds = 0;
    driver.Check(driver.cuEventSynchronize(measurement.end->handle()), "cuEventSynchronize");
    driver.Check(driver.cuEventElapsedTime(&milliseconds, measurement.start->handle(), measurement.end->handle()), "cuEventElapsedTime");
    Times& sum = times[measurement.variant];
    sum.runs++;
    sum.nanoseconds += 1e6 * static_cast<double>(milliseconds);
  }
  measurements_.clear();
  return times;
}

void Stream::Capturing(bool is) {
  capturing_ = is;
  moved_ = true;
}

}  // namespace rankmesh::cuda
