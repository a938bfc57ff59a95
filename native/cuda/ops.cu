// The kernels of ops_list.h, by name.
#include "ops/all.cuh"
#include "ops_list.h"

namespace rankmesh::cuda::ops {

#define KERNEL(name, Args, threads, ...) \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ Args args) { __VA_ARGS__(args); }
RANKMESH_OPS(KERNEL)
#undef KERNEL

}  // namespace rankmesh::cuda::ops
