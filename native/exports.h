// What each part of the addon adds to its exports.
#pragma once
#include <napi.h>

namespace rankmesh {

#ifdef RANKMESH_CPU
void InitCpu(Napi::Env env, Napi::Object exports);
#endif
#ifdef RANKMESH_CUDA
void InitCuda(Napi::Env env, Napi::Object exports);
#endif
void InitLane(Napi::Env env, Napi::Object exports);
void InitReduce(Napi::Env env, Napi::Object exports);
void InitSegment(Napi::Env env, Napi::Object exports);

}  // namespace rankmesh
