// createSegment and openSegment as JavaScript calls them.
#include "exports.h"

#ifdef _WIN32
namespace rankmesh {

void InitSegment(Napi::Env env, Napi::Object exports) {
  const auto refuse = [](const Napi::CallbackInfo& info) { throw Napi::Error::New(info.Env(), "This system has no POSIX shared memory"); };
  exports.Set("createSegment", Napi::Function::New(env, refuse, "createSegment"));
  exports.Set("openSegment", Napi::Function::New(env, refuse, "openSegment"));
}

}  // namespace rankmesh
#else
#include <cerrno>

#include "arguments.h"
#include "segment.h"

namespace rankmesh {
namespace {

/** The largest rank whose lock can be asked for. */
constexpr int64_t kMostRanks = 1 << 20;

const char* CodeOf(int number) {
  switch (number) {
    case ENOENT:
      return "ENOENT";
    case EEXIST:
      return "EEXIST";
    case EBUSY:
      return "EBUSY";
    case ENOSPC:
      return "ENOSPC";
    case ENOMEM:
      return "ENOMEM";
    case EPERM:
    case EACCES:
      return "EPERM";
    default:
      return "EIO";
  }
}

/** What `work` gives; what the system refuses becomes an Error with a code. */
template <typename Work>
auto Attempt(Napi::Env env, Work work) {
  try {
    return work();
  } catch (const SystemError& failure) {
    auto error = Napi::Error::New(env, failure.message);
    error.Set("code", CodeOf(failure.number));
    throw error;
  }
}

std::string NameOf(Napi::Value value) {
  const std::string name = value.IsString() ? value.As<Napi::String>().Utf8Value() : "";
  const auto plain = [](char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_'; };
  if (name.empty() || name.size() > 200 || !std::all_of(name.begin(), name.end(), plain))
    throw Napi::TypeError::New(value.Env(), "name must be a string of 1 to 200 letters, digits, - and _");
  return name;
}

Napi::Object Wrap(Napi::Env env, std::shared_ptr<Segment> segment) {
  auto object = Napi::Object::New(env);
  // The buffer has its own share in the mapping.
  auto* const held = new std::shared_ptr<Mapping>(segment->mapping());
  const auto drop = [](Napi::Env, void*, std::shared_ptr<Mapping>* mapping) { delete mapping; };
  object.Set("buffer", Napi::ArrayBuffer::New(env, (*held)->data(), (*held)->bytes(), drop, held));
  const auto add = [&](const char* name, auto call) { object.Set(name, Napi::Function::New(env, call, name)); };
  add("claim", [segment](const Napi::CallbackInfo& info) {
    const auto rank = static_cast<size_t>(IntegerOf(info[0], "rank", 0, kMostRanks - 1));
    Attempt(info.Env(), [&] { segment->Claim(rank); });
  });
  add("claimed", [segment](const Napi::CallbackInfo& info) {
    const auto rank = static_cast<size_t>(IntegerOf(info[0], "rank", 0, kMostRanks - 1));
    return Napi::Boolean::New(info.Env(), Attempt(info.Env(), [&] { return segment->Claimed(rank); }));
  });
  add("unlink", [segment](const Napi::CallbackInfo&) { segment->Unlink(); });
  add("close", [segment](const Napi::CallbackInfo&) { segment->Close(); });
  object.Freeze();
  return object;
}

Napi::Value CreateSegment(const Napi::CallbackInfo& info) {
  const auto name = NameOf(info[0]);
  const auto bytes = static_cast<size_t>(IntegerOf(info[1], "byteLength", 1, int64_t{1} << 46));
  return Attempt(info.Env(), [&] { return Wrap(info.Env(), Segment::Create(name, bytes)); });
}

Napi::Value OpenSegment(const Napi::CallbackInfo& info) {
  const auto name = NameOf(info[0]);
  return Attempt(info.Env(), [&] { return Wrap(info.Env(), Segment::Open(name)); });
}

}  // namespace

void InitSegment(Napi::Env env, Napi::Object exports) {
  exports.Set("createSegment", Napi::Function::New<CreateSegment>(env, "createSegment"));
  exports.Set("openSegment", Napi::Function::New<OpenSegment>(env, "openSegment"));
}

}  // namespace rankmesh
#endif
