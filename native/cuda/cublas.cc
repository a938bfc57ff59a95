// cuBLASLt chooses an algorithm once for each type and size, by its own heuristic; in float32 it never rounds operands to TF32.
#include "cublas.h"

#include <dlfcn.h>

#include <cstdlib>
#include <mutex>

namespace rankmesh::cuda {
namespace {

using Status = int;
struct Algorithm {
  uint64_t data[8];
};
struct Heuristic {
  Algorithm algorithm;
  size_t workspace_bytes;
  Status state;
  float waves;
  int reserved[4];
};

/** CUBLAS_COMPUTE_32F; CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF. */
constexpr int kCompute32F = 68;
constexpr int kReal32F = 0, kReal16F = 2, kReal16BF = 14;
/** CUBLASLT_MATMUL_DESC_TRANSA, CUBLAS_OP_T. */
constexpr int kTransposeA = 3;
constexpr int32_t kTransposed = 1;
/** CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES and those of B, C, D behind it. */
constexpr int kMaxWorkspaceBytes = 1, kMinAlignmentA = 5;
/** Of the addresses of a Gemm. */
constexpr uint32_t kAlignment = 16;
/** Plans that are kept; sizes of prompts are many. */
constexpr size_t kMostPlans = 1024;

constexpr Status kDone = 0;

int RealOf(engine::Type type) { return type == engine::kF32 ? kReal32F : type == engine::kBf16 ? kReal16BF : kReal16F; }

}  // namespace

/** Name, and parameters; all give a Status. */
#define RANKMESH_CUBLASLT_FUNCTIONS(F)                                                                                                           \
  F(cublasLtCreate, (void** handle))                                                                                                             \
  F(cublasLtDestroy, (void* handle))                                                                                                             \
  F(cublasLtMatmulDescCreate, (void** desc, int compute, int scale))                                                                             \
  F(cublasLtMatmulDescSetAttribute, (void* desc, int attribute, const void* value, size_t bytes))                                                \
  F(cublasLtMatmulDescDestroy, (void* desc))                                                                                                     \
  F(cublasLtMatrixLayoutCreate, (void** layout, int type, uint64_t rows, uint64_t columns, int64_t leading))                                     \
  F(cublasLtMatrixLayoutDestroy, (void* layout))                                                                                                 \
  F(cublasLtMatmulPreferenceCreate, (void** preference))                                                                                         \
  F(cublasLtMatmulPreferenceSetAttribute, (void* preference, int attribute, const void* value, size_t bytes))                                    \
  F(cublasLtMatmulPreferenceDestroy, (void* preference))                                                                                         \
  F(cublasLtMatmulAlgoGetHeuristic,                                                                                                              \
    (void* handle, void* desc, void* a, void* b, void* c, void* d, void* preference, int most, Heuristic* found, int* count))                    \
  F(cublasLtMatmul, (void* handle, void* desc, const void* alpha, const void* a, void* a_layout, const void* b, void* b_layout, const void* beta, \
                     const void* c, void* c_layout, void* d, void* d_layout, const Algorithm* algorithm, void* workspace, size_t bytes,          \
                     StreamHandle stream))

struct Blas::Library {
#define RANKMESH_DECLARE(name, parameters) Status(*name) parameters = nullptr;
  RANKMESH_CUBLASLT_FUNCTIONS(RANKMESH_DECLARE)
#undef RANKMESH_DECLARE

