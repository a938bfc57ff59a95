// A queue: one thread that runs the commands of one rank in order, and settles promises where JavaScript waits for it.
#pragma once
#include <napi.h>

#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <tuple>

#include "commands.h"
#include "kernels.h"
#include "program.h"
#include "team.h"

namespace rankmesh::cpu {

class Queue {
 public:
  /** What the runs of one kernel took. */
  struct Times {
    uint64_t runs = 0;
    uint64_t nanoseconds = 0;
  };
  /** Op, and the types of its operands. */
  using Variant = std::tuple<uint32_t, uint32_t, uint32_t>;

  /** `core` counts the processors that this process may run on; negative: any of them. */
  Queue(Napi::Env env, const Kernels& kernels, std::shared_ptr<Progress> progress, std::shared_ptr<Team> team, int core);
  Queue(const Queue&) = delete;
  /** Runs what was submitted to its end. */
  ~Queue();

  /** On the JavaScript thread, as all below: hands commands over and returns. After Stop nothing runs. */
  void Submit(std::vector<Command> commands);
  /** The same of one part of a run. */
  void Submit(std::shared_ptr<const cpu::Run> run, size_t part);
  /** A promise of true once everything submitted so far has run, of false where the queue ends before. Keeps the event loop alive. */
  Napi::Promise Finish(Napi::Env env);
  /** Begins to measure, or gives what was measured since. */
  void Measure();
  std::map<Variant, Times> Measured();
  /** Ends the thread after the command that it runs; settles what waits, where the environment still lives. */
  void Stop(Napi::Env env = nullptr);

 private:
  struct Job {
    std::vector<Command> commands;
    napi_deferred deferred = nullptr;
    /** Instead of commands of its own. */
    std::shared_ptr<const cpu::Run> run = nullptr;
    size_t part = 0;
    size_t size() const { return run ? run->program->parts[part].commands.size() : commands.size(); }
  };

  void Push(Job job);
  void Run();
  /** False where it cannot run, as this queue stops or another one has that it waits for. */
  bool RunCommand(const Job& job, size_t index);
  bool Wait(Progress& other, uint64_t epoch);
  bool Meet(Gathering& gathering, const Call& work);
  void RunKernel(const Call& call);
  /** By this thread, and others of the team that have nothing to do. */
  void RunShared(const Call& call);
  /** Looks for jobs, for a while. */
  void Look();
  /** Runs a piece of another's work, if there is any. */
  bool Help();
  /** Whether `done()`, having helped others of the team where it is not. */
  template <typename Done>
  bool Or(Done done);
  /** Tells those who wait for commands that these will not run. */
  static void Abandon(const Job& job, size_t from);
  static void Settle(napi_env env, napi_value, void* queue, void* deferred);
  static void Resolve(napi_env env, napi_deferred deferred, bool done);
  static void Cleanup(void* queue) { static_cast<Queue*>(queue)->Stop(); }

  napi_env env_;
  const Kernels& kernels_;
  const std::shared_ptr<Progress> progress_;
  const std::shared_ptr<Team> team_;
  Work* work_of_team_ = nullptr;
  const int core_;
  Scratch scratch_;
  napi_threadsafe_function settle_ = nullptr;
  /** On the JavaScript thread: promises that are not settled. */
  std::deque<napi_deferred> unsettled_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Job> jobs_;
  /** Jobs in `jobs_`, to be looked at without the lock. */
  std::atomic<size_t> waiting_ = 0;
  std::atomic<bool> stop_ = false;
  bool drain_ = false;
  std::atomic<bool> measure_ = false;
  std::map<Variant, Times> times_;
  std::thread thread_;
};

}  // namespace rankmesh::cpu
