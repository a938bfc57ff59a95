// Products of matrices by cuBLASLt, where it is installed; declared here as far as they need it. Nothing of CUDA is linked.
#pragma once
#include <map>
#include <memory>
#include <tuple>

#include "device.h"
#include "launches.h"

namespace rankmesh::cuda {

class Blas {
 public:
  /** Memory that products may use, of each stream: as much as kernels for sm_90 ask for. */
  static constexpr size_t kWorkspaceBytes = size_t{32} << 20;

  /** The library that RANKMESH_CUBLASLT_PATH names, or libcublasLt of the driver's generation. Null, and `why` says so, where it cannot be used. */
  static std::unique_ptr<Blas> Open(const std::shared_ptr<Device>& device, std::string& why);
  Blas(const Blas&) = delete;
  ~Blas();

  /** Hands the product to a stream. False where cuBLASLt has no way for it. Throws CudaError where it fails. */
  bool Multiply(const Gemm& gemm, StreamHandle stream, std::byte* workspace);

 private:
  struct Library;
  struct Plan;
  using Key = std::tuple<engine::Type, size_t, size_t, size_t, size_t>;

  Blas(const Library& library, std::shared_ptr<Device> device) : library_(library), device_(std::move(device)) {}
  std::shared_ptr<Plan> MakePlan(const Gemm& gemm) const;

  const Library& library_;
  const std::shared_ptr<Device> device_;
  void* handle_ = nullptr;
  /** By type and sizes; null where there is no way. */
  std::map<Key, std::shared_ptr<Plan>> plans_;
};

}  // namespace rankmesh::cuda
