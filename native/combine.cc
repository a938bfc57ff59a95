// Elementwise combination, compiled for several widths of vectors; no reassociation, so each gives the same bits.
#include "combine.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

// The loader picks the widest that the processor has. Sanitizers do not stand its early choice.
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_THREAD__)
#define RANKMESH_CLONES __attribute__((target_clones("default", "avx2", "avx512f"), flatten))
#else
#define RANKMESH_CLONES
#endif
#if defined(__GNUC__) && !defined(__clang__)
#define RANKMESH_INDEPENDENT _Pragma("GCC ivdep")
#elif defined(__clang__)
#define RANKMESH_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define RANKMESH_INDEPENDENT
#endif

namespace rankmesh {
namespace {

/** Bytes in which intermediate results stay in the first cache. */
constexpr size_t kBlock = 4096;

template <typename T, Op kOp>
inline T Join(T a, T b) {
  if constexpr (kOp == Op::kSum) return a + b;
  // Where neither is less, as of 0 and -0, the first stays.
  if constexpr (std::is_floating_point_v<T>) return static_cast<int>(kOp == Op::kMin ? b < a : b > a) | static_cast<int>(b != b) ? b : a;
  return (kOp == Op::kMin ? b < a : b > a) ? b : a;
}

template <typename T, Op kOp>
inline void Pair(const T* a, const T* b, T* out, size_t count) {
  // Where `out` is `a` or `b`, it is so element by element.
  RANKMESH_INDEPENDENT
  for (size_t i = 0; i < count; i++) out[i] = Join<T, kOp>(a[i], b[i]);
}

template <typename T, Op kOp>
inline void Fold(const std::byte* const* parts, size_t members, std::byte* out, size_t count) {
  const auto part = [&](size_t member) { return reinterpret_cast<const T*>(parts[member]); };
  if (members == 1) {
    if (out != parts[0]) std::memcpy(out, parts[0], count * sizeof(T));
    return;
  }
  if (members == 2) return Pair<T, kOp>(part(0), part(1), reinterpret_cast<T*>(out), count);
  constexpr size_t kElements = kBlock / sizeof(T);
  alignas(64) T block[kElements];
  for (size_t at = 0; at < count; at += kElements) {
    const size_t n = std::min(kElements, count - at);
    Pair<T, kOp>(part(0) + at, part(1) + at, block, n);
    for (size_t member = 2; member < members; member++) Pair<T, kOp>(block, part(member) + at, block, n);
    std::memcpy(out + at * sizeof(T), block, n * sizeof(T));
  }
}

template <typename T>
inline void FoldBy(Op op, const std::byte* const* parts, size_t members, std::byte* out, size_t count) {
  switch (op) {
    case Op::kSum:
      // Signed integers wrap as unsigned ones do.
      if constexpr (std::is_integral_v<T>) return Fold<std::make_unsigned_t<T>, Op::kSum>(parts, members, out, count);
      return Fold<T, Op::kSum>(parts, members, out, count);
    case Op::kMin:
      return Fold<T, Op::kMin>(parts, members, out, count);
    case Op::kMax:
      return Fold<T, Op::kMax>(parts, members, out, count);
  }
}

}  // namespace

RANKMESH_CLONES
void Combine(Type type, Op op, const std::byte* const* parts, size_t members, std::byte* out, size_t count) {
  switch (type) {
    case Type::kInt32:
      return FoldBy<int32_t>(op, parts, members, out, count);
    case Type::kUint32:
      return FoldBy<uint32_t>(op, parts, members, out, count);
    case Type::kInt64:
      return FoldBy<int64_t>(op, parts, members, out, count);
    case Type::kUint64:
      return FoldBy<uint64_t>(op, parts, members, out, count);
    case Type::kFloat32:
      return FoldBy<float>(op, parts, members, out, count);
    case Type::kFloat64:
      return FoldBy<double>(op, parts, members, out, count);
  }
}

}  // namespace rankmesh
