// A double of cuBLASLt: products of float32, bfloat16 and float16 matrices of either order, by plain loops, when it is their turn.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "enqueue.h"

#define CUBLASLT_API extern "C" __attribute__((visibility("default")))

namespace {

enum Status : int { kSuccess = 0, kNotInitialized = 1, kInvalidValue = 7, kExecutionFailed = 13, kNotSupported = 15 };
enum DataType : int { kFloat32 = 0, kFloat16 = 2, kBfloat16 = 14 };
/** Computed in float32: plainly, and with as little rounding as there can be. */
enum ComputeType : int { kCompute32 = 68, kCompute32Pedantic = 69 };
enum Order : int { kColumns = 0, kRows = 1 };

struct Handle {
  uint32_t magic;
};
constexpr uint32_t kMagic = 0x626c6173;

struct Description {
  int compute, scale, pointer_mode = 0;
  int transposed[3] = {0, 0, 0};
  int epilogue = 1;
};

struct Layout {
  int type;
  uint64_t rows, columns;
  int64_t leading;
  int order = kColumns;
  int batches = 1;
};

struct Preference {
  uint64_t workspace_bytes = 0;
};

struct Algorithm {
  uint64_t data[8];
};

struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  int state;
  float waves;
  int reserved[4];
};
static_assert(sizeof(Heuristic) == 96);

size_t BytesOf(int type) { return type == kFloat32 ? 4 : 2; }

float Read(const void* from, int type, size_t i) {
  if (type == kFloat32) return static_cast<const float*>(from)[i];
  if (type == kFloat16) return static_cast<float>(static_cast<const _Float16*>(from)[i]);
  return std::bit_cast<float>(static_cast<uint32_t>(static_cast<const uint16_t*>(from)[i]) << 16);
}

void Write(void* to, int type, size_t i, float value) {
  if (type == kFloat32) {
    static_cast<float*>(to)[i] = value;
  } else if (type == kFloat16) {
    static_cast<_Float16*>(to)[i] = static_cast<_Float16>(value);
  } else {
    const auto bits = std::bit_cast<uint32_t>(value);
    const uint32_t rounded = std::isnan(value) ? bits | 0x400000 : bits + 0x7fff + (bits >> 16 & 1);
    static_cast<uint16_t*>(to)[i] = static_cast<uint16_t>(rounded >> 16);
  }
}

/** A matrix as it lies in memory. */
struct Matrix {
  const void* at;
  Layout layout;
  bool transposed;
  uint64_t Rows() const { return transposed ? layout.columns : layout.rows; }
  uint64_t Columns() const { return transposed ? layout.rows : layout.columns; }
  size_t Index(uint64_t row, uint64_t column) const {
    if (transposed) std::swap(row, column);
    const auto leading = static_cast<uint64_t>(layout.leading);
    return layout.order == kColumns ? column * leading + row : row * leading + column;
  }
  float At(uint64_t row, uint64_t column) const { return Read(at, layout.type, Index(row, column)); }
};

struct Product {
  Matrix a, b, c, d;
  void* out;
  float alpha, beta;
};

/** The memory is only touched here, when the stream has come to it. */
int Multiply(void* data) {
  const Product& p = *static_cast<Product*>(data);
  const uint64_t rows = p.d.Rows(), columns = p.d.Columns(), inner = p.a.Columns();
  std::vector<float> a(rows * inner), column(inner);
  for (uint64_t r = 0; r < rows; r++) {
    for (uint64_t k = 0; k < inner; k++) a[r * inner + k] = p.a.At(r, k);
  }
  for (uint64_t c = 0; c < columns; c++) {
    for (uint64_t k = 0; k < inner; k++) column[k] = p.b.At(k, c);
    for (uint64_t r = 0; r < rows; r++) {
      float sum = 0;
      for (uint64_t k = 0; k < inner; k++) sum += a[r * inner + k] * column[k];
      const float before = p.beta != 0 ? p.beta * p.c.At(r, c) : 0.0f;
      Write(p.out, p.d.layout.type, p.d.Index(r, c), p.alpha * sum + before);
    }
  }
  return 1;
}

