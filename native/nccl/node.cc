// Communicators as JavaScript has them: what their threads tell settles promises on the JavaScript thread, and they end with their environment.
#include "node.h"

#include <atomic>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <utility>

#include "../arguments.h"
#include "../cuda/engine_node.h"
#include "commands.h"

namespace rankmesh::nccl {
namespace {

/** Numbers of ranks, and of whatever else is an int of NCCL's. */
constexpr int64_t kMostRanks = 1 << 20;

struct CudaDriver : Driver {
  explicit CudaDriver(std::shared_ptr<cuda::Device> given) : device(std::move(given)) {}

  void Activate() override { device->Enter(); }

  std::function<bool()> Mark(Stream stream) override {
    const auto event = std::make_shared<cuda::Event>(device, cuda::kEventUntimed);
    event->Record(static_cast<cuda::StreamHandle>(stream));
    return [event] {
      try {
        return event->Passed();
      } catch (const std::exception&) {
        return true;  // the stream has failed: whoever waits for it is told
      }
    };
  }

  const std::shared_ptr<cuda::Device> device;
};

Deadline After(double ms) { return Clock::now() + std::chrono::duration_cast<Clock::duration>(TimeOf(ms, std::chrono::milliseconds(1))); }

Napi::Error ToError(Napi::Env env, const Error& error) {
  auto made = Napi::Error::New(env, error.what());
  made.Set("result", Napi::Number::New(env, error.code));
  if (error.rank >= 0) made.Set("rank", Napi::Number::New(env, error.rank));
  return made;
}

/** The communicators of one environment. On the JavaScript thread, but Tell. */
class Environment : public std::enable_shared_from_this<Environment> {
 public:
  static std::shared_ptr<Environment> New(Napi::Env env) {
    auto made = std::make_shared<Environment>(env);
    made->self_ = made;
    napi_add_env_cleanup_hook(env, [](void* environment) { static_cast<Environment*>(environment)->End(); }, made.get());
    return made;
  }

  explicit Environment(Napi::Env env) {
    const auto nothing = Napi::Function::New(env, [](const Napi::CallbackInfo&) {});
    calls_ = Napi::ThreadSafeFunction::New(env, nothing, "rankmesh.nccl", 0, 1);
    calls_.Unref(env);
  }

  /** Of any thread: runs `function` on the JavaScript thread, unless the environment ends before. */
  void Tell(std::function<void(Napi::Env)> function) {
    const std::lock_guard lock(mutex_);
    if (ended_) return;
    calls_.NonBlockingCall([function = std::move(function)](Napi::Env env, Napi::Function) {
      if (static_cast<napi_env>(env) != nullptr) function(env);
    });
  }

  /** While something is awaited, the event loop goes on. */
  void Await(Napi::Env env) {
    if (awaited_++ == 0) calls_.Ref(env);
  }
  void Settled(Napi::Env env) {
    if (--awaited_ == 0) calls_.Unref(env);
  }

  void Add(const std::shared_ptr<Communicator>& communicator) {
    std::erase_if(communicators_, [](const auto& one) { return one->Ended(Clock::now()); });
    communicators_.insert(communicator);
  }

 private:
  /** Their threads must be gone when Node closes what they call. */
  void End() {
    for (const auto& one : communicators_) one->Abort("the thread of this rank has ended");
    for (const auto& one : communicators_) (void)one->Ended(Clock::now() + std::chrono::seconds(10));
    communicators_.clear();
    const auto last = std::move(self_);
    const std::lock_guard lock(mutex_);
    ended_ = true;
    calls_.Release();
  }

