// createCudaEngine and cudaDevices as JavaScript calls them.
#include "engine_node.h"

#include <cstring>

#include "../arguments.h"
#include "../exports.h"
#include "../nccl/commands.h"
#include "domain.h"
#include "finisher.h"
#include "peer_commands.h"
#include "program.h"

namespace rankmesh {
namespace {

using namespace cuda;

/** Bytes that one block may have. */
constexpr int64_t kMostBytes = int64_t{1} << 46;

const napi_type_tag kEngineTag = {0x72616e6b6d657368, 0x63756461656e6769};

/** Runs what JavaScript asked for: what is thrown becomes an error of its kind. */
template <typename Work>
auto Guarded(Napi::Env env, Work work) {
  try {
    return work();
  } catch (const engine::BadCommand& bad) {
    throw Napi::RangeError::New(env, bad.what());
  } catch (const std::out_of_range& outside) {
    throw Napi::RangeError::New(env, outside.what());
  } catch (const std::runtime_error& failed) {
    throw Napi::Error::New(env, failed.what());
  }
}

uint32_t IdOf(Napi::Value value) { return static_cast<uint32_t>(IntegerOf(value, "id", 0, UINT32_MAX)); }
size_t BytesOf(Napi::Value value, const char* name, int64_t least = 0) { return static_cast<size_t>(IntegerOf(value, name, least, kMostBytes)); }

std::vector<engine::Command> CommandsOf(Napi::Value value, Napi::Value count, Engine& engine) {
  const View words = ViewOf(value, "words", napi_float64_array, "Float64Array");
  const auto used = IntegerOf(count, "count", 0, static_cast<int64_t>(words.length));
  return engine::ReadCommands(reinterpret_cast<const double*>(words.data), static_cast<size_t>(used), engine);
}

void Describe(Napi::Object object, const DeviceInfo& info) {
  object.Set("index", info.index);
  object.Set("name", info.name);
  object.Set("uuid", info.UuidText());
  object.Set("computeCapability", std::to_string(info.capability[0]) + "." + std::to_string(info.capability[1]));
  object.Set("memoryBytes", static_cast<double>(info.memory_bytes));
  object.Set("multiprocessors", info.multiprocessors);
}

/** Where there is not enough memory, this is a RangeError; another failure is one of the device. */
template <typename Allocate>
uint32_t Allocated(Napi::Env env, Engine& engine, Allocate allocate) {
  return Guarded(env, [&] {
    try {
      return allocate();
    } catch (const CudaError& failed) {
      if (failed.result == kOutOfMemory) throw Napi::RangeError::New(env, failed.what());
      engine.Fail(failed, *engine.device());
      throw;
    }
  });
}

Napi::Value AllocateHost(Napi::Env env, Engine& engine, Napi::Value byte_length) {
  const size_t bytes = BytesOf(byte_length, "byteLength", 1);
  const uint32_t id = Allocated(env, engine, [&] { return engine.AllocateHost(bytes); });
  // The buffer has its own share in the block.
  auto* const held = new std::shared_ptr<engine::Block>(engine.blocks[id]);
  const auto drop = [](Napi::Env, void*, std::shared_ptr<engine::Block>* block) { delete block; };
  auto result = Napi::Object::New(env);
  result.Set("id", id);
  result.Set("buffer", Napi::ArrayBuffer::New(env, (*held)->data, bytes, drop, held));
  return result;
}

/** A failure is none of the device: it goes on without such memory. */
template <typename Allocate>
uint32_t AllocatedAside(Napi::Env env, Allocate allocate) {
  try {
    return allocate();
  } catch (const CudaError& failed) {
    if (failed.result == kOutOfMemory) throw Napi::RangeError::New(env, failed.what());
    throw;
  }
}

Napi::Value Measured(Napi::Env env, Stream& stream) {
  auto list = Napi::Array::New(env);
  for (const auto& [variant, times] : stream.Measured()) {
    auto entry = Napi::Object::New(env);
    entry.Set("op", std::get<0>(variant));
    auto types = Napi::Array::New(env);
    types.Set(0u, std::get<1>(variant));
    types.Set(1u, std::get<2>(variant));
    entry.Set("types", types);
    entry.Set("runs", static_cast<double>(times.runs));
    entry.Set("nanoseconds", times.nanoseconds);
    list.Set(list.Length(), entry);
  }
  return list;
}

Napi::Value CreateQueue(Napi::Env env, const std::shared_ptr<Engine>& engine) {
  const auto id = engine->queues.size();
  const auto stream = Guarded(env, [&] { return engine->NewStream(); });
  const auto finisher = std::make_shared<Finisher>(env, engine, stream);
  auto object = Napi::Object::New(env);
  object.Set("id", static_cast<double>(id));
  const auto add = [&](const char* name, auto call) { object.Set(name, Napi::Function::New(env, call, name)); };
  add("submit", [engine, stream](const Napi::CallbackInfo& info) {
    Guarded(info.Env(), [&] {
      const auto commands = CommandsOf(info[0], info[1], *engine);
      engine->Submit([&] {
        for (const auto& command : commands) stream->Run(command);
      });
    });
  });
  add("write", [engine, stream](const Napi::CallbackInfo& info) {
    const View bytes = ViewOf(info[2], "bytes");
    Guarded(info.Env(), [&] {
      std::byte* const to = engine->At(IdOf(info[0]), BytesOf(info[1], "offset"), bytes.Bytes());
      engine->Submit([&] { stream->Write(to, bytes.data, bytes.Bytes()); });
    });
  });
  add("finish", [finisher](const Napi::CallbackInfo& info) { return finisher->Finish(info.Env()); });
  add("measure", [stream](const Napi::CallbackInfo&) { stream->Measure(); });
  add("measured", [engine, stream](const Napi::CallbackInfo& info) {
    return Guarded(info.Env(), [&] {
      engine->device()->Enter();
      return Measured(info.Env(), *stream);
    });
  });
  add("close", [finisher](const Napi::CallbackInfo& info) { finisher->Stop(info.Env()); });
  return object;
}

/** What each engine's queues are to run again and again, as programs that are captured together. */
std::vector<Napi::Value> ProgramsOf(Napi::Env env, const std::vector<std::pair<std::shared_ptr<Engine>, Napi::Value>>& all) {
  std::vector<std::unique_ptr<Program>> programs;
  Guarded(env, [&] {
    std::vector<Program::Given> given;
    for (const auto& [engine, value] : all) {
      if (!value.IsArray() || value.As<Napi::Array>().Length() == 0) throw Napi::TypeError::New(env, "parts must be an Array of at least one part");
      const auto list = value.As<Napi::Array>();
      std::vector<Program::Part> parts;
      for (uint32_t i = 0; i < list.Length(); i++) {
        const auto part = ObjectOf(list[i], "part");
        const auto queue = IntegerOf(part.Get("queue"), "queue", 0, static_cast<int64_t>(engine->queues.size()) - 1);
        auto* const stream = static_cast<Stream*>(engine->queues[static_cast<size_t>(queue)].get());
        parts.push_back({stream, CommandsOf(part.Get("words"), part.Get("count"), *engine)});
      }
      given.push_back({engine.get(), std::move(parts)});
    }
    programs = Program::Capture(std::move(given));
  });
  std::vector<Napi::Value> objects;
  for (size_t i = 0; i < all.size(); i++) {
    const auto program = std::make_shared<std::unique_ptr<Program>>(std::move(programs[i]));
    auto object = Napi::Object::New(env);
    const auto add = [&](const char* name, auto call) { object.Set(name, Napi::Function::New(env, call, name)); };
    add("launch", [engine = all[i].first, program](const Napi::CallbackInfo& info) {
      if (!*program) throw Napi::TypeError::New(info.Env(), "the program was closed");
      Guarded(info.Env(), [&] { (*program)->Launch(); });
    });
    add("ended", [engine = all[i].first, program](const Napi::CallbackInfo& info) -> Napi::Value {
      const std::string why = *program ? (*program)->ended() : "it was closed";
      return why.empty() ? info.Env().Null() : Napi::String::New(info.Env(), why);
    });
    add("close", [engine = all[i].first, program](const Napi::CallbackInfo&) { program->reset(); });
    objects.push_back(object);
  }
  return objects;
}

Napi::Value ImportMemory(Napi::Env env, Engine& engine, Napi::Value value) {
  const View bytes = ViewOf(value, "exported", napi_uint8_array, "Uint8Array");
  Exported exported;
  if (bytes.length != sizeof exported) throw Napi::RangeError::New(env, "what is to be imported was not exported by this version");
  std::memcpy(&exported, bytes.data, sizeof exported);
  auto result = Napi::Object::New(env);
  result.Set("id", Guarded(env, [&] { return engine.Import(exported); }));
  result.Set("byteLength", static_cast<double>(exported.bytes));
  return result;
}

void AddMulticasts(Napi::Object object, const std::shared_ptr<Engine>& engine) {
  const auto add = [&](const char* name, auto call) { object.Set(name, Napi::Function::New(object.Env(), call, name)); };
  add("domain", [engine](const Napi::CallbackInfo& info) -> Napi::Value {
    const std::string domain = Guarded(info.Env(), [&] { return DomainOf(*engine->device()); });
    return domain.empty() ? info.Env().Null() : Napi::String::New(info.Env(), domain).As<Napi::Value>();
  });
  const auto devices_of = [](Napi::Value value) { return static_cast<unsigned>(IntegerOf(value, "devices", 0, 1 << 16)); };
  add("multicast", [engine](const Napi::CallbackInfo& info) {
    const std::string obstacle = Guarded(info.Env(), [&] { return MulticastObstacle(*engine->device()); });
    auto result = Napi::Object::New(info.Env());
    result.Set("available", obstacle.empty());
    result.Set("detail", obstacle);
    return result;
  });
  add("allocateBindable", [engine, devices_of](const Napi::CallbackInfo& info) {
    const size_t bytes = BytesOf(info[0], "byteLength", 1);
    const unsigned devices = devices_of(info[1]);
    auto result = Napi::Object::New(info.Env());
    result.Set("id", Guarded(info.Env(), [&] { return AllocatedAside(info.Env(), [&] { return engine->AllocateBindable(bytes, devices); }); }));
    return result;
  });
  add("createMulticast", [engine, devices_of](const Napi::CallbackInfo& info) {
    const size_t bytes = BytesOf(info[0], "byteLength", 1);
    const unsigned devices = devices_of(info[1]);
    auto result = Napi::Object::New(info.Env());
    result.Set("id", Guarded(info.Env(), [&] { return engine->CreateMulticast(bytes, devices); }));
    return result;
  });
  add("bindMulticast", [engine](const Napi::CallbackInfo& info) {
    Guarded(info.Env(), [&] { engine->BindMulticast(IdOf(info[0]), IdOf(info[1])); });
  });
}

Napi::Value CreateCudaEngine(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const auto index = static_cast<int>(IntegerOf(info[0], "index", 0, 1 << 16));
  const auto engine = Guarded(env, [&] { return std::make_shared<Engine>(index); });
  AddPeerCommands(*engine);
  nccl::AddCommands(*engine);
  auto object = Napi::Object::New(env);
  const auto add = [&](const char* name, auto call) { object.Set(name, Napi::Function::New(env, call, name)); };
  const DeviceInfo& device = engine->device()->info;
  Describe(object, device);
  object.Set("machine", MachineName());
  object.Set("kernels", "sm_" + std::to_string(device.capability[0]) + std::to_string(device.capability[1]) + (engine->blas ? ", cuBLASLt" : ""));
  add("allocate", [engine](const Napi::CallbackInfo& info) {
    const size_t bytes = BytesOf(info[0], "byteLength", 1);
    auto result = Napi::Object::New(info.Env());
    result.Set("id", Allocated(info.Env(), *engine, [&] { return engine->Allocate(bytes); }));
    result.Set("buffer", info.Env().Null());
    return result;
  });
  add("allocateHost", [engine](const Napi::CallbackInfo& info) { return AllocateHost(info.Env(), *engine, info[0]); });
  add("allocateShared", [engine](const Napi::CallbackInfo& info) {
    const size_t bytes = BytesOf(info[0], "byteLength", 1);
    auto result = Napi::Object::New(info.Env());
    result.Set("id", Guarded(info.Env(), [&] { return AllocatedAside(info.Env(), [&] { return engine->AllocateShared(bytes); }); }));
    return result;
  });
  AddMulticasts(object, engine);
  add("free", [engine](const Napi::CallbackInfo& info) {
    // What views the buffer sees nothing from now on.
    if (info[1].IsArrayBuffer()) info[1].As<Napi::ArrayBuffer>().Detach();
    Guarded(info.Env(), [&] { engine->Free(IdOf(info[0])); });
  });
  add("createQueue", [engine](const Napi::CallbackInfo& info) { return CreateQueue(info.Env(), engine); });
  add("createProgram", [engine](const Napi::CallbackInfo& info) { return ProgramsOf(info.Env(), {{engine, info[0]}}).front(); });
  add("exportMemory", [engine](const Napi::CallbackInfo& info) {
    const Exported exported = Guarded(info.Env(), [&] { return engine->Export(IdOf(info[0])); });
    auto bytes = Napi::Uint8Array::New(info.Env(), sizeof exported);
    std::memcpy(bytes.Data(), &exported, sizeof exported);
    return bytes;
  });
  add("importMemory", [engine](const Napi::CallbackInfo& info) { return ImportMemory(info.Env(), *engine, info[0]); });
  add("poke", [engine](const Napi::CallbackInfo& info) {
    Guarded(info.Env(), [&] { engine->Poke(IdOf(info[0]), BytesOf(info[1], "offset"), static_cast<uint32_t>(WordOf(info[2], "word"))); });
  });
  add("fill", [engine](const Napi::CallbackInfo& info) {
    Guarded(info.Env(), [&] {
      const size_t bytes = BytesOf(info[2], "byteLength");
      engine->FillAtOnce(IdOf(info[0]), BytesOf(info[1], "offset"), bytes, static_cast<unsigned char>(IntegerOf(info[3], "value", 0, 255)));
    });
  });
  add("close", [engine](const Napi::CallbackInfo&) { engine->Close(); });
  add("freeBytes", [engine](const Napi::CallbackInfo& info) {
    return Napi::Number::New(info.Env(), static_cast<double>(Guarded(info.Env(), [&] { return engine->FreeBytes(); })));
  });
  add("canAccessPeer", [engine](const Napi::CallbackInfo& info) {
    return Napi::Boolean::New(info.Env(), Guarded(info.Env(), [&] {
      return engine->CanAccessPeer(static_cast<int>(IntegerOf(info[0], "index", 0, engine->device()->driver.devices() - 1)));
    }));
  });
  object.TypeTag(&kEngineTag);
  // For other parts of the addon, which are given this object.
  object.DefineProperty(Napi::PropertyDescriptor::Value(
      "native", Napi::External<std::shared_ptr<Engine>>::New(env, new std::shared_ptr<Engine>(engine), [](Napi::Env, auto* held) { delete held; })));
  return object;
}

Napi::Value CudaDevices(const Napi::CallbackInfo& info) {
  auto list = Napi::Array::New(info.Env());
  Guarded(info.Env(), [&] {
    const Driver& driver = Driver::Get();
    for (int index = 0; index < driver.devices(); index++) {
      auto object = Napi::Object::New(info.Env());
      Describe(object, InfoOf(driver, index));
      list.Set(static_cast<uint32_t>(index), object);
    }
  });
  return list;
}

}  // namespace

std::shared_ptr<cuda::Engine> CudaEngineOf(Napi::Value value) {
  if (!value.IsObject() || !value.As<Napi::Object>().CheckTypeTag(&kEngineTag))
    throw Napi::TypeError::New(value.Env(), "engine must be an engine of createCudaEngine");
  return *value.As<Napi::Object>().Get("native").As<Napi::External<std::shared_ptr<Engine>>>().Data();
}

Napi::Value CreateCudaPrograms(const Napi::CallbackInfo& info) {
  if (!info[0].IsArray()) throw Napi::TypeError::New(info.Env(), "what programs are made of must be an Array");
  const auto list = info[0].As<Napi::Array>();
  std::vector<std::pair<std::shared_ptr<Engine>, Napi::Value>> all;
  for (uint32_t i = 0; i < list.Length(); i++) {
    const auto one = ObjectOf(list[i], "program");
    all.emplace_back(CudaEngineOf(one.Get("engine")), one.Get("parts"));
  }
  auto made = Napi::Array::New(info.Env());
  for (const auto& program : ProgramsOf(info.Env(), all)) made.Set(made.Length(), program);
  return made;
}

std::string CudaFeature(bool& available) {
  available = false;
  try {
    const Driver& driver = Driver::Get();
    ReadKernels(true);
    const auto version = std::to_string(driver.version() / 1000) + "." + std::to_string(driver.version() % 1000 / 10);
    available = true;
    return "driver for CUDA " + version + ", " + std::to_string(driver.devices()) + (driver.devices() == 1 ? " device" : " devices");
  } catch (const std::runtime_error& error) {
    return error.what();
  }
}

void InitCuda(Napi::Env env, Napi::Object exports) {
  exports.Set("createCudaEngine", Napi::Function::New<CreateCudaEngine>(env, "createCudaEngine"));
  exports.Set("cudaDevices", Napi::Function::New<CudaDevices>(env, "cudaDevices"));
}

}  // namespace rankmesh
