// The kernels of native/cuda/peers_list.h that are in peers.cu and peer_joins.cu; those for few ranks are those for many.
#define RANKMESH_PEER_MOST(most) 16
#include "peers_list.h"

#include "kernels.h"

namespace rankmesh::cuda {
namespace {
const cuda_double::Kernel kList[] = {RANKMESH_PEER_SUMS(DOUBLE_KERNEL) RANKMESH_PEER_JOINS(DOUBLE_KERNEL)};
}
}  // namespace rankmesh::cuda

const cuda_double::KernelList cuda_double::kPeerKernels = rankmesh::cuda::kList;
