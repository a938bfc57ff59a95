// What the addon exports of NCCL. Typed for JavaScript in runtime/core/addon.ts.
#pragma once
#include <napi.h>

#include <string>

namespace rankmesh::nccl {

/** Whether there is a library to be used, and which, or why there is none. */
struct Availability {
  bool available;
  std::string detail;
};
Availability Available();

/** Adds `nccl`. */
void Init(Napi::Env env, Napi::Object exports);

}  // namespace rankmesh::nccl
