// The kernels of the CPU device: what a queue runs, once for each kind of processor.
#pragma once
#include "../engine/call.h"

namespace rankmesh::cpu {

using namespace engine;

/** Memory of one thread for intermediate results, aligned to 64 bytes. */
class Scratch {
 public:
  Scratch() = default;
  Scratch(const Scratch&) = delete;
  ~Scratch();
  /** Throws std::bad_alloc. What it gave before is gone. */
  float* Take(size_t floats);

 private:
  float* data_ = nullptr;
  size_t floats_ = 0;
};

using Kernel = void (*)(const Call&, Scratch&);

struct Kernels {
  const char* name;
  /** By Op; null for kWait and kMeet. */
  Kernel run[kOps];
};

extern const Kernels kPlainKernels;
#ifdef RANKMESH_X86_KERNELS
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

/** The best ones for this processor. */
const Kernels& ChooseKernels();

}  // namespace rankmesh::cpu
