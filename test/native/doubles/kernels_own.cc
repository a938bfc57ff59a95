// The kernels of own_kernels.h.
#include "own_kernels.h"

#include "kernels.h"

namespace cuda_double {
namespace {
const Kernel kList[] = {
    DOUBLE_KERNEL(double_add, AddArgs, 1024, AddWords)
    DOUBLE_KERNEL(double_hand_over, HandArgs, 1024, HandOver)
    DOUBLE_KERNEL(double_sum, SumArgs, 256, SumBlocks)
    DOUBLE_KERNEL(double_to_all, ToAllArgs, 1024, StoreNumbers)
    DOUBLE_KERNEL(double_diverge, DivergeArgs, 1024, Diverge)
};
}
const KernelList kOwnKernels = kList;
}  // namespace cuda_double
