// createReducer and sumFloat32 as JavaScript calls them. A reduction is one call without allocations, by the bare C interface.
#include <iterator>
#include <memory>
#include <vector>

#include "arguments.h"
#include "exports.h"
#include "reduce.h"

namespace rankmesh {
namespace {

/** What a function `reduce` holds: the views are kept alive as long as it is. */
struct Held {
  Reducer reducer;
  int32_t* epoch;
  std::vector<Napi::ObjectReference> views;
};

napi_value Throw(napi_env env, napi_status (*how)(napi_env, const char*, const char*), const char* message) {
  how(env, nullptr, message);
  return nullptr;
}

bool TypeOf(napi_typedarray_type kind, Type& type) {
  switch (kind) {
    case napi_int32_array:
      return type = Type::kInt32, true;
    case napi_uint32_array:
      return type = Type::kUint32, true;
    case napi_bigint64_array:
      return type = Type::kInt64, true;
    case napi_biguint64_array:
      return type = Type::kUint64, true;
    case napi_float32_array:
      return type = Type::kFloat32, true;
    case napi_float64_array:
      return type = Type::kFloat64, true;
    default:
      return false;
  }
}

/** (array, op, signature, alarm, microseconds): a Reduce of runtime/core/addon.ts. */
napi_value Reduce(napi_env env, napi_callback_info info) {
  napi_value args[5];
  size_t count = std::size(args);
  void* data = nullptr;
  if (napi_get_cb_info(env, info, &count, args, nullptr, &data) != napi_ok) return nullptr;
  auto& held = *static_cast<Held*>(data);
  View view;
  uint32_t op;
  Operand operand;
  int32_t alarm;
  double microseconds;
  if (!ReadView(env, args[0], view) || !TypeOf(view.type, operand.type))
    return Throw(env, napi_throw_type_error, "array must be an Int32Array, Uint32Array, BigInt64Array, BigUint64Array, Float32Array or Float64Array");
  if (napi_get_value_uint32(env, args[1], &op) != napi_ok || napi_get_value_int32(env, args[2], &operand.signature) != napi_ok ||
      napi_get_value_int32(env, args[3], &alarm) != napi_ok || napi_get_value_double(env, args[4], &microseconds) != napi_ok)
    return Throw(env, napi_throw_type_error, "op, signature, alarm and microseconds must be numbers");
  if (op > 2) return Throw(env, napi_throw_range_error, "op must be 0 (sum), 1 (min) or 2 (max)");
  operand.op = static_cast<Op>(op);
  operand.data = view.data;
  operand.count = view.length;
  if (view.length > INT32_MAX) return Throw(env, napi_throw_range_error, "array must have fewer than 2^31 elements");
  if (held.reducer.in_place() && !held.reducer.Contains(view.data, view.Bytes()))
    return Throw(env, napi_throw_range_error, "array must lie in this member's memory");
  if (const Operand* pending = held.reducer.pending()) {
    const bool same = pending->data == operand.data && pending->count == operand.count && pending->type == operand.type &&
                      pending->op == operand.op && pending->signature == operand.signature;
    if (!same) return Throw(env, napi_throw_error, "the reduction before this one has not ended: call again with its array, op and signature");
  }
  const auto result = held.reducer.Reduce(operand, *held.epoch, alarm, TimeOf(microseconds, std::chrono::microseconds(1)));
  napi_value value;
  return napi_create_int32(env, static_cast<int32_t>(result), &value) == napi_ok ? value : nullptr;
}

Napi::Value CreateReducer(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  const Lane lane = LaneOf(info[0]);
  const auto list = ObjectOf(info[1], "memory").As<Napi::Array>();
  if (!info[1].IsArray() || list.Length() != lane.members)
    throw Napi::TypeError::New(env, "memory must be an array of " + std::to_string(lane.members) + " typed arrays, one for each member");
  std::vector<std::byte*> memory;
  std::vector<Napi::ObjectReference> views;
  size_t bytes = 0;
  for (uint32_t member = 0; member < lane.members; member++) {
    const Napi::Value value = list.Get(member);
    const View view = ViewOf(value, "memory");
    if (member > 0 && view.Bytes() != bytes) throw Napi::RangeError::New(env, "memory must be of equal length for all members");
    if (reinterpret_cast<uintptr_t>(view.data) % 8 != 0) throw Napi::RangeError::New(env, "memory must be aligned to 8 bytes");
    bytes = view.Bytes();
    memory.push_back(view.data);
    views.push_back(Napi::Persistent(value.As<Napi::Object>()));
  }
  const View epoch = ViewOf(info[2], "epoch", napi_int32_array, "Int32Array");
  if (epoch.length == 0) throw Napi::RangeError::New(env, "epoch must have an element");
  const auto block = static_cast<uint32_t>(IntegerOf(info[3], "block", 0, UINT32_MAX));
  if (block == 0 && bytes < 128) throw Napi::RangeError::New(env, "memory must have at least 128 bytes for each member");
  views.push_back(Napi::Persistent(info[2].As<Napi::Object>()));
  views.push_back(Napi::Persistent(ObjectOf(info[0], "lane").Get("words").As<Napi::Object>()));
  auto held = std::make_unique<Held>(
      Held{Reducer(lane, std::move(memory), bytes, block), reinterpret_cast<int32_t*>(epoch.data), std::move(views)});
  napi_value reduce;
  if (napi_create_function(env, "reduce", NAPI_AUTO_LENGTH, Reduce, held.get(), &reduce) != napi_ok) throw Napi::Error::New(env);
  const auto drop = [](napi_env, void* data, void*) { delete static_cast<Held*>(data); };
  if (napi_add_finalizer(env, reduce, held.get(), drop, nullptr, nullptr) != napi_ok) throw Napi::Error::New(env);
  held.release();
  return Napi::Value(env, reduce);
}

void SumFloat32(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  if (!info[0].IsArray() || info[0].As<Napi::Array>().Length() == 0) throw Napi::TypeError::New(env, "parts must be an array with elements");
  const auto list = info[0].As<Napi::Array>();
  const View out = ViewOf(info[1], "out", napi_float32_array, "Float32Array");
  std::vector<const std::byte*> parts;
  for (uint32_t i = 0; i < list.Length(); i++) {
    const View part = ViewOf(list.Get(i), "parts", napi_float32_array, "Float32Array");
    if (part.length != out.length) throw Napi::RangeError::New(env, "parts and out must be of equal length");
    parts.push_back(part.data);
  }
  Combine(Type::kFloat32, Op::kSum, parts.data(), parts.size(), out.data, out.length);
}

}  // namespace

void InitReduce(Napi::Env env, Napi::Object exports) {
  exports.Set("createReducer", Napi::Function::New<CreateReducer>(env, "createReducer"));
  exports.Set("sumFloat32", Napi::Function::New<SumFloat32>(env, "sumFloat32"));
}

}  // namespace rankmesh
