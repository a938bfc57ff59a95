// Reading what JavaScript passed in: every kind and range is checked here, so that nothing behind can be led astray.
#pragma once
#include <napi.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>

#include "lane.h"

namespace rankmesh {

/** The memory of a typed array, as it is now. */
struct View {
  std::byte* data;
  size_t length;
  napi_typedarray_type type;

  size_t ElementBytes() const {
    switch (type) {
      case napi_int8_array:
      case napi_uint8_array:
      case napi_uint8_clamped_array:
        return 1;
      case napi_int16_array:
      case napi_uint16_array:
        return 2;
      case napi_int32_array:
      case napi_uint32_array:
      case napi_float32_array:
        return 4;
      case napi_float64_array:
      case napi_bigint64_array:
      case napi_biguint64_array:
        return 8;
      default:
        return 1;
    }
  }
  size_t Bytes() const { return length * ElementBytes(); }
};

inline bool ReadView(napi_env env, napi_value value, View& view) {
  void* data = nullptr;
  if (napi_get_typedarray_info(env, value, &view.type, &view.length, &data, nullptr, nullptr) != napi_ok) return false;
  view.data = static_cast<std::byte*>(data);
  return true;
}

inline View ViewOf(Napi::Value value, const char* name) {
  View view;
  if (!ReadView(value.Env(), value, view)) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a typed array, not a buffer");
  return view;
}

inline View ViewOf(Napi::Value value, const char* name, napi_typedarray_type type, const char* kind) {
  const View view = ViewOf(value, name);
  if (view.type != type) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be of " + kind);
  return view;
}

/** An integer in [min, max]. */
inline int64_t IntegerOf(Napi::Value value, const char* name, int64_t min, int64_t max) {
  double number = 0;
  const bool found = napi_get_value_double(value.Env(), value, &number) == napi_ok;
  if (!found || !(number >= static_cast<double>(min) && number <= static_cast<double>(max)) || number != static_cast<double>(static_cast<int64_t>(number)))
    throw Napi::RangeError::New(value.Env(), std::string(name) + " must be an integer in [" + std::to_string(min) + ", " + std::to_string(max) + "]");
  return static_cast<int64_t>(number);
}

/** Any number, as the 32 bits of its integer. */
inline int32_t WordOf(Napi::Value value, const char* name) {
  int32_t word = 0;
  if (napi_get_value_int32(value.Env(), value, &word) != napi_ok) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a number");
  return word;
}

/** A length of time given in `unit`s; what is not above 0 is none, and a day is the most. */
inline std::chrono::nanoseconds TimeOf(double number, std::chrono::nanoseconds unit) {
  const double most = 86'400e9;
  const double count = number * static_cast<double>(unit.count());
  return std::chrono::nanoseconds(count > 0 ? static_cast<int64_t>(std::min(count, most)) : 0);
}

inline std::chrono::nanoseconds TimeOf(Napi::Value value, const char* name, std::chrono::nanoseconds unit) {
  double number = 0;
  if (napi_get_value_double(value.Env(), value, &number) != napi_ok) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be a number");
  return TimeOf(number, unit);
}

inline Napi::Object ObjectOf(Napi::Value value, const char* name) {
  if (!value.IsObject()) throw Napi::TypeError::New(value.Env(), std::string(name) + " must be an object");
  return value.As<Napi::Object>();
}

/** The lines of a lane's members in `words`. */
inline int32_t* LinesOf(Napi::Object lane, const View& words, int64_t& members) {
  const auto length = static_cast<int64_t>(words.length);
  members = IntegerOf(lane.Get("members"), "lane.members", 1, length / static_cast<int64_t>(kLine));
  const int64_t at = IntegerOf(lane.Get("at"), "lane.at", 0, length - members * static_cast<int64_t>(kLine));
  return reinterpret_cast<int32_t*>(words.data) + at;
}

/** A LaneWords of runtime/core/addon.ts. */
inline Lane LaneOf(Napi::Value value) {
  const auto object = ObjectOf(value, "lane");
  const View words = ViewOf(object.Get("words"), "lane.words", napi_int32_array, "Int32Array");
  int64_t members = 0;
  int32_t* const lines = LinesOf(object, words, members);
  const int64_t me = IntegerOf(object.Get("me"), "lane.me", 0, members - 1);
  const int64_t alarm = IntegerOf(object.Get("alarm"), "lane.alarm", 0, static_cast<int64_t>(words.length) - 1);
  return {lines, static_cast<uint32_t>(members), static_cast<uint32_t>(me), reinterpret_cast<int32_t*>(words.data) + alarm};
}

}  // namespace rankmesh
