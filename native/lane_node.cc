// post, wait, waitAsync and ring as JavaScript calls them.
#include <vector>

#include "arguments.h"
#include "exports.h"
#include "waiters.h"

namespace rankmesh {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

void PostCall(const Napi::CallbackInfo& info) { Post(LaneOf(info[0]), WordOf(info[1], "epoch")); }

Napi::Value WaitCall(const Napi::CallbackInfo& info) {
  const Lane lane = LaneOf(info[0]);
  const Result result = Wait(lane, WordOf(info[1], "epoch"), WordOf(info[2], "alarm"), TimeOf(info[3], "microseconds", microseconds(1)));
  return Napi::Number::New(info.Env(), static_cast<int32_t>(result));
}

Napi::Value WaitAsyncCall(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const Lane lane = LaneOf(info[0]);
  const auto epoch = WordOf(info[1], "epoch");
  const auto alarm = WordOf(info[2], "alarm");
  const auto most = TimeOf(info[3], "milliseconds", milliseconds(1));
  auto* waiters = env.GetInstanceData<Waiters>();
  if (!waiters) env.SetInstanceData(waiters = new Waiters(env));
  return waiters->Add(env, info[0].As<Napi::Object>().Get("words").As<Napi::Object>(), lane, epoch, alarm, most);
}

void RingCall(const Napi::CallbackInfo& info) {
  const View words = ViewOf(info[0], "words", napi_int32_array, "Int32Array");
  const int64_t alarm = IntegerOf(info[1], "alarm", 0, static_cast<int64_t>(words.length) - 1);
  if (!info[2].IsArray()) throw Napi::TypeError::New(info.Env(), "lanes must be an array");
  const auto list = info[2].As<Napi::Array>();
  std::vector<std::pair<int32_t*, int64_t>> lanes(list.Length());
  for (uint32_t i = 0; i < lanes.size(); i++) lanes[i].first = LinesOf(ObjectOf(list.Get(i), "lane"), words, lanes[i].second);
  std::atomic_ref<int32_t>(*(reinterpret_cast<int32_t*>(words.data) + alarm)).fetch_add(1);
  for (const auto& [lines, members] : lanes) WakeAll(lines, static_cast<uint32_t>(members));
}

}  // namespace

void InitLane(Napi::Env env, Napi::Object exports) {
  exports.Set("post", Napi::Function::New<PostCall>(env, "post"));
  exports.Set("wait", Napi::Function::New<WaitCall>(env, "wait"));
  exports.Set("waitAsync", Napi::Function::New<WaitAsyncCall>(env, "waitAsync"));
  exports.Set("ring", Napi::Function::New<RingCall>(env, "ring"));
}

}  // namespace rankmesh
