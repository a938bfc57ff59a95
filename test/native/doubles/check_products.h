// Checks that the double of cuBLASLt multiplies matrices as they lie in memory.
#pragma once
#include "check.h"

namespace check {

/** Columns first, as cuBLASLt has them unless told otherwise, or rows first; `type` as cudaDataType numbers it. */
struct Operand {
  int type;
  uint64_t rows, columns;
  int order;
  int64_t leading;
  std::vector<float> values;
  DevicePointer at;
  void* layout;

  size_t Index(uint64_t row, uint64_t column) const {
    const auto step = static_cast<uint64_t>(leading);
    return order == 0 ? column * step + row : row * step + column;
  }
};

struct Heuristic {
  uint64_t algorithm[8];
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};

/** Random products of small integers, which are exact in every type. */
inline void Products(const std::string& library, uint32_t seed) {
  Begin();
  void* const blas = dlopen(library.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!blas) Wrong("%s", dlerror());
#define PRODUCTS_FUNCTION(name, parameters)                                       \
  auto* const name = reinterpret_cast<int(*) parameters>(dlsym(blas, #name)); \
  TRUE(name != nullptr);
  PRODUCTS_FUNCTION(cublasLtCreate, (void**))
  PRODUCTS_FUNCTION(cublasLtDestroy, (void*))
  PRODUCTS_FUNCTION(cublasLtMatmulDescCreate, (void**, int, int))
  PRODUCTS_FUNCTION(cublasLtMatmulDescSetAttribute, (void*, int, const void*, size_t))
  PRODUCTS_FUNCTION(cublasLtMatmulDescDestroy, (void*))
  PRODUCTS_FUNCTION(cublasLtMatrixLayoutCreate, (void**, int, uint64_t, uint64_t, int64_t))
  PRODUCTS_FUNCTION(cublasLtMatrixLayoutSetAttribute, (void*, int, const void*, size_t))
  PRODUCTS_FUNCTION(cublasLtMatrixLayoutDestroy, (void*))
  PRODUCTS_FUNCTION(cublasLtMatmulPreferenceCreate, (void**))
  PRODUCTS_FUNCTION(cublasLtMatmulPreferenceDestroy, (void*))
  PRODUCTS_FUNCTION(cublasLtMatmulAlgoGetHeuristic, (void*, void*, void*, void*, void*, void*, void*, int, Heuristic*, int*))
  PRODUCTS_FUNCTION(cublasLtMatmul, (void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                                     void*, void*, const void*, void*, size_t, void*))
#undef PRODUCTS_FUNCTION
  emulation::Randomness random(seed);
  void *handle, *preference;
  GOOD(cublasLtCreate(&handle));
  GOOD(cublasLtMatmulPreferenceCreate(&preference));
  void* const stream = NewStream();
  for (int round = 0; round < 60; round++) {
    constexpr int kTypes[] = {0, 2, 14};
    const int type = kTypes[random.Below(3)], out_type = random() & 1 ? 0 : type;
    const uint64_t m = 1 + random.Below(20), n = 1 + random.Below(20), k = 1 + random.Below(20);
    const int transposed[2] = {static_cast<int>(random() & 1), static_cast<int>(random() & 1)};
    const auto make = [&](int of_type, uint64_t rows, uint64_t columns) {
      Operand operand{of_type, rows, columns, static_cast<int>(random() & 1), 0, {}, 0, nullptr};
      operand.leading = static_cast<int64_t>((operand.order == 0 ? rows : columns) + random.Below(3));
      const uint64_t count = static_cast<uint64_t>(operand.leading) * (operand.order == 0 ? columns : rows);
      std::vector<std::byte> bytes;
      for (uint64_t i = 0; i < count; i++) {
        const float value = static_cast<float>(static_cast<int>(random.Below(9)) - 4);
        operand.values.push_back(value);
        const _Float16 half = static_cast<_Float16>(value);
        const auto* const from = reinterpret_cast<const std::byte*>(of_type == 2 ? static_cast<const void*>(&half) : &value);
        if (of_type == 14) bytes.insert(bytes.end(), from + 2, from + 4);  // the upper half of a float32
        else bytes.insert(bytes.end(), from, from + (of_type == 0 ? 4 : 2));
      }
      operand.at = NewMemory(bytes.size());
      GOOD(cuMemcpyAsync(operand.at, At(bytes.data()), bytes.size(), stream));
      GOOD(cuStreamSynchronize(stream));
      GOOD(cublasLtMatrixLayoutCreate(&operand.layout, of_type, rows, columns, operand.leading));
      GOOD(cublasLtMatrixLayoutSetAttribute(operand.layout, 1, &operand.order, sizeof operand.order));
      return operand;
    };
    const Operand a = transposed[0] ? make(type, k, m) : make(type, m, k);
    const Operand b = transposed[1] ? make(type, n, k) : make(type, k, n);
    const Operand d = make(out_type, m, n);
    const float alpha = 1, beta = static_cast<float>(random() & 1);
    void* description;
    GOOD(cublasLtMatmulDescCreate(&description, 68, 0));
    for (int i = 0; i < 2; i++) GOOD(cublasLtMatmulDescSetAttribute(description, 3 + i, &transposed[i], sizeof transposed[i]));
    Heuristic found;
    int count = 0;
    GOOD(cublasLtMatmulAlgoGetHeuristic(handle, description, a.layout, b.layout, d.layout, d.layout, preference, 1, &found, &count));
    TRUE(count == 1 && found.state == 0);
    const DevicePointer gate = NewMemory(4);
    GOOD(cuMemsetD32Async(gate, 0, 1, stream));
    GOOD(cuStreamSynchronize(stream));
    GOOD(cuStreamWaitValue32_v2(stream, gate, 1, 1));
    const auto pointer = [](const Operand& of) { return reinterpret_cast<void*>(of.at); };
    GOOD(cublasLtMatmul(handle, description, &alpha, pointer(a), a.layout, pointer(b), b.layout, &beta, pointer(d), d.layout, pointer(d),
                        d.layout, found.algorithm, nullptr, 0, stream));
    GIVES(cuda_double::kNotReady, cuStreamQuery(stream));
    void* const other = NewStream();
    GOOD(cuStreamWriteValue32_v2(other, gate, 1, 0));
    GOOD(cuStreamSynchronize(stream));
    const size_t size = d.values.size() * (out_type == 0 ? 4 : 2);
    std::vector<std::byte> bytes(size + 4);
    GOOD(cuMemcpyAsync(At(bytes.data()), d.at, size, stream));
    GOOD(cuStreamSynchronize(stream));
    for (uint64_t r = 0; r < m; r++) {
      for (uint64_t c = 0; c < n; c++) {
        float wanted = beta * d.values[d.Index(r, c)], got = 0;
        for (uint64_t i = 0; i < k; i++) {
          wanted += a.values[transposed[0] ? a.Index(i, r) : a.Index(r, i)] * b.values[transposed[1] ? b.Index(c, i) : b.Index(i, c)];
        }
        if (out_type == 0) std::memcpy(&got, &bytes[4 * d.Index(r, c)], 4);
        if (out_type == 14) std::memcpy(reinterpret_cast<std::byte*>(&got) + 2, &bytes[2 * d.Index(r, c)], 2);
        if (out_type == 2) {
          _Float16 half;
          std::memcpy(&half, &bytes[2 * d.Index(r, c)], 2);
          got = static_cast<float>(half);
        }
        // bfloat16 has 8 bits: sums up to 324 are rounded to even numbers.
        const float allowed = out_type == 14 ? std::abs(wanted) / 256 : 0;
        if (std::abs(got - wanted) > allowed) Wrong("round %d, [%lu, %lu]: %g, not %g", round, r, c, got, wanted);
      }
    }
    int wrong = 5;
    GOOD(cublasLtMatrixLayoutSetAttribute(d.layout, 2, &m, sizeof m));
    GIVES(7, cublasLtMatrixLayoutSetAttribute(d.layout, 2, &wrong, sizeof wrong));
    for (const Operand* of : {&a, &b, &d}) {
      GOOD(cuMemFree_v2(of->at));
      GOOD(cublasLtMatrixLayoutDestroy(of->layout));
    }
    GOOD(cublasLtMatmulDescDestroy(description));
  }
  GOOD(cublasLtMatmulPreferenceDestroy(preference));
  GOOD(cublasLtDestroy(handle));
}

}  // namespace check
