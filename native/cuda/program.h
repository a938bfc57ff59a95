// Programs: commands of several streams as one graph, which is launched again and again.
#pragma once
#include <map>
#include <mutex>
#include <string>

#include "engine.h"

namespace rankmesh::cuda {

/** What a program's launches are told to: something outside of its device that its commands use. */
struct Party {
  virtual ~Party() = default;
  /** A run of the program is behind what this stream has been given. Throws CudaError. */
  virtual void Launched(StreamHandle stream) = 0;
};

/** A graph as the driver runs it, until somebody ends it, which any thread may do. */
class Executable {
 public:
  Executable(std::shared_ptr<Device> device, GraphExecHandle handle) : device_(std::move(device)), handle_(handle) {}
  Executable(const Executable&) = delete;
  ~Executable() { End("it was closed"); }

  /** Throws std::runtime_error once it has been ended, CudaError. */
  void Launch(StreamHandle stream);
  /** It is launched no more, and the driver lets go of what it holds as soon as runs under way have ended. Waits for nothing, a launch included. */
  void End(const std::string& why);
  /** Why it was ended; empty while it was not. */
  std::string ended();

  /** By what each of them is about. On the JavaScript thread alone. */
  std::map<const void*, std::shared_ptr<Party>> parties;

 private:
  const std::shared_ptr<Device> device_;
  /** Guards what follows. */
  std::mutex mutex_;
  GraphExecHandle handle_;
  /** The driver is being given it: who does that destroys it then, if it has been ended meanwhile. */
  bool launching_ = false;
  std::string ended_;
};

class Program {
 public:
  struct Part {
    Stream* stream;
    std::vector<engine::Command> commands;
  };
  struct Given {
    Engine* engine;
    std::vector<Part> parts;
  };

  /**
   * Programs of engines of this thread, captured side by side, since commands of one may wait for those of another (StreamExtra::Waits). Waits of a
   * part are for so many commands of another one of its program. Throws engine::BadCommand where they wait in a circle or for queues that have no
   * part, CudaError where something cannot be captured, and what commands throw.
   */
  static std::vector<std::unique_ptr<Program>> Capture(std::vector<Given> all);
  Program(const Program&) = delete;
  /** What is under way runs to its end. */
  ~Program();

  /** Behind what its streams have been given, and before what they are given next. Throws CudaError, and as Executable::Launch. */
  void Launch();
  /** Why it can be launched no more; empty where it can. */
  std::string ended() { return executable_->ended(); }

 private:
  explicit Program(Given given);
  void Begin();
  /** Runs commands on streams that capture, those that are waited for first, as far as they go; whether there were any. */
  bool Advance();
  void Finish();
  void Capturing(bool is);

  Engine& engine_;
  const std::shared_ptr<Device> device_;
  std::vector<Part> parts_;
  /** By part: commands that are done, and whether the next one has been run and waits for others. */
  std::vector<size_t> done_;
  std::vector<bool> come_;
  bool capturing_ = false;
  std::shared_ptr<Executable> executable_;
};

}  // namespace rankmesh::cuda
