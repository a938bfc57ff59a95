// The CUDA engine as other parts of the addon find it.
#pragma once
#include <napi.h>

#include <memory>
#include <string>

#include "engine.h"

namespace rankmesh {

/** The engine behind an object that createCudaEngine gave. Throws Napi::TypeError for anything else. */
std::shared_ptr<cuda::Engine> CudaEngineOf(Napi::Value value);

/** Programs of several engines of this thread, captured together: of a list of { engine, parts }. */
Napi::Value CreateCudaPrograms(const Napi::CallbackInfo& info);

/** What features() says of CUDA: what is there, or why it is not. */
std::string CudaFeature(bool& available);

}  // namespace rankmesh
