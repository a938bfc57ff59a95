// createCpuEngine as JavaScript calls it: blocks of memory and queues of commands, by number.
#include <new>

#include "../arguments.h"
#include "../exports.h"
#include "queue.h"

namespace rankmesh {
namespace {

using namespace cpu;

/** Bytes that one block may have. */
constexpr int64_t kMostBytes = int64_t{1} << 46;

Napi::Value Allocate(Napi::Env env, Registry& registry, Napi::Value byte_length) {
  const auto bytes = static_cast<size_t>(IntegerOf(byte_length, "byteLength", 1, kMostBytes));
  std::shared_ptr<Block>* held;
  try {
    held = new std::shared_ptr<Block>(std::make_shared<HostBlock>(bytes));
  } catch (const std::bad_alloc&) {
    throw Napi::RangeError::New(env, "the system has no " + std::to_string(bytes) + " bytes more");
  }
  const auto drop = [](Napi::Env, void*, std::shared_ptr<Block>* block) { delete block; };
  auto result = Napi::Object::New(env);
  result.Set("id", registry.next);
  registry.blocks[registry.next++] = *held;
  // The buffer has its own share in the block.
  result.Set("buffer", Napi::ArrayBuffer::New(env, (*held)->data, bytes, drop, held));
  return result;
}

Napi::Value Measured(Napi::Env env, Queue& queue) {
  auto list = Napi::Array::New(env);
  for (const auto& [variant, times] : queue.Measured()) {
    auto entry = Napi::Object::New(env);
    entry.Set("op", std::get<0>(variant));
    auto types = Napi::Array::New(env);
    types.Set(0u, std::get<1>(variant));
    types.Set(1u, std::get<2>(variant));
    entry.Set("types", types);
    entry.Set("runs", static_cast<double>(times.runs));
    entry.Set("nanoseconds", static_cast<double>(times.nanoseconds));
    list.Set(list.Length(), entry);
  }
  return list;
}

/** What JavaScript's engine has made. */
struct Made : CpuRegistry {
  /** By number, as `queues`; those that are still there. */
  std::vector<std::weak_ptr<Queue>> threads;
  const std::shared_ptr<Team> team = std::make_shared<Team>();
};

Napi::Value CreateProgram(Napi::Env env, const std::shared_ptr<Made>& made, Napi::Value given) {
  if (!given.IsArray()) throw Napi::TypeError::New(env, "parts must be an Array");
  const auto list = given.As<Napi::Array>();
  auto program = std::make_shared<Program>();
  std::vector<std::shared_ptr<Progress>> progresses;
  std::vector<std::weak_ptr<Queue>> threads;
  const auto part = [&](uint32_t i) { return static_cast<Napi::Value>(list[i]).As<Napi::Object>(); };
  for (uint32_t i = 0; i < list.Length(); i++) {
    const auto queue = static_cast<size_t>(IntegerOf(part(i).Get("queue"), "queue", 0, static_cast<int64_t>(made->threads.size()) - 1));
    progresses.push_back(std::static_pointer_cast<Progress>(made->queues[queue]));
    threads.push_back(made->threads[queue]);
  }
  try {
    for (uint32_t i = 0; i < list.Length(); i++) {
      const View words = ViewOf(part(i).Get("words"), "words", napi_float64_array, "Float64Array");
      const auto count = IntegerOf(part(i).Get("count"), "count", 0, static_cast<int64_t>(words.length));
      program->Add(ReadCommands(reinterpret_cast<const double*>(words.data), static_cast<size_t>(count), *made), progresses);
    }
  } catch (const BadCommand& bad) {
    throw Napi::RangeError::New(env, bad.what());
  }
  auto object = Napi::Object::New(env);
  const auto add = [&](const char* name, auto call) { object.Set(name, Napi::Function::New(env, call, name)); };
  const auto held = std::make_shared<std::shared_ptr<const Program>>(std::move(program));
  add("launch", [held, threads](const Napi::CallbackInfo& info) {
    if (!*held || !info[0].IsArray() || info[0].As<Napi::Array>().Length() != threads.size())
      throw Napi::TypeError::New(info.Env(), "a program that is open is launched with a number for each part");
    std::vector<uint64_t> bases;
    for (uint32_t i = 0; i < threads.size(); i++)
      bases.push_back(static_cast<uint64_t>(IntegerOf(info[0].As<Napi::Array>()[i], "base", 0, int64_t{1} << 53)));
    const auto run = std::make_shared<const Run>(*held, std::move(bases));
    for (size_t i = 0; i < threads.size(); i++)
      if (const auto thread = threads[i].lock()) thread->Submit(run, i);
  });
  add("close", [held](const Napi::CallbackInfo&) { held->reset(); });
  return object;
}

Napi::Value CreateQueue(Napi::Env env, const std::shared_ptr<Made>& registry, Napi::Value core) {
  const auto progress = std::make_shared<Progress>();
  const auto queue = std::make_shared<Queue>(env, ChooseKernels(), progress, registry->team, static_cast<int>(IntegerOf(core, "core", -1, 1 << 20)));
  auto object = Napi::Object::New(env);
  object.Set("id", static_cast<double>(registry->queues.size()));
  registry->queues.push_back(progress);
  registry->threads.push_back(queue);
  const auto add = [&](const char* name, auto call) { object.Set(name, Napi::Function::New(env, call, name)); };
  add("submit", [queue, registry, progress](const Napi::CallbackInfo& info) {
    const View words = ViewOf(info[0], "words", napi_float64_array, "Float64Array");
    const auto count = IntegerOf(info[1], "count", 0, static_cast<int64_t>(words.length));
    try {
      auto commands = ReadCommands(reinterpret_cast<const double*>(words.data), static_cast<size_t>(count), *registry);
      for (const Command& command : commands)
        if (command.queue == progress) throw BadCommand("a queue waits for itself");
      queue->Submit(std::move(commands));
    } catch (const BadCommand& bad) {
      throw Napi::RangeError::New(info.Env(), bad.what());
    }
  });
  add("finish", [queue](const Napi::CallbackInfo& info) { return queue->Finish(info.Env()); });
  add("measure", [queue](const Napi::CallbackInfo&) { queue->Measure(); });
  add("measured", [queue](const Napi::CallbackInfo& info) { return Measured(info.Env(), *queue); });
  add("close", [queue](const Napi::CallbackInfo& info) { queue->Stop(info.Env()); });
  return object;
}

Napi::Value CreateCpuEngine(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const auto registry = std::make_shared<Made>();
  auto engine = Napi::Object::New(env);
  const auto add = [&](const char* name, auto call) { engine.Set(name, Napi::Function::New(env, call, name)); };
  engine.Set("kernels", ChooseKernels().name);
  add("allocate", [registry](const Napi::CallbackInfo& info) { return Allocate(info.Env(), *registry, info[0]); });
  add("free", [registry](const Napi::CallbackInfo& info) {
    registry->blocks.erase(static_cast<uint32_t>(IntegerOf(info[0], "id", 0, UINT32_MAX)));
    // The memory goes at once, not when the buffer is collected: what views it sees nothing from now on.
    if (info[1].IsArrayBuffer()) info[1].As<Napi::ArrayBuffer>().Detach();
  });
  add("createQueue", [registry](const Napi::CallbackInfo& info) { return CreateQueue(info.Env(), registry, info[0]); });
  add("createProgram", [registry](const Napi::CallbackInfo& info) { return CreateProgram(info.Env(), registry, info[0]); });
  return engine;
}

}  // namespace

void InitCpu(Napi::Env env, Napi::Object exports) {
  exports.Set("createCpuEngine", Napi::Function::New<CreateCpuEngine>(env, "createCpuEngine"));
}

}  // namespace rankmesh
