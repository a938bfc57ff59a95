// The kernels of all-reduces, plain and with a norm, and of gathers, over peers' memory.
#include "peers_list.h"

namespace rankmesh::cuda {
RANKMESH_PEER_SUMS(RANKMESH_PEER_KERNEL)
}  // namespace rankmesh::cuda
