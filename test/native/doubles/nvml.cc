// A double of libnvidia-ml: which domain of NVLink a device is in, as RANKMESH_NVML_DOUBLE says: `CLUSTER CLIQUE STATE`; without it, in none.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#define NVML_API extern "C" __attribute__((visibility("default"))) int

namespace {
constexpr int kInvalid = 2;
constexpr int kNotSupported = 3;
struct FabricInfo {
  unsigned char cluster[16];
  int status;
  unsigned clique;
  unsigned char state;
};
int device;
}  // namespace

NVML_API nvmlInit_v2() { return 0; }

NVML_API nvmlDeviceGetHandleByUUID(const char* uuid, void** handle) {
  if (std::strncmp(uuid, "GPU-", 4) != 0 || std::strlen(uuid) != 40) return kInvalid;
  *handle = &device;
  return 0;
}

NVML_API nvmlDeviceGetGpuFabricInfo(void* handle, FabricInfo* info) {
  const char* const text = std::getenv("RANKMESH_NVML_DOUBLE");
  int cluster = 0, state = 0;
  if (handle != &device) return kInvalid;
  *info = {};
  if (!text || std::sscanf(text, "%d %u %d", &cluster, &info->clique, &state) != 3) return kNotSupported;
  info->cluster[15] = static_cast<unsigned char>(cluster);
  info->state = static_cast<unsigned char>(state);
  return 0;
}
