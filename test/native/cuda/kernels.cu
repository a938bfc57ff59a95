// Every kernel that a group of up to 8 ranks runs, for one element type: -DTYPE=bf16 -DELEMENT=Bfloat16 and the like.
#include "peers_list.h"

namespace rankmesh::cuda {
#define OF(TYPE, ELEMENT) RANKMESH_PEER_PLAIN(RANKMESH_PEER_KERNEL, TYPE, ELEMENT, 8) RANKMESH_PEER_QUANT(RANKMESH_PEER_KERNEL, TYPE, ELEMENT, 8)
OF(TYPE, ELEMENT)
RANKMESH_PEER_JOIN(RANKMESH_PEER_KERNEL, TYPE, ELEMENT)
RANKMESH_PEER_GATHERS(RANKMESH_PEER_KERNEL)
}  // namespace rankmesh::cuda
