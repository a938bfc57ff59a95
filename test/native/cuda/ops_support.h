// What the tests of single operations share: matrices of any element type with their values in float64, calls, and a device that runs the launches
// of a call by the names of their kernels.
#pragma once
#include <cmath>
#include <cstring>
#include <functional>
#include <memory>
#include <unordered_map>
#include <unordered_set>

#include "launches.h"
#include "ops/all.cuh"
#include "ops_list.h"
#include "support.h"

namespace test::ops {

using rankmesh::engine::Call;
using rankmesh::engine::Op;
using rankmesh::engine::Slice;
using rankmesh::engine::Type;
namespace engine = rankmesh::engine;

constexpr Type kFloats[] = {engine::kF32, engine::kBf16, engine::kF16};
constexpr const char* kNames[] = {"f32", "bf16", "f16", "word", "q8_0", "q4_0", "q4_1", "q4_k", "q5_k", "q6_k"};

inline float WidenBits(Type type, const uint8_t* at) {
  uint32_t word = 0;
  std::memcpy(&word, at, engine::kFormats[type].bytes);
  return type == engine::kF32 ? Float32::Widen(word) : type == engine::kBf16 ? Bfloat16::Widen(static_cast<uint16_t>(word)) : Float16::Widen(static_cast<uint16_t>(word));
}

inline uint32_t RoundTo(Type type, float value) {
  return type == engine::kF32 ? Float32::Round(value) : type == engine::kBf16 ? Bfloat16::Round(value) : Float16::Round(value);
}

/** The same, where a NaN keeps its sign. */
inline uint32_t MoveTo(Type type, float value) {
  const uint32_t sign = value != value ? __float_as_uint(value) >> 31 : 0;
  return RoundTo(type, value) | sign << (8 * engine::kFormats[type].bytes - 1);
}

/** The value of element i of a block, in float64: as runtime/core/blocks.ts decodes it. */
inline double DecodeBlock(Type type, const uint8_t* block, int i) {
  const auto half = [&](int at) { return static_cast<double>(WidenBits(engine::kF16, block + at)); };
  const auto nibble = [&](int at, int e) { return e < 16 ? block[at + e] & 15 : block[at + e - 16] >> 4; };
  const int run = i / 32, e = i % 32;
  if (type == engine::kQ8_0) return half(0) * static_cast<int8_t>(block[2 + i]);
  if (type == engine::kQ4_0) return half(0) * (nibble(2, i) - 8);
  if (type == engine::kQ4_1) return half(0) * nibble(4, i) + half(2);
  if (type == engine::kQ6_K) {
    const int part = run / 4, r = run % 4;
    const int low = block[64 * part + 32 * (r % 2) + e] >> (4 * (r / 2)) & 15, high = block[128 + 32 * part + e] >> (2 * r) & 3;
    return half(208) * static_cast<int8_t>(block[192 + i / 16]) * ((low | high << 4) - 32);
  }
  const uint8_t* const s = block + 4;
  const int scale = run < 4 ? s[run] & 63 : (s[run + 4] & 15) | s[run - 4] >> 6 << 4;
  const int minimum = run < 4 ? s[run + 4] & 63 : s[run + 4] >> 4 | s[run] >> 6 << 4;
  const int low = block[(type == engine::kQ5_K ? 48 : 16) + 32 * (run / 2) + e] >> (4 * (run % 2)) & 15;
  const int fifth = type == engine::kQ5_K ? block[16 + e] >> run & 1 : 0;
  return half(0) * scale * (low | fifth << 4) - half(2) * minimum;
}

/** Elements in memory, often not aligned, and what they are in float64; float32 holds every one of those. */
struct Matrix {
  Type type = engine::kF32;
  Buffer buffer;
  std::vector<float> values;
  std::byte* at() { return reinterpret_cast<std::byte*>(buffer.data()); }
  /** Its bits, of a plain type. */
  float Get(size_t i) const { return WidenBits(type, buffer.data() + i * engine::kFormats[type].bytes); }
  uint32_t Bits(size_t i) const {
    uint32_t word = 0;
    std::memcpy(&word, buffer.data() + i * engine::kFormats[type].bytes, engine::kFormats[type].bytes);
    return word;
  }
};

/** For operations that take another way where all operands are aligned. */
inline bool all_aligned = false;

/** Numbers that are easily got wrong, NaN of both signs among them. */
inline float Special(Random& random) { return random.OneIn(40) ? __uint_as_float(0xffc00000u) : test::Draw<Float32>(random, Values::kSpecial); }

inline size_t OffsetOf(Random& random, Type type) {
  if (all_aligned || !random.OneIn(3)) return 0;
  const auto [values, bytes] = engine::kFormats[type];
  return values > 1 ? static_cast<size_t>(random.Between(1, 15)) : bytes * static_cast<size_t>(random.Between(1, 3));
}

/** `count` elements, whole rows of blocks. */
inline Matrix Draw(Random& random, Type type, size_t count, const std::function<float()>& draw = {}) {
  const auto [values, bytes] = engine::kFormats[type];
  Matrix matrix{type, Buffer(count / values * bytes, OffsetOf(random, type)), std::vector<float>(count)};
  uint8_t* const data = matrix.buffer.data();
  if (values == 1) {
    for (size_t i = 0; i < count; i++) {
      const uint32_t bits = MoveTo(type, draw ? draw() : random.Normal());
      std::memcpy(data + i * bytes, &bits, bytes);
      matrix.values[i] = WidenBits(type, data + i * bytes);
    }
    return matrix;
  }
  for (size_t b = 0; b < count / values; b++) {
    uint8_t* const block = data + b * bytes;
    for (size_t i = 0; i < bytes; i++) block[i] = static_cast<uint8_t>(random.Bits());
    const auto put = [&](size_t at, float scale) {
      const uint16_t bits = Float16::Round(random.Normal() * scale);
      std::memcpy(block + at, &bits, 2);
    };
    put(type == engine::kQ6_K ? 208 : 0, values == 256 ? 1e-3f : type == engine::kQ8_0 ? 0.01f : 0.2f);
    if (type == engine::kQ4_1 || type == engine::kQ4_K || type == engine::kQ5_K) put(2, values == 256 ? 1e-2f : 1.0f);
    for (size_t i = 0; i < values; i++) matrix.values[b * values + i] = static_cast<float>(DecodeBlock(type, block, static_cast<int>(i)));
  }
  return matrix;
}

/** Where results go: poisoned. */
inline Matrix Empty(Random& random, Type type, size_t count) { return {type, Buffer(count * engine::kFormats[type].bytes, OffsetOf(random, type)), {}}; }

/** Words, as float32 they would be anything. */
inline Matrix Words(Random& random, size_t count, const std::function<uint32_t()>& draw) {
  Matrix matrix{engine::kWord, Buffer(count * 4, OffsetOf(random, engine::kWord)), {}};
  for (size_t i = 0; i < count; i++) {
    const uint32_t word = draw();
    std::memcpy(matrix.buffer.data() + i * 4, &word, 4);
  }
  return matrix;
}

inline Call CallOf(Op op, std::initializer_list<size_t> numbers, std::initializer_list<Type> types, std::initializer_list<std::byte*> operands) {
  Call call{};
  call.op = op;
  std::copy(numbers.begin(), numbers.end(), call.numbers);
  std::copy(types.begin(), types.end(), call.types);
  std::copy(operands.begin(), operands.end(), call.operands);
  return call;
}

/** A device whose kernels are found by name. */
class Device : rankmesh::cuda::Scratch {
 public:
  explicit Device(Random& random) : machine_(1, random.Bits()) { Change(random); }