  /** False, and `why` says so, where it is not there or lacks functions. */
  bool Load(const std::string& path, std::string& why) {
    void* const library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (!library) {
      why = dlerror();
      return false;
    }
#define RANKMESH_LOAD(name, parameters)                                       \
  name = reinterpret_cast<Status(*) parameters>(dlsym(library, #name)); \
  if (!name) {                                                                \
    why = path + " lacks " #name;                                             \
    return false;                                                             \
  }
    RANKMESH_CUBLASLT_FUNCTIONS(RANKMESH_LOAD)
#undef RANKMESH_LOAD
    return true;
  }

  static const Library* Get(int driver_version, std::string& why) {
    static std::mutex mutex;
    static std::map<std::string, std::unique_ptr<Library>> libraries;
    const std::lock_guard lock(mutex);
    const char* const named = std::getenv("RANKMESH_CUBLASLT_PATH");
    std::vector<std::string> paths = {"libcublasLt.so." + std::to_string(driver_version / 1000), "libcublasLt.so.12"};
    if (named && *named) paths = {named};
    for (const auto& path : paths) {
      auto& known = libraries[path];
      if (known) return known.get();
      auto library = std::make_unique<Library>();
      if (library->Load(path, why)) return (known = std::move(library)).get();
    }
    return nullptr;
  }
};

struct Blas::Plan {
  explicit Plan(const Library& of) : library(of) {}
  Plan(const Plan&) = delete;
  ~Plan() {
    if (desc) library.cublasLtMatmulDescDestroy(desc);
    for (void* const layout : {w, x, y})
      if (layout) library.cublasLtMatrixLayoutDestroy(layout);
    if (preference) library.cublasLtMatmulPreferenceDestroy(preference);
  }
  const Library& library;
  void* desc = nullptr;
  void* w = nullptr;
  void* x = nullptr;
  void* y = nullptr;
  void* preference = nullptr;
  Heuristic found{};
};

std::unique_ptr<Blas> Blas::Open(const std::shared_ptr<Device>& device, std::string& why) {
  const Library* const library = Library::Get(device->driver.version(), why);
  if (!library) return nullptr;
  std::unique_ptr<Blas> blas(new Blas(*library, device));
  device->Enter();
  const Status status = library->cublasLtCreate(&blas->handle_);
  if (status == kDone) return blas;
  why = "cublasLtCreate gave status " + std::to_string(status);
  return nullptr;
}

Blas::~Blas() {
  plans_.clear();
  if (handle_) library_.cublasLtDestroy(handle_);
}

std::shared_ptr<Blas::Plan> Blas::MakePlan(const Gemm& gemm) const {
  auto plan = std::make_shared<Plan>(library_);
  const int type = RealOf(gemm.type);
  const auto k = static_cast<int64_t>(gemm.k), pitch = static_cast<int64_t>(gemm.pitch);
  bool made = library_.cublasLtMatmulDescCreate(&plan->desc, kCompute32F, kReal32F) == kDone &&
              library_.cublasLtMatmulDescSetAttribute(plan->desc, kTransposeA, &kTransposed, sizeof kTransposed) == kDone &&
              library_.cublasLtMatrixLayoutCreate(&plan->w, type, gemm.k, gemm.outs, k) == kDone &&
              library_.cublasLtMatrixLayoutCreate(&plan->x, type, gemm.k, gemm.tokens, k) == kDone &&
              library_.cublasLtMatrixLayoutCreate(&plan->y, kReal32F, gemm.outs, gemm.tokens, pitch) == kDone &&
              library_.cublasLtMatmulPreferenceCreate(&plan->preference) == kDone;
  const auto prefer = [&](int attribute, auto value) {
    made = made && library_.cublasLtMatmulPreferenceSetAttribute(plan->preference, attribute, &value, sizeof value) == kDone;
  };
  prefer(kMaxWorkspaceBytes, uint64_t{kWorkspaceBytes});
  for (int operand = 0; operand < 4; operand++) prefer(kMinAlignmentA + operand, kAlignment);
  int count = 0;
  made = made && library_.cublasLtMatmulAlgoGetHeuristic(handle_, plan->desc, plan->w, plan->x, plan->y, plan->y, plan->preference, 1, &plan->found,
                                                         &count) == kDone;
  return made && count > 0 && plan->found.state == kDone ? plan : nullptr;
}

bool Blas::Multiply(const Gemm& gemm, StreamHandle stream, std::byte* workspace) {
  const Key key{gemm.type, gemm.tokens, gemm.k, gemm.outs, gemm.pitch};
  auto found = plans_.find(key);
  if (found == plans_.end()) {
    if (plans_.size() >= kMostPlans) plans_.clear();
    found = plans_.emplace(key, MakePlan(gemm)).first;
  }
  const Plan* const plan = found->second.get();
  if (!plan) return false;
  const float one = 1, zero = 0;
  const Status status = library_.cublasLtMatmul(handle_, plan->desc, &one, gemm.w, plan->w, gemm.x, plan->x, &zero, gemm.y, plan->y, gemm.y, plan->y,
                                                &plan->found.algorithm, workspace, kWorkspaceBytes, stream);
  if (status != kDone) throw CudaError(status, "cublasLtMatmul gave status " + std::to_string(status));
  return true;
}

}  // namespace rankmesh::cuda
