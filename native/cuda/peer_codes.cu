// The kernels of all-reduces over peers' memory that quantise, and of those behind experts.
#include "peers_list.h"

namespace rankmesh::cuda {
RANKMESH_PEER_CODES(RANKMESH_PEER_KERNEL)
}  // namespace rankmesh::cuda
