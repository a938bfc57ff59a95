// The kernels of reductions over peers' memory that are told how: products, minima, maxima, means, and those of integers.
#include "peers_list.h"

namespace rankmesh::cuda {
RANKMESH_PEER_JOINS(RANKMESH_PEER_KERNEL)
}  // namespace rankmesh::cuda
