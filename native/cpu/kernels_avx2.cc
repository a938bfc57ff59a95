// The kernels for processors with AVX2, FMA and F16C.
#define RANKMESH_KERNELS kAvx2Kernels
#define RANKMESH_KERNELS_NAME "AVX2"
#include "kernels.inc"
