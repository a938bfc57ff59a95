// Products of integers for processors with AVX2.
#define RANKMESH_MULTIPLY MultiplyIntegersAvx2
#include "integers.inc"
