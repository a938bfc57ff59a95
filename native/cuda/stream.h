// A stream of a CUDA device: the commands of one rank, launched in order as they come.
#pragma once
#include <map>
#include <tuple>

#include "device.h"
#include "launches.h"

namespace rankmesh::cuda {

class Engine;
class Executable;
class Stream;

/** A command of the CUDA engine alone that is more than one kernel. */
struct StreamExtra : engine::Extra {
  /** Hands its work to the stream. Throws CudaError, or engine::BadCommand. */
  virtual void Run(Stream& stream) = 0;
  /** Of one that a stream which captures has come to: whether others have yet to come to it, before which the stream does not go on. */
  virtual bool Waits() const { return false; }
  /** What it has handed over is part of this. Throws where that cannot be run. */
  virtual void Captured(const std::shared_ptr<Executable>&) {}
};

/** A meeting: the work runs on the stream that comes last, behind all others, which go on behind it. */
struct Gathering : engine::Meeting {
  using Meeting::Meeting;
  std::vector<Stream*> streams;
  bool done = false;
};

/** Used on the JavaScript thread alone. */
class Stream final : public Scratch {
 public:
  /** What the runs of one kind of command took. */
  struct Times {
    uint64_t runs = 0;
    double nanoseconds = 0;
  };
  /** Op, and the types of its operands. */
  using Variant = std::tuple<uint32_t, uint32_t, uint32_t>;

  explicit Stream(Engine& engine);
  Stream(const Stream&) = delete;
  ~Stream() override { Close(); }
  /** Gives back what it holds; all that it was given has run. */
  void Close();

  /** Hands one command over, a meeting as one that comes to it. Throws CudaError, or engine::BadCommand for what no kernel does. */
  void Run(const engine::Command& command);
  void Launch(const cuda::Launch& launch);
  void Copy(std::byte* to, const std::byte* from, size_t bytes);
  /** What comes next is behind all that the other one has been given. */
  void WaitFor(Stream& other);
  /** Copies memory that may change as soon as this returns. */
  void Write(std::byte* to, const std::byte* from, size_t bytes);
  /** An event behind all that the stream has been given. */
  Event& Mark();
  std::byte* Take(size_t bytes) override;

  /** Begins to measure commands, or gives what was measured since, once that has run. */
  void Measure();
  std::map<Variant, Times> Measured();

  /** Something has come to the stream past this object. */
  void Moved() { moved_ = true; }
  /** Takes part in a capture, or does so no more: marks of the one are of no use to the other. */
  void Capturing(bool is);
  bool capturing() const { return capturing_; }

  Engine& engine() const { return engine_; }
  StreamHandle handle() const { return handle_; }

 private:
  struct Measurement {
    Variant variant;
    std::unique_ptr<Event> start, end;
  };

  void RunWork(const engine::Command& command);
  void RunTimed(const engine::Command& command);
  /** False where cuBLASLt was counted on and has no way. */
  bool RunSteps(const std::vector<Step>& steps);

  Engine& engine_;
  const std::shared_ptr<Device> device_;
  StreamHandle handle_ = nullptr;
  std::unique_ptr<Event> mark_;
  /** Something has come since `mark_` was recorded. */
  bool moved_ = true;
  bool capturing_ = false;
  bool measuring_ = false;
  std::vector<Measurement> measurements_;
  /** The last one is in use; graphs may refer to the ones before, which together are smaller. */
  std::vector<std::unique_ptr<DeviceBlock>> scratch_;
  std::unique_ptr<DeviceBlock> workspace_;
};

}  // namespace rankmesh::cuda
