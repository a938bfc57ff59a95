// The kernels of native/cuda/ops_list.h.
#include "ops/all.cuh"
#include "ops_list.h"

#include "kernels.h"

namespace rankmesh::cuda::ops {
namespace {
const cuda_double::Kernel kList[] = {RANKMESH_OPS(DOUBLE_KERNEL)};
}
}  // namespace rankmesh::cuda::ops

const cuda_double::KernelList cuda_double::kOpsKernels = rankmesh::cuda::ops::kList;
