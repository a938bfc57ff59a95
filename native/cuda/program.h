// Programs: commands of several streams as one graph, which is launched again and again.
#pragma once
#include "engine.h"

namespace rankmesh::cuda {

class Program {
 public:
  struct Part {
    Stream* stream;
    std::vector<engine::Command> commands;
  };

  /**
   * Waits of a part are for so many commands of another one. Throws engine::BadCommand where they wait in a circle or for queues that have no
   * part, CudaError where something cannot be captured.
   */
  Program(Engine& engine, std::vector<Part> parts);
  Program(const Program&) = delete;
  /** What is under way runs to its end. */
  ~Program();

  /** Behind what its streams have been given, and before what they are given next. Throws CudaError. */
  void Launch();

 private:
  /** Runs the commands of all parts on streams that capture, in an order in which all that is waited for comes first. */
  void Run();

  Engine& engine_;
  const std::shared_ptr<Device> device_;
  std::vector<Part> parts_;
  GraphExecHandle exec_ = nullptr;
};

}  // namespace rankmesh::cuda
