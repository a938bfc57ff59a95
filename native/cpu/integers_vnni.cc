// Products of integers for processors with AVX-512 VL and VNNI.
#define RANKMESH_MULTIPLY MultiplyIntegersVnni
#include "integers.inc"