  Napi::ThreadSafeFunction calls_;
  std::set<std::shared_ptr<Communicator>> communicators_;
  size_t awaited_ = 0;
  std::shared_ptr<Environment> self_;
  /** Guards what other threads ask: whether there is still a JavaScript thread. */
  std::mutex mutex_;
  bool ended_ = false;
};

using Shared = std::shared_ptr<Environment>;

struct Kept {
  std::shared_ptr<Environment> environment;
  std::shared_ptr<CudaDriver> driver;
  std::weak_ptr<cuda::Engine> engine;
  std::shared_ptr<Communicator> communicator;
  /** Called where it fails by itself. */
  std::shared_ptr<Napi::FunctionReference> failed;
  /** Memory that NCCL was told of, by number. */
  std::shared_ptr<std::map<uint32_t, void*>> registrations = std::make_shared<std::map<uint32_t, void*>>();
};

Napi::Object NewObject(Napi::Env env, const Kept& kept);

/** A communicator that tells `on_failure(error)` once, where it fails by itself. */
Kept New(const Shared& environment, const std::shared_ptr<cuda::Engine>& engine, Napi::Object options, Napi::Value on_failure) {
  const auto env = options.Env();
  const auto size = IntegerOf(options.Get("size"), "size", 1, kMostRanks);
  const auto rank = IntegerOf(options.Get("rank"), "rank", 0, size - 1);
  if (!on_failure.IsFunction()) throw Napi::TypeError::New(env, "onFailure must be a function");
  const auto callback = std::make_shared<Napi::FunctionReference>(Napi::Persistent(on_failure.As<Napi::Function>()));
  callback->SuppressDestruct();  // the last to drop it may be a thread
  const auto failed = [environment, callback](const Error& error) {
    environment->Tell([callback, error](Napi::Env env) {
      if (!callback->IsEmpty()) callback->Call({ToError(env, error).Value()});
      callback->Reset();
    });
  };
  const auto driver = std::make_shared<CudaDriver>(engine->device());
  const auto made = Communicator::New(Library::Open(), driver, static_cast<int>(rank), static_cast<int>(size), failed);
  environment->Add(made);
  return {environment, driver, engine, made, callback};
}

/** What settles `joined`, a promise, once `kept` has joined its group. */
Communicator::Done Joins(Napi::Env env, const Kept& kept, Napi::Object object) {
  const auto deferred = Napi::Promise::Deferred::New(env);
  object.Set("joined", deferred.Promise());
  kept.environment->Await(env);
  return [environment = kept.environment, failed = kept.failed, deferred](const Error* error) {
    const auto failure = error ? std::make_shared<Error>(*error) : nullptr;
    environment->Tell([environment, failed, deferred, failure](Napi::Env env) {
      environment->Settled(env);
      if (!failure) return deferred.Resolve(env.Undefined());
      failed->Reset();
      deferred.Reject(ToError(env, *failure).Value());
    });
  };
}

std::shared_ptr<cuda::Engine> EngineOf(const Kept& kept) {
  const auto engine = kept.engine.lock();
  if (!engine) throw Error(kInvalidUsage, "the device of rank " + std::to_string(kept.communicator->rank()) + " was disposed", kept.communicator->rank());
  return engine;
}

Napi::Value Split(const Napi::CallbackInfo& info, const Kept& kept) {
  const auto options = ObjectOf(info[0], "options");
  const auto color = options.Get("color").IsNull() ? kNoColor : IntegerOf(options.Get("color"), "color", 0, kMostRanks);
  const auto key = IntegerOf(options.Get("rank"), "rank", 0, kMostRanks);
  const auto deadline = After(options.Get("timeoutMs").ToNumber().DoubleValue());
  const Kept part = New(kept.environment, EngineOf(kept), options, info[1]);
  auto object = NewObject(info.Env(), part);
  part.communicator->Split(kept.communicator, static_cast<int>(color), static_cast<int>(key), deadline, Joins(info.Env(), part, object));
  return object;
}

Napi::Value Register(const Napi::CallbackInfo& info, const Kept& kept) {
  const auto engine = EngineOf(kept);
  const auto found = engine->blocks.find(static_cast<uint32_t>(IntegerOf(info[0], "block", 0, UINT32_MAX)));
  if (found == engine->blocks.end()) throw Napi::RangeError::New(info.Env(), "there is no such block");
  const auto& block = found->second;
  static std::atomic<uint32_t> numbers = 1;
  const uint32_t number = numbers++;
  (*kept.registrations)[number] = kept.communicator->Register(block->data, block->bytes, info[1].ToBoolean());
  return Napi::Number::New(info.Env(), number);
}

void Deregister(const Napi::CallbackInfo& info, const Kept& kept) {
  const auto found = kept.registrations->find(static_cast<uint32_t>(IntegerOf(info[0], "registration", 0, UINT32_MAX)));
  if (found == kept.registrations->end()) throw Napi::RangeError::New(info.Env(), "there is no such registration");
  void* const registration = found->second;
  kept.registrations->erase(found);
  kept.communicator->Deregister(registration);
}

Napi::Value ScaledSum(const Napi::CallbackInfo& info, const Kept& kept) {
  const auto type = static_cast<DataType>(IntegerOf(info[1], "type", 0, kDataTypes - 1));
  return Napi::Number::New(info.Env(), kept.communicator->CreateScaledSum(info[0].ToNumber().DoubleValue(), type));
}

Napi::Object NewObject(Napi::Env env, const Kept& kept) {
  auto object = Napi::Object::New(env);
  /** What it throws comes with NCCL's result and the rank. */
  const auto add = [&](const char* name, auto call) {
    object.Set(name, Napi::Function::New(
                         env,
                         [kept, call](const Napi::CallbackInfo& info) -> Napi::Value {
                           try {
                             return call(info, kept);
                           } catch (const Error& error) {
                             throw ToError(info.Env(), error);
                           }
                         },
                         name));
  };
  const auto nothing = [](auto call) {
    return [call](const Napi::CallbackInfo& info, const Kept& kept) {
      call(info, kept);
      return info.Env().Undefined();
    };
  };
  object.Set("number", NumberOf(kept.communicator));
  // Where nobody has it any more, nobody is going to close it.
  auto* const held = new std::shared_ptr<Communicator>(kept.communicator);
  object.AddFinalizer(
      [](Napi::Env, std::shared_ptr<Communicator>* communicator) {
        (*communicator)->Abort("it was dropped");
        delete communicator;
      },
      held);
  add("failure", [](const Napi::CallbackInfo& info, const Kept& kept) -> Napi::Value {
    const auto failure = kept.communicator->failure();
    return failure ? ToError(info.Env(), *failure).Value() : info.Env().Null();
  });
  add("split", Split);
  add("register", Register);
  add("deregister", nothing(Deregister));
  add("createScaledSum", ScaledSum);
  add("destroyScaledSum", nothing([](const Napi::CallbackInfo& info, const Kept& kept) { kept.communicator->DestroyScaledSum(info[0].ToNumber().Int32Value()); }));
  add("close", nothing([](const Napi::CallbackInfo& info, const Kept& kept) {
        kept.failed->Reset();
        kept.communicator->Close(After(info[0].ToNumber().DoubleValue()));
      }));
  add("abort", nothing([](const Napi::CallbackInfo& info, const Kept& kept) {
        kept.failed->Reset();
        kept.communicator->Abort(info[0].ToString());
      }));
  return object;
}

Napi::Value Create(const Napi::CallbackInfo& info, const Shared& environment) {
  const auto env = info.Env();
  const auto options = ObjectOf(info[0], "options");
  const auto id = ViewOf(options.Get("id"), "id", napi_uint8_array, "Uint8Array");
  UniqueId unique;
  if (id.length != sizeof unique) throw Napi::RangeError::New(env, "id must have " + std::to_string(sizeof unique) + " bytes");
  std::memcpy(unique.bytes, id.data, sizeof unique);
  const Kept kept = New(environment, CudaEngineOf(options.Get("engine")), options, info[1]);
  auto object = NewObject(env, kept);
  kept.communicator->Join(unique, After(options.Get("timeoutMs").ToNumber().DoubleValue()), Joins(env, kept, object));
  return object;
}

}  // namespace

Availability Available() {
  try {
    const auto& library = Library::Open();
    return {true, "NCCL " + VersionText(library.version) + ", " + library.path};
  } catch (const std::exception& error) {
    return {false, error.what()};
  }
}

void Init(Napi::Env env, Napi::Object exports) {
  const auto environment = Environment::New(env);
  auto nccl = Napi::Object::New(env);
  const auto add = [&](const char* name, auto call) { nccl.Set(name, Napi::Function::New(env, call, name)); };
  add("version", [](const Napi::CallbackInfo& info) { return Napi::Number::New(info.Env(), Library::Open().version); });
  add("uniqueId", [](const Napi::CallbackInfo& info) {
    const auto& library = Library::Open();
    UniqueId id;
    library.Call(library.GetUniqueId, -1, &id);
    auto bytes = Napi::Uint8Array::New(info.Env(), sizeof id);
    std::memcpy(bytes.Data(), id.bytes, sizeof id);
    return bytes;
  });
  add("createCommunicator", [environment](const Napi::CallbackInfo& info) { return Create(info, environment); });
  add("begin", [](const Napi::CallbackInfo&) { Begin(); });
  add("end", [](const Napi::CallbackInfo& info) {
    try {
      End(info[0].ToBoolean());
    } catch (const Error& error) {
      throw ToError(info.Env(), error);
    }
  });
  add("createPrograms", CreateCudaPrograms);
  exports.Set("nccl", nccl);
}

}  // namespace rankmesh::nccl
