// What JavaScript calls of a GlooGroup: arguments in, results out.
#include "gloo.h"

#include <cstring>

#include "arguments.h"
#include "gloo_group.h"

namespace rankmesh {
namespace {

/** Results up to this many bytes are copied into memory of JavaScript's own. */
constexpr size_t kCopied = 65536;
/** The worker of rounds among all; pairs have others. */
constexpr int64_t kAll = -1;

Deadline After(Napi::Value milliseconds) {
  return Clock::now() + std::chrono::duration_cast<Clock::duration>(TimeOf(milliseconds, "timeoutMs", std::chrono::milliseconds(1)));
}

Napi::Value ToArray(Napi::Env env, Bytes& bytes) {
  if (bytes.length <= kCopied) {
    auto array = Napi::Uint8Array::New(env, bytes.length);
    if (bytes.length > 0) std::memcpy(array.Data(), bytes.data.get(), bytes.length);
    return array;
  }
  auto* const data = bytes.data.release();
  const auto buffer = Napi::ArrayBuffer::New(env, data, bytes.length, [](Napi::Env, void* memory) { std::free(memory); });
  return Napi::Uint8Array::New(env, bytes.length, buffer, 0);
}

Type TypeOf(Napi::Env env, napi_typedarray_type type) {
  switch (type) {
    case napi_int32_array:
      return Type::kInt32;
    case napi_uint32_array:
      return Type::kUint32;
    case napi_bigint64_array:
      return Type::kInt64;
    case napi_biguint64_array:
      return Type::kUint64;
    case napi_float32_array:
      return Type::kFloat32;
    case napi_float64_array:
      return Type::kFloat64;
    default:
      throw Napi::TypeError::New(env, "array must be of 32-bit or 64-bit numbers");
  }
}

/** The group's end with its object in JavaScript. */
struct Owner {
  explicit Owner(std::shared_ptr<GlooGroup> group, int rank, int size) : group(std::move(group)), rank(rank), size(size) {}
  Owner(const Owner&) = delete;
  Owner& operator=(const Owner&) = delete;
  ~Owner() { group->Close(); }

  const std::shared_ptr<GlooGroup> group;
  const int rank;
  const int size;
};

Napi::Value Exchange(const Owner& owner, const Napi::CallbackInfo& info) {
  const View view = ViewOf(info[0], "bytes");
  const auto deadline = After(info[1]);
  auto& group = *owner.group;
  return group.Do(info.Env(), kAll, info[0].As<Napi::Object>(), [&group, view, deadline, rank = owner.rank]() -> GlooGroup::Result {
    const auto all = std::make_shared<std::vector<Bytes>>(group.mesh().Exchange(view.data, view.Bytes(), deadline));
    Bytes own(view.Bytes());
    if (own.length > 0) std::memcpy(own.data.get(), view.data, own.length);
    (*all)[rank] = std::move(own);
    return [all](Napi::Env env) -> Napi::Value {
      auto result = Napi::Array::New(env, all->size());
      for (uint32_t r = 0; r < all->size(); r++) result.Set(r, ToArray(env, (*all)[r]));
      return result;
    };
  });
}

Napi::Value ExchangePair(const Owner& owner, const Napi::CallbackInfo& info) {
  const auto peer = static_cast<int>(IntegerOf(info[0], "peer", 0, owner.size - 1));
  const auto tag = static_cast<uint32_t>(IntegerOf(info[1], "tag", 0, 65535));
  if (peer == owner.rank) throw Napi::RangeError::New(info.Env(), "peer must be another rank");
  const View view = ViewOf(info[2], "bytes");
  const auto deadline = After(info[3]);
  const int64_t lane = (int64_t{peer} << 16) | tag;
  auto& group = *owner.group;
  return group.Do(info.Env(), lane, info[2].As<Napi::Object>(), [&group, view, peer, tag, deadline]() -> GlooGroup::Result {
    const auto theirs = std::make_shared<Bytes>(group.mesh().ExchangePair(peer, tag, view.data, view.Bytes(), deadline));
    return [theirs](Napi::Env env) { return ToArray(env, *theirs); };
  });
}

Napi::Value AllReduce(const Owner& owner, const Napi::CallbackInfo& info) {
  const View view = ViewOf(info[0], "array");
  const auto type = TypeOf(info.Env(), view.type);
  const auto op = static_cast<Op>(IntegerOf(info[1], "op", 0, 2));
  const auto deadline = After(info[2]);
  const auto signature = static_cast<uint32_t>(WordOf(info[3], "signature"));
  auto& group = *owner.group;
  return group.Do(info.Env(), kAll, info[0].As<Napi::Object>(), [&group, view, type, op, deadline, signature]() -> GlooGroup::Result {
    group.mesh().AllReduce(type, op, view.data, view.length, deadline, signature);
    return [](Napi::Env env) { return env.Undefined(); };
  });
}

Napi::Value ToObject(Napi::Env env, const std::shared_ptr<Owner>& owner) {
  auto object = Napi::Object::New(env);
  const auto add = [&](const char* name, Napi::Value (*method)(const Owner&, const Napi::CallbackInfo&)) {
    object.Set(name, Napi::Function::New(env, [owner, method](const Napi::CallbackInfo& info) { return method(*owner, info); }, name));
  };
  add("exchange", Exchange);
  add("exchangePair", ExchangePair);
  add("allReduce", AllReduce);
  add("close", [](const Owner& owner, const Napi::CallbackInfo& info) -> Napi::Value {
    owner.group->Close();
    return info.Env().Undefined();
  });
  return object;
}

Napi::Value ConnectGloo(const Napi::CallbackInfo& info) {
  const auto options = ObjectOf(info[0], "options");
  const auto store = ObjectOf(info[1], "store");
  const auto size = static_cast<int>(IntegerOf(options.Get("size"), "size", 2, 65535));
  const auto rank = static_cast<int>(IntegerOf(options.Get("rank"), "rank", 0, size - 1));
  const auto host = options.Get("host").ToString().Utf8Value();
  const auto prefix = options.Get("prefix").ToString().Utf8Value();
  const auto deadline = After(options.Get("timeoutMs"));
  const auto group = GlooGroup::New(info.Env(), store);
  return group->Do(info.Env(), kAll, store, [group, rank, size, host, prefix, deadline]() -> GlooGroup::Result {
    group->Connect(rank, size, host, prefix, deadline);
    return [group, rank, size](Napi::Env env) { return ToObject(env, std::make_shared<Owner>(group, rank, size)); };
  });
}

}  // namespace
}  // namespace rankmesh

void InitGloo(Napi::Env env, Napi::Object exports) {
  exports.Set("connectGloo", Napi::Function::New(env, rankmesh::ConnectGloo, "connectGloo"));
}
