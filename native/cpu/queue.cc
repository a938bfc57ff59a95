// The thread of a queue. It looks for work a little while before it sleeps, since the next command often comes at once.
#include "queue.h"

#include <algorithm>
#include <chrono>

#include "processors.h"

namespace rankmesh::cpu {
namespace {

using Clock = std::chrono::steady_clock;

/** Looks for work before the thread gives way to others: some 10 microseconds. */
constexpr int kSpins = 300;
/** For so long it is ready to go on: JavaScript reads what one step has left, and hands over the next one. */
constexpr std::chrono::microseconds kYielding{500};

/** Counts this thread as one of a queue, and of its team. */
struct Running {
  Running(Team& team, Work*& place) : team_(team), place_(place) {
    running_queues++;
    place_ = team_.Join();
  }
  Running(const Running&) = delete;
  ~Running() {
    team_.Leave(place_);
    running_queues--;
  }

 private:
  Team& team_;
  Work*& place_;
};

}  // namespace

Queue::Queue(Napi::Env env, const Kernels& kernels, std::shared_ptr<Progress> progress, std::shared_ptr<Team> team, int core)
    : env_(env), kernels_(kernels), progress_(std::move(progress)), team_(std::move(team)), core_(core) {
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

void Queue::Submit(std::vector<Command> commands) { Push({std::move(commands)}); }

void Queue::Submit(std::shared_ptr<const cpu::Run> run, size_t part) { Push({{}, nullptr, std::move(run), part}); }

void Queue::Push(Job job) {
  if (stop_) return Abandon(job, 0);
  {
    const std::lock_guard lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
    jobs_.push_back(std::move(job));
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
  Push({{}, deferred});
  return Napi::Promise(env, promise);
}

void Queue::Run() {
  Pin(core_);
  const Running running(*team_, work_of_team_);
  for (;;) {
    Look();
    Job job;
    {
      std::unique_lock lock(mutex_);
      if (jobs_.empty()) team_->Rest(work_of_team_);
      work_.wait(lock, [this] { return stop_ || drain_ || !jobs_.empty(); });
      if (stop_ || jobs_.empty()) return;
      job = std::move(jobs_.front());
      jobs_.pop_front();
      waiting_--;
    }
    team_->KeepApart(work_of_team_);
    for (size_t i = 0, commands = job.size(); i < commands; i++) {
      if (stop_ || !RunCommand(job, i)) {
        Abandon(job, i);
        progress_->ended = true;
        progress_->bell.Ring();
        return;
      }
      if (!job.run) job.commands[i] = {};
      progress_->completed++;
      progress_->bell.Ring();
    }
    if (job.deferred) napi_call_threadsafe_function(settle_, job.deferred, napi_tsfn_nonblocking);
  }
}

void Queue::Look() {
  for (int spins = 0; spins < kSpins && waiting_ == 0 && !stop_; spins++) Pause();
  if (!Roomy()) return;
  for (const auto until = Clock::now() + kYielding; waiting_ == 0 && !stop_ && Clock::now() < until;)
    if (!Help()) std::this_thread::yield();
}

bool Queue::Help() {
  return team_->Help(work_of_team_, [this](const Call& piece) { kernels_.run[piece.op](piece, scratch_); });
}

bool Queue::RunCommand(const Job& job, size_t index) {
  const Part* const part = job.run ? &job.run->program->parts[job.part] : nullptr;
  const Command& command = part ? part->commands[index] : job.commands[index];
  const size_t refers = part ? part->refers[index] : 0;
  if (command.meeting) return Meet(part ? *job.run->gatherings[refers] : static_cast<Gathering&>(*command.meeting), command.meeting->work.call);
  if (command.call.op == kWait) return Wait(*static_cast<Progress*>(command.queue.get()), command.epoch + (part ? job.run->bases[refers] : 0));
  RunKernel(command.call);
  return true;
}

bool Queue::Wait(Progress& other, uint64_t epoch) {
  const auto done = [&] { return other.completed.load(std::memory_order_acquire) >= epoch; };
  return other.bell.Wait([&] { return Or([&] { return done() || other.ended; }); }, stop_) && done();
}

bool Queue::Meet(Gathering& meeting, const Call& work) {
  if (++meeting.arrived == meeting.members) meeting.bell.Ring();
  const auto met = [&] { return Or([&] { return meeting.arrived == meeting.members || meeting.broken; }); };
  if (!meeting.bell.Wait(met, stop_) || meeting.broken) return false;
  const size_t pieces = work.last;
  Call call = work;
  for (size_t piece; (piece = meeting.next++) < pieces;) {
    call.first = piece;
    call.last = piece + 1;
    RunKernel(call);
    if (++meeting.finished == pieces) meeting.bell.Ring();
  }
  // Whoever has taken a piece finishes it, so this comes to an end.
  return meeting.bell.Wait([&] { return meeting.finished == pieces; }, stop_);
}

void Queue::Abandon(const Job& job, size_t from) {
  const Part* const part = job.run ? &job.run->program->parts[job.part] : nullptr;
  for (size_t i = from; i < job.size(); i++) {
    const auto& meeting = part ? part->commands[i].meeting : job.commands[i].meeting;
    if (!meeting) continue;
    auto& gathering = part ? *job.run->gatherings[part->refers[i]] : static_cast<Gathering&>(*meeting);
    gathering.broken = true;
    gathering.bell.Ring();
  }
}

template <typename Done>
bool Queue::Or(Done done) {
  if (done()) return true;
  team_->KeepApart(work_of_team_);
  return Help() && done();
}

void Queue::RunShared(const Call& call) {
  const size_t rows = work_of_team_ ? team_->PieceOf(call) : 0;
  if (rows == 0) return kernels_.run[call.op](call, scratch_);
  work_of_team_->Share(call, rows, [&](const Call& piece) { kernels_.run[piece.op](piece, scratch_); });
}

void Queue::RunKernel(const Call& call) {
  if (!measure_) return RunShared(call);
  const auto start = Clock::now();
  RunShared(call);
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
  for (const Job& job : jobs_) Abandon(job, 0);
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