  void Run(const Call& call) {
    for (const auto& step : rankmesh::cuda::LaunchesOf(call, traits_, *this)) {
      if (const auto* launch = std::get_if<rankmesh::cuda::Launch>(&step)) Enqueue(*launch);
      if (const auto* gemm = std::get_if<rankmesh::cuda::Gemm>(&step)) Multiply(*gemm);
      if (const auto* copy = std::get_if<rankmesh::cuda::Copy>(&step)) std::memcpy(copy->to, copy->from, copy->bytes);
    }
    if (scratch_ && !scratch_->GuardsHold()) Wrong("op %u: written outside of its scratch memory", call.op);
    scratch_.reset();
    calls++;
  }
  /** Names of the kernels that have not run. */
  std::vector<std::string> Unseen() const {
    std::vector<std::string> names;
    for (const auto& [name, kernel] : Kernels()) {
      if (!seen_.contains(name)) names.push_back(name);
    }
    return names;
  }
  /** Other ones from now on. */
  void Change(Random& random) { traits_ = {random.Between(1, 5), random.OneIn(2)}; }
  rankmesh::cuda::Traits& traits() { return traits_; }
  int calls = 0;

 private:
  struct Kernel {
    size_t bytes;
    unsigned threads;
    void (*run)(const void*);
  };
  static const std::unordered_map<std::string, Kernel>& Kernels();

