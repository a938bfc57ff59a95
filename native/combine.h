// Elementwise sums, minima and maxima over the operands of several members, always in the order of the members.
#pragma once
#include <cstddef>
#include <cstdint>

namespace rankmesh {

/** As runtime/core/addon.ts counts them. */
enum class Op : uint8_t { kSum, kMin, kMax };
enum class Type : uint8_t { kInt32, kUint32, kInt64, kUint64, kFloat32, kFloat64 };

constexpr size_t SizeOf(Type type) { return type == Type::kInt64 || type == Type::kUint64 || type == Type::kFloat64 ? 8 : 4; }

/** out[i] = ((parts[0][i] op parts[1][i]) op parts[2][i]) op ...; `out` may be one of the parts. Integers wrap; a NaN gives NaN. */
void Combine(Type type, Op op, const std::byte* const* parts, size_t members, std::byte* out, size_t count);

}  // namespace rankmesh
