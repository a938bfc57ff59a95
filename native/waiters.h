// Threads of an environment's own that wait for lanes and settle promises: never libuv's, where waits for each other could use up all.
#pragma once
#include <napi.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "lane.h"

namespace rankmesh {

class Waiters {
 public:
  explicit Waiters(Napi::Env env);
  Waiters(const Waiters&) = delete;
  Waiters& operator=(const Waiters&) = delete;

  /** A promise of how the wait ends. `words` is kept alive until then; so is the event loop. */
  Napi::Promise Add(Napi::Env env, Napi::Object words, const Lane& lane, int32_t epoch, int32_t alarm, std::chrono::nanoseconds most);

  /** Ends all waits and threads. */
  void Stop();

 private:
  struct Job {
    Lane lane;
    int32_t epoch;
    int32_t alarm;
    std::chrono::nanoseconds most;
    napi_deferred deferred;
    Napi::ObjectReference words;
    Result result = Result::kExpired;
  };

  void Run();
  static void Settle(napi_env env, napi_value, void* waiters, void* job);

  napi_threadsafe_function settle_ = nullptr;
  /** On the JavaScript thread: promises that are not settled. */
  size_t unsettled_ = 0;
  std::mutex mutex_;
  std::condition_variable work_;
  std::deque<Job*> queue_;
  std::set<Job*> running_;
  /** Threads that have nothing to do, less jobs that are on their way to one. */
  size_t idle_ = 0;
  std::atomic<bool> stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace rankmesh
