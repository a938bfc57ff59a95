// The thread asks the driver again and again, rather than being held by it: what runs may never end, and JavaScript may have done with it.
#include "finisher.h"

#include <chrono>

namespace rankmesh::cuda {
namespace {

using Clock = std::chrono::steady_clock;

/** How long it asks without pause; many results come within it. */
constexpr std::chrono::microseconds kAsking{500};
constexpr std::chrono::microseconds kPause{50};

}  // namespace

Finisher::Finisher(Napi::Env env, std::shared_ptr<Engine> engine, std::shared_ptr<Stream> stream)
    : env_(env), engine_(std::move(engine)), stream_(std::move(stream)), device_(engine_->device()) {
  const auto name = Napi::String::New(env, "rankmesh cuda queue");
  if (napi_create_threadsafe_function(env, nullptr, nullptr, name, 0, 1, nullptr, nullptr, this, Settle, &settle_) != napi_ok)
    throw Napi::Error::New(env);
  napi_unref_threadsafe_function(env, settle_);
  // Hooks run last first: the thread has ended when Node closes the function that it calls.
  napi_add_env_cleanup_hook(env, Cleanup, this);
}

Finisher::~Finisher() {
  Stop();
  engine_->Leave(stream_);
}

Napi::Promise Finisher::Finish(Napi::Env env) {
  auto waiting = std::make_unique<Waiting>();
  napi_value promise;
  if (napi_create_promise(env, &waiting->deferred, &promise) != napi_ok) throw Napi::Error::New(env);
  bool marked = false;
  if (!stop_) {
    engine_->Submit([&] {
      if (events_.empty()) events_.push_back(std::make_unique<Event>(device_, kEventUntimed));
      waiting->event = std::move(events_.back());
      events_.pop_back();
      waiting->event->Record(stream_->handle());
      marked = true;
    });
  }
  if (!marked) {
    Resolve(env, waiting->deferred, false);
    return Napi::Promise(env, promise);
  }
  if (unsettled_.empty()) napi_ref_threadsafe_function(env, settle_);
  {
    const std::lock_guard lock(mutex_);
    if (!thread_.joinable()) thread_ = std::thread([this] { Run(); });
    jobs_.push_back(waiting.get());
  }
  unsettled_.push_back(std::move(waiting));
  work_.notify_one();
  return Napi::Promise(env, promise);
}

void Finisher::Run() {
  try {
    device_->Enter();
  } catch (const CudaError& error) {
    engine_->Fail(error, *device_);
  }
  for (;;) {
    Waiting* waiting;
    {
      std::unique_lock lock(mutex_);
      work_.wait(lock, [this] { return stop_ || !jobs_.empty(); });
      if (stop_) return;
      waiting = jobs_.front();
      jobs_.pop_front();
    }
    WaitFor(*waiting->event);
    if (!stop_) napi_call_threadsafe_function(settle_, waiting, napi_tsfn_nonblocking);
  }
}

void Finisher::WaitFor(const Event& event) {
  const auto until = Clock::now() + kAsking;
  try {
    while (!stop_ && !event.Passed()) {
      if (Clock::now() < until) std::this_thread::yield();
      else std::this_thread::sleep_for(kPause);
    }
  } catch (const CudaError& error) {
    engine_->Fail(error, *device_);
  }
}

void Finisher::Settle(napi_env env, napi_value, void* context, void* data) {
  // What is called while the function closes comes late: the finisher may be gone.
  if (!env) return;
  auto* const self = static_cast<Finisher*>(context);
  // Where Stop was faster, it has settled this one.
  if (self->unsettled_.empty() || self->unsettled_.front().get() != data) return;
  const auto waiting = std::move(self->unsettled_.front());
  self->unsettled_.pop_front();
  self->events_.push_back(std::move(waiting->event));
  self->Resolve(env, waiting->deferred, true);
  if (self->unsettled_.empty()) napi_unref_threadsafe_function(env, self->settle_);
}

void Finisher::Resolve(napi_env env, napi_deferred deferred, bool done) const {
  // A thread that is being terminated settles nothing: what these return does not matter then.
  napi_value result;
  if (const auto failure = stop_ ? std::nullopt : engine_->failure()) {
    napi_value text;
    if (napi_create_string_utf8(env, failure->c_str(), failure->size(), &text) != napi_ok) return;
    if (napi_create_error(env, nullptr, text, &result) == napi_ok) napi_reject_deferred(env, deferred, result);
  } else if (napi_get_boolean(env, done, &result) == napi_ok) {
    napi_resolve_deferred(env, deferred, result);
  }
}

void Finisher::Stop(Napi::Env env) {
  if (stop_.exchange(true)) return;
  {
    const std::lock_guard lock(mutex_);
  }
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
  for (const auto& waiting : unsettled_)
    if (static_cast<napi_env>(env)) Resolve(env, waiting->deferred, false);
  unsettled_.clear();
  events_.clear();
  napi_remove_env_cleanup_hook(env_, Cleanup, this);
  napi_release_threadsafe_function(settle_, napi_tsfn_abort);
}

}  // namespace rankmesh::cuda
