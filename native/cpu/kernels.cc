// The choice of kernels, and the scratch memory that they share.
#include "kernels.h"

#include <cstdlib>
#include <cstring>
#include <new>

namespace rankmesh::cpu {

Scratch::~Scratch() { ::operator delete[](data_, std::align_val_t(64)); }

float* Scratch::Take(size_t floats) {
  if (floats > floats_) {
    ::operator delete[](data_, std::align_val_t(64));
    data_ = nullptr;
    floats_ = 0;
    data_ = static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t(64)));
    floats_ = floats;
  }
  return data_;
}

const Kernels& ChooseKernels() {
#ifdef RANKMESH_X86_KERNELS
  const char* const most = std::getenv("RANKMESH_CPU_KERNELS");
  const auto allowed = [&](const char* name) { return !most || !*most || !std::strcmp(most, name); };
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  if (avx512 && allowed("avx512")) return kAvx512Kernels;
  if (avx2 && allowed("avx2")) return kAvx2Kernels;
#endif
  return kPlainKernels;
}

}  // namespace rankmesh::cpu
