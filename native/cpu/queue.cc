// The thread of a queue. It looks for work a little while before it sleeps, since the next command often comes at once.
#include "queue.h"

#include <algorithm>
#include <chrono>

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace rankmesh::cpu {
namespace {

using Clock = std::chrono::steady_clock;

/** Looks for work before the thread sleeps: some 10 microseconds. */
constexpr int kSpins = 300;

/** Keeps this thread on the processor that comes at `core` among those it may run on. */
void Pin(int core) {
#ifdef __linux__
  cpu_set_t allowed;
  if (core < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed) || core-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    return;
  }
#else
  (void)core;
#endif
}

/** Counts this thread as one of a queue. */
struct Running {
  Running() { running_queues++; }
  Running(const Running&) = delete;
  ~Running() { running_queues--; }
};

}  // namespace

Queue::Queue(Napi::Env env, const Kernels& kernels, std::shared_ptr<Progress> progress, int core)
    : env_(env), kernels_(kernels), progress_(std::move(progress)), core_(core) {
  const auto name = Napi::String::New(env, "rankmesh cpu queue");
  if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, Settle, &settle_) != napi_ok)
    throw Napi::Error::New(env);
  napi_unref_threadsafe_function(env, settle_);
  // Hooks run last first: the thread has ended when Node closes the function that it calls.
  napi_add_env_cleanup_hook(env, Cleanup, this);
}

Queue::~Queue() {
  {
    const std::lock_guard lock(mutex_);
    drain_ = true;
  }
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
  Stop();
}

void Queue::Submit(std::vector<Command> commands) {
  if (stop_) return;
  {
    const std::lock_guard lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
    jobs_.push_back({std::move(commands)});
    waiting_++;
  }
  work_.notify_one();
}

Napi::Promise Queue::Finish(Napi::Env env) {
  napi_deferred deferred;
  napi_value promise;
  if (napi_create_promise(env, &deferred, &promise) != napi_ok) throw Napi::Error::New(env);
  if (stop_) {
    Resolve(env, deferred, false);
    return Napi::Promise(env, promise);
  }
  if (unsettled_.empty()) napi_ref_threadsafe_function(env, settle_);
  unsettled_.push_back(deferred);
  {
    const std::lock_guard lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
    jobs_.push_back({{}, deferred});
    waiting_++;
  }
  work_.notify_one();
  return Napi::Promise(env, promise);
}

void Queue::Run() {
  Pin(core_);
  const Running running;
  for (;;) {
    for (int spins = 0; spins < kSpins && waiting_ == 0 && !stop_; spins++) Pause();
    Job job;
    {
      std::unique_lock lock(mutex_);
      work_.wait(lock, [this] { return stop_ || drain_ || !jobs_.empty(); });
      if (stop_ || jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      waiting_--;
    }
    for (size_t i = 0; i < job.commands.size(); i++) {
      if (stop_ || !RunCommand(job.commands[i])) {
        Abandon(job.commands, i);
        progress_->ended = true;
        progress_->bell.Ring();
        return;
      }
      job.commands[i] = {};
      progress_->completed++;
      progress_->bell.Ring();
    }
    if (job.deferred) napi_call_threadsafe_function(settle_, job.deferred, napi_tsfn_nonblocking);
  }
}

bool Queue::RunCommand(const Command& command) {
  if (command.meeting) return Meet(static_cast<Gathering&>(*command.meeting));
  if (command.call.op != kWait) {
    RunKernel(command.call);
    return true;
  }
  Progress& other = *static_cast<Progress*>(command.queue.get());
  const auto done = [&] { return other.completed.load(std::memory_order_acquire) >= command.epoch; };
  return other.bell.Wait([&] { return done() || other.ended; }, stop_) && done();
}

bool Queue::Meet(Gathering& meeting) {
  if (++meeting.arrived == meeting.members) meeting.bell.Ring();
  if (!meeting.bell.Wait([&] { return meeting.arrived == meeting.members || meeting.broken; }, stop_) || meeting.broken) return false;
  const size_t pieces = meeting.work.call.last;
  Call call = meeting.work.call;
  for (size_t piece; (piece = meeting.next++) < pieces;) {
    call.first = piece;
    call.last = piece + 1;
    RunKernel(call);
    if (++meeting.finished == pieces) meeting.bell.Ring();
  }
  // Whoever has taken a piece finishes it, so this comes to an end.
  return meeting.bell.Wait([&] { return meeting.finished == pieces; }, stop_);
}

void Queue::Abandon(std::vector<Command>& commands, size_t from) {
  for (size_t i = from; i < commands.size(); i++) {
    if (!commands[i].meeting) continue;
    auto& meeting = static_cast<Gathering&>(*commands[i].meeting);
    meeting.broken = true;
    meeting.bell.Ring();
  }
}

void Queue::RunKernel(const Call& call) {
  if (!measure_) return kernels_.run[call.op](call, scratch_);
  const auto start = Clock::now();
  kernels_.run[call.op](call, scratch_);
  const auto took = std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now() - start).count();
  const std::lock_guard lock(mutex_);
  Times& times = times_[{call.op, call.types[0], call.types[1]}];
  times.runs++;
  times.nanoseconds += static_cast<uint64_t>(took);
}

void Queue::Measure() {
  const std::lock_guard lock(mutex_);
  times_.clear();
  measure_ = true;
}

std::map<Queue::Variant, Queue::Times> Queue::Measured() {
  const std::lock_guard lock(mutex_);
  measure_ = false;
  return std::move(times_);
}

void Queue::Settle(napi_env env, napi_value, void* context, void* deferred) {
  // What is called while the function closes comes late: the queue may be gone.
  if (!env) return;
  auto* const self = static_cast<Queue*>(context);
  // Where Stop was faster, it has settled this one.
  const auto found = std::find(self->unsettled_.begin(), self->unsettled_.end(), deferred);
  if (found == self->unsettled_.end()) return;
  self->unsettled_.erase(found);
  Resolve(env, static_cast<napi_deferred>(deferred), true);
  if (self->unsettled_.empty()) napi_unref_threadsafe_function(env, self->settle_);
}

void Queue::Resolve(napi_env env, napi_deferred deferred, bool done) {
  napi_value result;
  // A thread that is being terminated settles nothing: what these return does not matter then.
  if (napi_get_boolean(env, done, &result) == napi_ok) napi_resolve_deferred(env, deferred, result);
}

void Queue::Stop(Napi::Env env) {
  if (stop_.exchange(true)) return;
  {
    const std::lock_guard lock(mutex_);
  }
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
  for (Job& job : jobs_) Abandon(job.commands, 0);
  jobs_.clear();
  progress_->ended = true;
  progress_->bell.Ring();
  for (const napi_deferred deferred : unsettled_)
    if (static_cast<napi_env>(env)) Resolve(env, deferred, false);
  unsettled_.clear();
  napi_remove_env_cleanup_hook(env_, Cleanup, this);
  napi_release_threadsafe_function(settle_, napi_tsfn_abort);
}

}  // namespace rankmesh::cpu
