// The kernels that the double of the driver knows by name, each list compiled apart.
#pragma once
#include <span>

#include "work.h"

namespace cuda_double {

using KernelList = std::span<const Kernel>;

/** Of this folder, for tests of the double itself. */
extern const KernelList kOwnKernels;
/** Of native/cuda: ops_list.h, and both parts of peers_list.h. */
extern const KernelList kOpsKernels;
extern const KernelList kPeerKernels;
extern const KernelList kPeerCodesKernels;

}  // namespace cuda_double

/** A line of a list: the name, the struct of the arguments, the most threads of a block, what is called with it. */
#define DOUBLE_KERNEL(name, Args, threads, ...) \
  {#name, sizeof(Args), threads, [](const void* arguments) { __VA_ARGS__(*static_cast<const Args*>(arguments)); }},