int Wrong(const char* what) {
  std::fprintf(stderr, "libcublasLt double: %s\n", what);
  return kNotSupported;
}

bool Good(const Layout& of) {
  const bool type = of.type == kFloat32 || of.type == kFloat16 || of.type == kBfloat16;
  const auto least = static_cast<int64_t>(of.order == kColumns ? of.rows : of.columns);
  return type && of.rows > 0 && of.columns > 0 && of.leading >= least && (of.order == kColumns || of.order == kRows) && of.batches == 1;
}

/** Sizes and types that go together, as cuBLASLt has kernels for them. */
int CheckProduct(const Description& of, const Layout& a, const Layout& b, const Layout& c, const Layout& d) {
  if (!Good(a) || !Good(b) || !Good(c) || !Good(d)) return kInvalidValue;
  const bool plain = of.scale == kFloat32 && (of.compute == kCompute32 || of.compute == kCompute32Pedantic);
  if (!plain) return Wrong("this type of computing is not emulated");
  const bool simple = of.pointer_mode == 0 && of.epilogue == 1 && of.transposed[2] == 0;
  if (!simple) return Wrong("epilogues, factors on the device and transposed C are not emulated");
  const Matrix left{nullptr, a, of.transposed[0] != 0}, right{nullptr, b, of.transposed[1] != 0};
  if (left.Columns() != right.Rows() || left.Rows() != d.rows || right.Columns() != d.columns) return kInvalidValue;
  if (c.rows != d.rows || c.columns != d.columns || c.type != d.type || c.order != d.order) return kInvalidValue;
  if (a.type != b.type || (d.type != a.type && d.type != kFloat32)) return kNotSupported;
  return kSuccess;
}

template <typename T>
int Set(T& to, const void* from, size_t bytes) {
  if (bytes != sizeof(T) || !from) return kInvalidValue;
  std::memcpy(&to, from, bytes);
  return kSuccess;
}

int Planted(const char* function) { return rankmesh_double_entered(function); }

}  // namespace

CUBLASLT_API size_t cublasLtGetVersion() { return 130000; }

CUBLASLT_API const char* cublasLtGetStatusString(int status) {
  switch (status) {
    case kSuccess: return "success";
    case kNotInitialized: return "the library was not initialized";
    case kInvalidValue: return "an unsupported value or parameter was passed to the function";
    case kExecutionFailed: return "the function failed to launch on the GPU";
    case kNotSupported: return "the functionality requested is not supported";
    default: return "unknown";
  }
}

CUBLASLT_API const char* cublasLtGetStatusName(int status) {
  switch (status) {
    case kSuccess: return "CUBLAS_STATUS_SUCCESS";
    case kNotInitialized: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case kInvalidValue: return "CUBLAS_STATUS_INVALID_VALUE";
    case kExecutionFailed: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case kNotSupported: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "unknown";
  }
}

CUBLASLT_API int cublasLtCreate(Handle** handle) {
  if (const int fault = Planted("cublasLtCreate")) return fault;
  *handle = new Handle{kMagic};
  return kSuccess;
}

CUBLASLT_API int cublasLtDestroy(Handle* handle) {
  if (!handle || handle->magic != kMagic) return kNotInitialized;
  handle->magic = 0;
  delete handle;
  return kSuccess;
}

CUBLASLT_API int cublasLtMatmulDescCreate(Description** description, int compute, int scale) {
  *description = new Description{compute, scale};
  return kSuccess;
}

CUBLASLT_API int cublasLtMatmulDescDestroy(Description* description) {
  delete description;
  return kSuccess;
}

CUBLASLT_API int cublasLtMatmulDescSetAttribute(Description* description, int attribute, const void* value, size_t bytes) {
  switch (attribute) {
    case 0: return Set(description->compute, value, bytes);
    case 1: return Set(description->scale, value, bytes);
    case 2: return Set(description->pointer_mode, value, bytes);
    case 3: case 4: case 5: return Set(description->transposed[attribute - 3], value, bytes);
    case 7: return Set(description->epilogue, value, bytes);
    default: return Wrong("this attribute of a product is not emulated");
  }
}

