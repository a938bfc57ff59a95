// GlooGroup: a mesh as JavaScript has it: rounds run on threads of its own, in order, and settle promises on the JavaScript thread.
#pragma once
#include <napi.h>

#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "mesh.h"

namespace rankmesh {

/** Runs one thing after another on a thread; at its end first what it has been given. */
class Worker {
 public:
  Worker();
  ~Worker();
  void Do(std::function<void()> task);

 private:
  void Run();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::function<void()>> tasks_;
  bool stopped_ = false;
  std::thread thread_;
};

/** Lives until Close, which the end of its environment calls too. All on the JavaScript thread, but what says otherwise. */
class GlooGroup : public std::enable_shared_from_this<GlooGroup> {
 public:
  /** Makes a promise's value. */
  using Result = std::function<Napi::Value(Napi::Env)>;

  static std::shared_ptr<GlooGroup> New(Napi::Env env, Napi::Object store);

  /** Runs `work` on the worker of a lane, after what that has been given before; `operand` and the event loop are kept until then. */
  Napi::Promise Do(Napi::Env env, int64_t lane, Napi::Object operand, std::function<Result()> work);
  /** On a worker. */
  void Connect(int rank, int size, const std::string& host, const std::string& prefix, Deadline deadline);
  /** On a worker, once connected. */
  Mesh& mesh() { return *mesh_; }
  /** Ends what is under way, and the threads. */
  void Close();

 private:
  /** What a worker waits for the store to say. */
  struct Answer {
    bool done = false;
    std::string error;
    std::vector<char> value;
  };
  using Settle = std::function<void(std::string error, std::vector<char> value)>;

  GlooGroup(Napi::Env env, Napi::Object store);
  void OnJavaScript(std::function<void(Napi::Env)> function);
  /** `store.set(key, value)`, or `store.get(key, time left)` without a value. On a worker. */
  std::vector<char> Ask(const std::string& key, const std::vector<char>* value, Deadline deadline);
  void Call(Napi::Env env, const std::string& key, const std::vector<char>* value, Deadline deadline, const Settle& settle);

  const napi_env env_;
  Napi::ObjectReference store_;
  Napi::ThreadSafeFunction calls_;
  /** Keeps this group until Close. */
  std::shared_ptr<GlooGroup> self_;
  std::map<int64_t, std::unique_ptr<Worker>> workers_;
  size_t pending_ = 0;
  bool closed_ = false;

  /** Guards what follows. */
  std::mutex mutex_;
  std::condition_variable changed_;
  std::unique_ptr<Mesh> mesh_;
  bool aborted_ = false;
};

}  // namespace rankmesh
