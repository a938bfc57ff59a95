// Threads, promises and the store's answers of a GlooGroup.
#include "gloo_group.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace rankmesh {
namespace {

constexpr char kClosed[] = "the group has been closed";

/** Why something was not done, on its way to JavaScript. */
struct Failure {
  std::string text;
  std::vector<int> missing;
  bool timed_out = false;
  bool mismatched = false;

  /** Of the exception that is being handled. */
  static Failure Current() {
    try {
      throw;
    } catch (const MeshError& error) {
      return {error.what(), error.missing, error.timed_out};
    } catch (const Mismatch& error) {
      return {error.what(), {}, false, true};
    } catch (const std::exception& error) {
      return {error.what(), {}, false};
    } catch (...) {
      return {"an exception of an unknown kind", {}, false};
    }
  }

  Napi::Value ToError(Napi::Env env) const {
    const auto error = Napi::Error::New(env, text).Value();
    auto ranks = Napi::Array::New(env, missing.size());
    for (uint32_t i = 0; i < missing.size(); i++) ranks.Set(i, missing[i]);
    error.Set("missing", ranks);
    error.Set("timedOut", timed_out);
    error.Set("mismatched", mismatched);
    return error;
  }
};

/** At the end of the environment. */
void CloseGroup(void* group) { static_cast<GlooGroup*>(group)->Close(); }

}  // namespace

Worker::Worker() : thread_([this] { Run(); }) {}

Worker::~Worker() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void Worker::Do(std::function<void()> task) {
  {
    const std::lock_guard lock(mutex_);
    tasks_.push_back(std::move(task));
  }
  changed_.notify_one();
}

void Worker::Run() {
  for (;;) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return stopped_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    const auto task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    task();
  }
}

std::shared_ptr<GlooGroup> GlooGroup::New(Napi::Env env, Napi::Object store) {
  std::shared_ptr<GlooGroup> group(new GlooGroup(env, store));
  group->self_ = group;
  napi_add_env_cleanup_hook(env, CloseGroup, group.get());
  return group;
}

GlooGroup::GlooGroup(Napi::Env env, Napi::Object store) : env_(env), store_(Napi::Persistent(store)) {
  const auto nothing = Napi::Function::New(env, [](const Napi::CallbackInfo&) {});
  calls_ = Napi::ThreadSafeFunction::New(env, nothing, "rankmesh.gloo", 0, 1);
  calls_.Unref(env);
}

Napi::Promise GlooGroup::Do(Napi::Env env, int64_t lane, Napi::Object operand, std::function<Result()> work) {
  const auto deferred = Napi::Promise::Deferred::New(env);
  if (closed_) {
    deferred.Reject(Failure{kClosed, {}, false}.ToError(env));
    return deferred.Promise();
  }
  auto& worker = workers_[lane];
  if (!worker) worker = std::make_unique<Worker>();
  if (pending_++ == 0) calls_.Ref(env);
  const auto kept = std::make_shared<Napi::ObjectReference>(Napi::Persistent(operand));
  kept->SuppressDestruct();  // the last to drop it may be a worker
  worker->Do([self = shared_from_this(), deferred, kept, work = std::move(work)] {
    Result result;
    Failure failure;
    try {
      result = work();
    } catch (...) {
      failure = Failure::Current();
    }
    self->OnJavaScript([self, deferred, kept, result, failure](Napi::Env env) {
      if (--self->pending_ == 0 && !self->closed_) self->calls_.Unref(env);
      kept->Reset();
      if (!result) {
        deferred.Reject(failure.ToError(env));
        if (!self->mesh_) self->Close();  // it never connected
        return;
      }
      try {
        deferred.Resolve(result(env));
      } catch (const Napi::Error& error) {
        deferred.Reject(error.Value());
      }
    });
  });
  return deferred.Promise();
}

void GlooGroup::Connect(int rank, int size, const std::string& host, const std::string& prefix, Deadline deadline) {
  MeshStore store;
  store.set = [&](const std::string& key, const std::vector<char>& value) { Ask(prefix + key, &value, deadline); };
  store.get = [&](const std::string& key) { return Ask(prefix + key, nullptr, deadline); };
  auto mesh = std::make_unique<Mesh>(rank, size, host, store);
  const std::lock_guard lock(mutex_);
  if (aborted_) throw std::runtime_error(kClosed);
  mesh_ = std::move(mesh);
}

void GlooGroup::Close() {
  if (closed_) return;
  closed_ = true;
  napi_remove_env_cleanup_hook(env_, CloseGroup, this);
  {
    const std::lock_guard lock(mutex_);
    aborted_ = true;
    if (mesh_) mesh_->Abort();
  }
  changed_.notify_all();
  workers_.clear();
  mesh_.reset();
  store_.Reset();
  calls_.Release();
  const auto last = std::move(self_);
}

/** Not done where the environment ends first. */
void GlooGroup::OnJavaScript(std::function<void(Napi::Env)> function) {
  calls_.NonBlockingCall([function = std::move(function)](Napi::Env env, Napi::Function) {
    if (static_cast<napi_env>(env) != nullptr) function(env);
  });
}

std::vector<char> GlooGroup::Ask(const std::string& key, const std::vector<char>* value, Deadline deadline) {
  const auto answer = std::make_shared<Answer>();
  const Settle settle = [self = shared_from_this(), answer](std::string error, std::vector<char> bytes) {
    {
      const std::lock_guard lock(self->mutex_);
      *answer = {true, std::move(error), std::move(bytes)};
    }
    self->changed_.notify_all();
  };
  OnJavaScript([self = shared_from_this(), settle, key, has = value != nullptr, bytes = value ? *value : std::vector<char>(), deadline](Napi::Env env) {
    try {
      if (!self->closed_) self->Call(env, key, has ? &bytes : nullptr, deadline, settle);
    } catch (const Napi::Error& error) {
      settle(error.Message(), {});
    }
  });
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [&] { return aborted_ || answer->done; });
  if (aborted_) throw std::runtime_error(kClosed);
  if (!answer->done) throw MeshError("the store did not answer about " + key, {}, true);
  if (!answer->error.empty()) throw std::runtime_error(answer->error);
  return answer->value;
}

void GlooGroup::Call(Napi::Env env, const std::string& key, const std::vector<char>* value, Deadline deadline, const Settle& settle) {
  Napi::Value operand;
  if (value) {
    auto bytes = Napi::Uint8Array::New(env, value->size());
    std::memcpy(bytes.Data(), value->data(), value->size());
    operand = bytes;
  } else {
    const auto left = std::chrono::duration<double, std::milli>(deadline - Clock::now());
    operand = Napi::Number::New(env, std::max(1.0, left.count()));
  }
  const auto store = store_.Value();
  const auto method = store.Get(value ? "set" : "get").As<Napi::Function>();
  const auto promise = method.Call(store, {Napi::String::New(env, key), operand}).As<Napi::Object>();
  const auto came = Napi::Function::New(env, [settle](const Napi::CallbackInfo& info) {
    std::vector<char> bytes;
    if (info[0].IsTypedArray()) {
      const auto array = info[0].As<Napi::Uint8Array>();
      const auto* data = reinterpret_cast<const char*>(array.Data());
      bytes.assign(data, data + array.ByteLength());
    }
    settle("", std::move(bytes));
  });
  const auto failed = Napi::Function::New(env, [settle](const Napi::CallbackInfo& info) { settle(info[0].ToString().Utf8Value(), {}); });
  promise.Get("then").As<Napi::Function>().Call(promise, {came, failed});
}

}  // namespace rankmesh
