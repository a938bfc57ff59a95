// The addon's entry: what it was built with, and the exports of its parts. Typed for JavaScript in runtime/core/addon.ts.
#include "exports.h"

#ifdef RANKMESH_CUDA
#include "cuda/engine_node.h"
#include "nccl/node.h"
#endif
#ifdef RANKMESH_GLOO
#include "gloo.h"
#endif
#ifdef RANKMESH_ONEDNN
#include "cpu/rounded.h"
#endif

namespace {

Napi::Object Feature(Napi::Env env, bool available, const char* detail) {
  auto feature = Napi::Object::New(env);
  feature.Set("available", available);
  feature.Set("detail", detail);
  return feature;
}

Napi::Value Features(const Napi::CallbackInfo& info) {
  const auto env = info.Env();
  auto features = Napi::Object::New(env);
#ifdef _WIN32
  features.Set("shm", Feature(env, false, "this system has no POSIX shared memory"));
#else
  features.Set("shm", Feature(env, true, "POSIX shared memory"));
#endif
#ifdef RANKMESH_GLOO
  features.Set("gloo", Feature(env, true, "the gloo library, over TCP"));
#else
  features.Set("gloo", Feature(env, false, "not there when the addon was built: install libgloo-dev, then run `npm run build:native` again"));
#endif
#ifdef RANKMESH_ONEDNN
  features.Set("onednn", rankmesh::cpu::CanMultiplyRounded() ? Feature(env, true, "the oneDNN library, for products rounded to bfloat16")
                                                             : Feature(env, false, "this processor has no bfloat16 arithmetic (AVX512-BF16)"));
#else
  features.Set("onednn", Feature(env, false, "not there when the addon was built: install libdnnl-dev, then run `npm run build:native` again"));
#endif
#ifdef RANKMESH_CUDA
  bool cuda = false;
  const std::string device = rankmesh::CudaFeature(cuda);
  features.Set("cuda", Feature(env, cuda, device.c_str()));
  const auto nccl = rankmesh::nccl::Available();
  features.Set("nccl", Feature(env, nccl.available, nccl.detail.c_str()));
#else
  features.Set("cuda", Feature(env, false, "only Linux has it here"));
  features.Set("nccl", Feature(env, false, "only Linux has it here"));
#endif
  return features;
}

Napi::Object Init(Napi::Env env, Napi::Object exports) {
  exports.Set("features", Napi::Function::New(env, Features, "features"));
#ifdef RANKMESH_CPU
  rankmesh::InitCpu(env, exports);
#endif
#ifdef RANKMESH_CUDA
  rankmesh::InitCuda(env, exports);
  rankmesh::nccl::Init(env, exports);
#endif
  rankmesh::InitLane(env, exports);
  rankmesh::InitReduce(env, exports);
  rankmesh::InitSegment(env, exports);
#ifdef RANKMESH_GLOO
  InitGloo(env, exports);
#endif
  return exports;
}

}  // namespace

NODE_API_MODULE(rankmesh, Init)