CUBLASLT_API int cublasLtMatrixLayoutCreate(Layout** layout, int type, uint64_t rows, uint64_t columns, int64_t leading) {
  *layout = new Layout{type, rows, columns, leading};
  return kSuccess;
}

CUBLASLT_API int cublasLtMatrixLayoutDestroy(Layout* layout) {
  delete layout;
  return kSuccess;
}

CUBLASLT_API int cublasLtMatrixLayoutSetAttribute(Layout* layout, int attribute, const void* value, size_t bytes) {
  switch (attribute) {
    case 0: return Set(layout->type, value, bytes);
    case 1: return Set(layout->order, value, bytes);
    case 2: return Set(layout->rows, value, bytes);
    case 3: return Set(layout->columns, value, bytes);
    case 4: return Set(layout->leading, value, bytes);
    case 5: return Set(layout->batches, value, bytes);
    default: return Wrong("this attribute of a matrix is not emulated");
  }
}

CUBLASLT_API int cublasLtMatmulPreferenceCreate(Preference** preference) {
  *preference = new Preference;
  return kSuccess;
}

CUBLASLT_API int cublasLtMatmulPreferenceDestroy(Preference* preference) {
  delete preference;
  return kSuccess;
}

CUBLASLT_API int cublasLtMatmulPreferenceSetAttribute(Preference* preference, int attribute, const void* value, size_t bytes) {
  if (attribute == 1) return Set(preference->workspace_bytes, value, bytes);
  return attribute >= 0 && attribute <= 11 ? kSuccess : kInvalidValue;  // what only makes a difference of speed
}

CUBLASLT_API int cublasLtMatmulAlgoGetHeuristic(Handle* handle, Description* description, Layout* a, Layout* b, Layout* c, Layout* d,
                                                Preference* preference, int wanted, Heuristic* results, int* found) {
  *found = 0;
  if (const int fault = Planted("cublasLtMatmulAlgoGetHeuristic")) return fault;
  if (!handle || handle->magic != kMagic) return kNotInitialized;
  if (!preference || wanted < 1) return kInvalidValue;
  const int status = CheckProduct(*description, *a, *b, *c, *d);
  if (status != kSuccess) return status;
  results[0] = {};
  results[0].algorithm.data[0] = kMagic;
  *found = 1;
  return kSuccess;
}

CUBLASLT_API int cublasLtMatmul(Handle* handle, Description* description, const void* alpha, const void* a, Layout* a_layout, const void* b,
                                Layout* b_layout, const void* beta, const void* c, Layout* c_layout, void* d, Layout* d_layout,
                                const Algorithm* algorithm, void*, size_t, void* stream) {
  if (const int fault = Planted("cublasLtMatmul")) return fault;
  if (!handle || handle->magic != kMagic) return kNotInitialized;
  if (algorithm && algorithm->data[0] != kMagic) return kInvalidValue;
  const int status = CheckProduct(*description, *a_layout, *b_layout, *c_layout, *d_layout);
  if (status != kSuccess) return status;
  for (const auto& [at, layout] : {std::pair<const void*, Layout*>{a, a_layout}, {b, b_layout}, {d, d_layout}}) {
    if (!at || reinterpret_cast<uintptr_t>(at) % BytesOf(layout->type) != 0) return kInvalidValue;
  }
  float factors[2];
  std::memcpy(&factors[0], alpha, sizeof(float));
  std::memcpy(&factors[1], beta, sizeof(float));
  auto* const product = new Product{{a, *a_layout, description->transposed[0] != 0},
                                    {b, *b_layout, description->transposed[1] != 0},
                                    {c, *c_layout, false},
                                    {d, *d_layout, false},
                                    d,
                                    factors[0],
                                    factors[1]};
  const auto drop = [](void* data) { delete static_cast<Product*>(data); };
  const int result = rankmesh_double_enqueue(stream, "a product of cuBLASLt", Multiply, drop, product);
  return result == 0 ? kSuccess : kExecutionFailed;
}
