// The kernels for processors with AVX-512 F, BW, DQ and VL.
#define RANKMESH_KERNELS kAvx512Kernels
#define RANKMESH_KERNELS_NAME "AVX-512"
#include "kernels.inc"
