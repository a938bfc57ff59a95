// The pool of waiting threads: as many as there were waits at one time. They end with their environment.
#include "waiters.h"

#include <memory>

namespace rankmesh {

Waiters::Waiters(Napi::Env env) {
  const auto name = Napi::String::New(env, "rankmesh waits");
  if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, Settle, &settle_) != napi_ok)
    throw Napi::Error::New(env);
  napi_unref_threadsafe_function(env, settle_);
  // Hooks run last first: the threads have ended when Node closes the function that they call.
  napi_add_env_cleanup_hook(env, [](void* self) { static_cast<Waiters*>(self)->Stop(); }, this);
}

Napi::Promise Waiters::Add(Napi::Env env, Napi::Object words, const Lane& lane, int32_t epoch, int32_t alarm, std::chrono::nanoseconds most) {
  napi_deferred deferred;
  napi_value promise;
  if (napi_create_promise(env, &deferred, &promise) != napi_ok) throw Napi::Error::New(env);
  auto job = std::make_unique<Job>(Job{lane, epoch, alarm, most, deferred, Napi::Persistent(words)});
  {
    const std::lock_guard lock(mutex_);
    if (idle_ > 0) idle_--;
    else threads_.emplace_back([this] { Run(); });
    queue_.push_back(job.release());
  }
  work_.notify_one();
  if (unsettled_++ == 0) napi_ref_threadsafe_function(env, settle_);
  return Napi::Promise(env, promise);
}

void Waiters::Run() {
  std::unique_lock lock(mutex_);
  for (;;) {
    work_.wait(lock, [this] { return stop_ || !queue_.empty(); });
    if (stop_) return;
    Job* const job = queue_.front();
    queue_.pop_front();
    running_.insert(job);
    lock.unlock();
    job->result = Wait(job->lane, job->epoch, job->alarm, job->most, &stop_);
    lock.lock();
    running_.erase(job);
    idle_++;
    if (stop_) {
      queue_.push_back(job);
      return;
    }
    napi_call_threadsafe_function(settle_, job, napi_tsfn_nonblocking);
  }
}

void Waiters::Settle(napi_env env, napi_value, void* waiters, void* data) {
  auto* const self = static_cast<Waiters*>(waiters);
  auto* const job = static_cast<Job*>(data);
  if (env) {
    napi_value result;
    // A thread that is being terminated settles nothing: what these return does not matter then.
    if (napi_create_int32(env, static_cast<int32_t>(job->result), &result) == napi_ok) napi_resolve_deferred(env, job->deferred, result);
    if (--self->unsettled_ == 0) napi_unref_threadsafe_function(env, self->settle_);
  } else {
    job->words.SuppressDestruct();
  }
  delete job;
}

void Waiters::Stop() {
  {
    const std::lock_guard lock(mutex_);
    if (stop_.exchange(true)) return;
    for (Job* const job : running_) WakeAll(job->lane.lines, job->lane.members);
  }
  work_.notify_all();
  for (auto& thread : threads_) thread.join();
  for (Job* const job : queue_) delete job;
  napi_release_threadsafe_function(settle_, napi_tsfn_abort);
}

}  // namespace rankmesh
