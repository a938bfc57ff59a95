// Promises for the end of what a stream has been given: a thread looks for it, so that JavaScript need not.
#pragma once
#include <napi.h>

#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>

#include "engine.h"

namespace rankmesh::cuda {

class Finisher {
 public:
  Finisher(Napi::Env env, std::shared_ptr<Engine> engine, std::shared_ptr<Stream> stream);
  Finisher(const Finisher&) = delete;
  /** Nobody holds the queue any more. */
  ~Finisher();

  /**
   * On the JavaScript thread, as Stop: a promise of true once everything submitted so far has run, of false where Stop comes before; rejected where
   * the device has failed. Keeps the event loop alive.
   */
  Napi::Promise Finish(Napi::Env env);
  /** Ends the thread, whatever still runs; settles what waits, where the environment still lives. */
  void Stop(Napi::Env env = nullptr);

 private:
  struct Waiting {
    napi_deferred deferred;
    std::unique_ptr<Event> event;
  };

  void Run();
  /** Looks at the event until it has passed, the device has failed, or this stops. */
  void WaitFor(const Event& event);
  static void Settle(napi_env env, napi_value, void* finisher, void* waiting);
  void Resolve(napi_env env, napi_deferred deferred, bool done) const;
  static void Cleanup(void* finisher) { static_cast<Finisher*>(finisher)->Stop(); }

  napi_env env_;
  const std::shared_ptr<Engine> engine_;
  const std::shared_ptr<Stream> stream_;
  const std::shared_ptr<Device> device_;
  napi_threadsafe_function settle_ = nullptr;
  /** On the JavaScript thread: promises that are not settled, in order. */
  std::deque<std::unique_ptr<Waiting>> unsettled_;
  /** Events to be used again. */
  std::vector<std::unique_ptr<Event>> events_;
  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Waiting*> jobs_;
  std::atomic<bool> stop_ = false;
  std::thread thread_;
};

}  // namespace rankmesh::cuda
