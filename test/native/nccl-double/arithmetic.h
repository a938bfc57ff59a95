// The arithmetic of NCCL's double: elements of every type, combined one rank after the other.
#pragma once
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace nccl_double {

enum Type { kInt8, kUint8, kInt32, kUint32, kInt64, kUint64, kFloat16, kFloat32, kFloat64, kBfloat16, kTypes };
enum Reduction { kSum, kProd, kMax, kMin, kAvg, kReductions };

constexpr size_t kBytes[kTypes] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

inline bool IsFloat(int type) { return type == kFloat16 || type == kFloat32 || type == kFloat64 || type == kBfloat16; }
inline bool IsSigned(int type) { return type == kInt8 || type == kInt32 || type == kInt64; }

inline double FromHalf(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31) return fraction ? std::nan("") : sign * INFINITY;
  return sign * std::ldexp(exponent ? fraction + 1024 : fraction, (exponent ? exponent : 1) - 25);
}

inline uint16_t ToHalf(double value) {
  if (std::isnan(value)) return 0x7e00;
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const double size = std::fabs(value);
  if (size >= 65520) return sign | 0x7c00;
  const int exponent = size < 0x1p-14 ? -14 : std::ilogb(size);
  const int steps = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(sign + ((exponent + 14) << 10) + steps);
}

inline double FromBfloat(uint16_t word) { return std::bit_cast<float>(static_cast<uint32_t>(word) << 16); }

inline uint16_t ToBfloat(double value) {
  const auto word = std::bit_cast<uint32_t>(static_cast<float>(value));
  if (std::isnan(value)) return 0x7fc0;
  return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

template <typename T>
T Read(const std::byte* at) {
  T value;
  std::memcpy(&value, at, sizeof(T));
  return value;
}

template <typename T>
void Write(std::byte* at, T value) {
  std::memcpy(at, &value, sizeof(T));
}

inline double LoadFloat(int type, const std::byte* at) {
  switch (type) {
    case kFloat16:
      return FromHalf(Read<uint16_t>(at));
    case kBfloat16:
      return FromBfloat(Read<uint16_t>(at));
    case kFloat32:
      return Read<float>(at);
    default:
      return Read<double>(at);
  }
}

inline void StoreFloat(int type, std::byte* at, double value) {
  switch (type) {
    case kFloat16:
      return Write(at, ToHalf(value));
    case kBfloat16:
      return Write(at, ToBfloat(value));
    case kFloat32:
      return Write(at, static_cast<float>(value));
    default:
      return Write(at, value);
  }
}

/** Sign-extended where the type is signed. */
inline uint64_t LoadWhole(int type, const std::byte* at) {
  switch (type) {
    case kInt8:
      return static_cast<uint64_t>(Read<int8_t>(at));
    case kUint8:
      return Read<uint8_t>(at);
    case kInt32:
      return static_cast<uint64_t>(Read<int32_t>(at));
    case kUint32:
      return Read<uint32_t>(at);
    default:
      return Read<uint64_t>(at);
  }
}

inline void StoreWhole(int type, std::byte* at, uint64_t value) { std::memcpy(at, &value, kBytes[type]); }

/** sum = sum (op) part; as NCCL's, min and max drop a NaN. */
inline void Combine(int type, int op, std::byte* sum, const std::byte* part, size_t count) {
  for (size_t i = 0; i < count; i++, sum += kBytes[type], part += kBytes[type]) {
    if (IsFloat(type)) {
      const double a = LoadFloat(type, sum), b = LoadFloat(type, part);
      StoreFloat(type, sum, op == kProd ? a * b : op == kMax ? std::fmax(a, b) : op == kMin ? std::fmin(a, b) : a + b);
      continue;
    }
    const uint64_t a = LoadWhole(type, sum), b = LoadWhole(type, part);
    const bool less = IsSigned(type) ? static_cast<int64_t>(a) < static_cast<int64_t>(b) : a < b;
    StoreWhole(type, sum, op == kProd ? a * b : op == kMax ? (less ? b : a) : op == kMin ? (less ? a : b) : a + b);
  }
}

/** As Combine, in float32, of halves. */
inline void Widen(int type, const std::byte* part, size_t count, bool first, int op, std::vector<float>& sum) {
  std::vector<float> wide(count);
  for (size_t i = 0; i < count; i++) wide[i] = static_cast<float>(LoadFloat(type, part + 2 * i));
  if (first) sum = wide;
  else Combine(kFloat32, op, reinterpret_cast<std::byte*>(sum.data()), reinterpret_cast<const std::byte*>(wide.data()), count);
}

/** Each element times `factor`; a scaled sum does so with what a rank brings, an average with the sum. */
inline void Scale(int type, double factor, std::byte* at, size_t count) {
  for (size_t i = 0; i < count; i++, at += kBytes[type]) {
    if (IsFloat(type)) StoreFloat(type, at, LoadFloat(type, at) * factor);
    else StoreWhole(type, at, static_cast<uint64_t>(static_cast<int64_t>(std::trunc(static_cast<double>(static_cast<int64_t>(LoadWhole(type, at))) * factor))));
  }
}

}  // namespace nccl_double