  std::byte* Take(size_t bytes) override {
    if (scratch_) Wrong("scratch memory is taken twice");
    scratch_ = std::make_unique<Buffer>(bytes);
    return reinterpret_cast<std::byte*>(scratch_->data());
  }

  void Enqueue(const rankmesh::cuda::Launch& launch) {
    const auto found = Kernels().find(launch.kernel);
    if (found == Kernels().end()) Wrong("no kernel %s", launch.kernel);
    const Kernel& kernel = found->second;
    if (kernel.bytes != launch.arguments.size()) Wrong("%s is given %zu bytes instead of %zu", launch.kernel, launch.arguments.size(), kernel.bytes);
    if (launch.block > kernel.threads) Wrong("%s: %u threads, more than %u", launch.kernel, launch.block, kernel.threads);
    if (launch.shared_bytes > 47 * 1024) Wrong("%s: %u bytes of shared memory", launch.kernel, launch.shared_bytes);
    seen_.insert(launch.kernel);
    machine_.Launch(0, Index3{launch.grid[0], launch.grid[1], launch.grid[2]}, launch.block, [&] { kernel.run(launch.arguments.data()); }, launch.shared_bytes);
    machine_.Run();
  }

  /** As cuBLASLt would, about. */
  static void Multiply(const rankmesh::cuda::Gemm& gemm) {
    const size_t size = engine::kFormats[gemm.type].bytes;
    if ((reinterpret_cast<uintptr_t>(gemm.x) | reinterpret_cast<uintptr_t>(gemm.w) | reinterpret_cast<uintptr_t>(gemm.y) | gemm.k * size | gemm.pitch * 4) % 16 != 0) {
      Wrong("a product that cuBLASLt has no kernel for");
    }
    for (size_t t = 0; t < gemm.tokens; t++) {
      for (size_t o = 0; o < gemm.outs; o++) {
        double sum = 0;
        for (size_t i = 0; i < gemm.k; i++) {
          sum += static_cast<double>(WidenBits(gemm.type, static_cast<const uint8_t*>(gemm.x) + (t * gemm.k + i) * size)) *
                 WidenBits(gemm.type, static_cast<const uint8_t*>(gemm.w) + (o * gemm.k + i) * size);
        }
        gemm.y[t * gemm.pitch + o] = static_cast<float>(sum);
      }
    }
  }

  emulation::Machine machine_;
  rankmesh::cuda::Traits traits_;
  std::unique_ptr<Buffer> scratch_;
  std::unordered_set<std::string> seen_;
};

inline const std::unordered_map<std::string, Device::Kernel>& Device::Kernels() {
  using namespace rankmesh::cuda::ops;
  static const std::unordered_map<std::string, Kernel> kernels = {
#define KERNEL(name, Args, threads, ...) {#name, {sizeof(Args), threads, [](const void* args) { __VA_ARGS__(*static_cast<const Args*>(args)); }}},
      RANKMESH_OPS(KERNEL)
#undef KERNEL
  };
  return kernels;
}

/** Of a result of some type, what its rounding may cost, above what `error` computing it may. */
inline void ExpectNear(const char* what, Type type, size_t i, float got, double wanted, double error) {
  const double half = type == engine::kF32 ? 0x1p-24 : type == engine::kBf16 ? 0x1p-8 : 0x1p-11;
  const double least = type == engine::kF16 ? 0x1p-25 : 0x1p-149;
  const double allowed = std::max((std::fabs(wanted) + error) * half * 1.001, least) + error;
  if (std::fabs(got - wanted) <= allowed) return;
  if (type == engine::kF16 && std::fabs(wanted) > 65504 && std::fabs(got) == std::numeric_limits<float>::infinity() && (got > 0) == (wanted > 0)) return;
  Wrong("%s %s, element %zu: %.9g instead of %.9g, allowed %g", what, kNames[type], i, got, wanted, allowed);
}

inline void ExpectSame(const char* what, const Matrix& got, size_t from, const Matrix& wanted, size_t at, size_t count) {
  for (size_t i = 0; i < count; i++) {
    if (got.Bits(from + i) != wanted.Bits(at + i)) Wrong("%s: element %zu has bits %x instead of %x", what, i, got.Bits(from + i), wanted.Bits(at + i));
  }
}

inline void ExpectGuards(const char* what, std::initializer_list<Matrix*> matrices) {
  for (Matrix* matrix : matrices) {
    if (!matrix->buffer.GuardsHold()) Wrong("%s: written outside of an operand", what);
  }
}

}  // namespace test::ops
