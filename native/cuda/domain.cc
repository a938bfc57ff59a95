// NVIDIA's management library knows domains; it comes with the driver and is found when it is asked for.
#include "domain.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "shareable.h"

namespace rankmesh::cuda {
namespace {

/** nvmlGpuFabricInfo_t. */
struct FabricInfo {
  unsigned char cluster[16];
  int status;
  unsigned clique;
  unsigned char state;
};
static_assert(sizeof(FabricInfo) == 28);
/** The device has joined. */
constexpr unsigned char kCompleted = 3;

struct Management {
  int (*init)() = nullptr;
  int (*device_of)(const char* uuid, void** device) = nullptr;
  int (*fabric_of)(void* device, FabricInfo* info) = nullptr;

  /** Loaded once, if it is there, and never unloaded. */
  Management() {
    const char* const named = std::getenv("RANKMESH_NVML_PATH");
    void* const library = dlopen(named && *named ? named : "libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return;
    init = reinterpret_cast<decltype(init)>(dlsym(library, "nvmlInit_v2"));
    device_of = reinterpret_cast<decltype(device_of)>(dlsym(library, "nvmlDeviceGetHandleByUUID"));
    fabric_of = reinterpret_cast<decltype(fabric_of)>(dlsym(library, "nvmlDeviceGetGpuFabricInfo"));
    if (!init || !device_of || init() != 0) fabric_of = nullptr;
  }
};

}  // namespace

std::string DomainOf(const Device& device) {
  if ((Shareable::TypesOf(device) & kFabric) == 0) return "";
  static const Management management;
  void* handle = nullptr;
  FabricInfo info{};
  if (!management.fabric_of || management.device_of(device.info.UuidText().c_str(), &handle) != 0) return "";
  if (management.fabric_of(handle, &info) != 0 || info.state != kCompleted || info.status != 0) return "";
  // Without a cluster's number, NVLink joins the devices of this machine alone.
  if (std::all_of(info.cluster, info.cluster + sizeof info.cluster, [](unsigned char byte) { return byte == 0; })) return "";
  std::string name;
  for (const unsigned char byte : info.cluster) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", byte);
    name += digits;
  }
  return name + "." + std::to_string(info.clique);
}

}  // namespace rankmesh::cuda
