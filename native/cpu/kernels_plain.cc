// The kernels for any processor.
#define RANKMESH_KERNELS kPlainKernels
#define RANKMESH_KERNELS_NAME "plain C++"
#include "kernels.inc"
