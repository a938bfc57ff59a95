// Loads the driver. A library that was found wanting once is looked at again, since the variables may name another one by then.
#include "driver.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>

namespace rankmesh::cuda {
namespace {

/** 12.0: modules as the kernels' file holds them, and all functions. */
constexpr int kOldest = 12000;

std::string Variable(const char* name, const std::string& otherwise) {
  const char* const value = std::getenv(name);
  return value && *value ? value : otherwise;
}

std::string VersionText(int version) { return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10); }

}  // namespace

Driver::Driver(std::string path) : path_(std::move(path)) {
  void* const library = dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!library) throw Unavailable(std::string("the CUDA driver cannot be loaded: ") + dlerror());
  std::string lacking;
#define RANKMESH_LOAD(name, parameters)                                       \
  name = reinterpret_cast<Result(*) parameters>(dlsym(library, #name)); \
  if (!name && lacking.empty()) lacking = #name;
  RANKMESH_CUDA_FUNCTIONS(RANKMESH_LOAD)
  std::swap(lacking, no_multicast_);
  RANKMESH_CUDA_MULTICAST_FUNCTIONS(RANKMESH_LOAD)
  std::swap(lacking, no_multicast_);
#undef RANKMESH_LOAD
  // What a driver lacks says less than its version.
  if (cuDriverGetVersion && cuDriverGetVersion(&version_) == kSuccess && version_ < kOldest)
    throw Unavailable("the CUDA driver is too old: it supports CUDA " + VersionText(version_) + ", and 12.0 is needed; install a newer driver");
  if (!lacking.empty()) throw Unavailable(path_ + " is no CUDA driver that can be used: it lacks " + lacking);
  const Result started = cuInit(0);
  if (started == kNoDevice) throw Unavailable("the CUDA driver sees no device");
  try {
    Check(started, "cuInit");
    Check(cuDeviceGetCount(&devices_), "cuDeviceGetCount");
  } catch (const CudaError& error) {
    throw Unavailable(std::string("the CUDA driver does not start: ") + error.what());
  }
  if (devices_ < 1) throw Unavailable("the CUDA driver sees no device");
}

const Driver& Driver::Get() {
  static std::mutex mutex;
  static std::map<std::string, std::unique_ptr<const Driver>> drivers;
  const std::lock_guard lock(mutex);
  const std::string path = Variable("RANKMESH_CUDA_PATH", "libcuda.so.1");
  auto& driver = drivers[path];
  if (!driver) driver.reset(new Driver(path));
  return *driver;
}

void Driver::Fail(Result result, const std::string& what) const {
  const char* name = nullptr;
  const char* text = nullptr;
  if (cuGetErrorName(result, &name) != kSuccess || !name) name = "an error without a name";
  if (cuGetErrorString(result, &text) != kSuccess || !text) text = "no text";
  throw CudaError(result, what + ": " + name + " (" + std::to_string(result) + ", " + text + ")");
}

bool CudaError::Lasting() const {
  // An uncorrectable memory error, an illegal address, a timeout, a destroyed context, an assertion, faults of the hardware and of launches.
  for (const Result lasting : {214, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 999})
    if (result == lasting) return true;
  return false;
}

DeviceInfo InfoOf(const Driver& driver, int index) {
  DeviceInfo info{index, {}, {}, {0, 0}, 0, 0};
  DeviceHandle device = 0;
  char name[256] = {};
  driver.Check(driver.cuDeviceGet(&device, index), "cuDeviceGet");
  driver.Check(driver.cuDeviceGetName(name, sizeof name - 1, device), "cuDeviceGetName");
  driver.Check(driver.cuDeviceGetUuid_v2(&info.uuid, device), "cuDeviceGetUuid");
  driver.Check(driver.cuDeviceTotalMem_v2(&info.memory_bytes, device), "cuDeviceTotalMem");
  for (const auto& [value, attribute] : {std::pair{&info.capability[0], kComputeCapabilityMajor}, {&info.capability[1], kComputeCapabilityMinor},
                                         {&info.multiprocessors, kMultiprocessorCount}})
    driver.Check(driver.cuDeviceGetAttribute(value, attribute, device), "cuDeviceGetAttribute");
  info.name = name;
  return info;
}

std::string DeviceInfo::UuidText() const {
  std::string text = "GPU-";
  for (int i = 0; i < 16; i++) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", uuid.bytes[i]);
    if (i == 4 || i == 6 || i == 8 || i == 10) text += '-';
    text += digits;
  }
  return text;
}

std::string KernelsPath() {
  Dl_info self{};
  std::string folder = ".";
  if (dladdr(reinterpret_cast<const void*>(&KernelsPath), &self) && self.dli_fname) {
    const std::string path = self.dli_fname;
    folder = path.substr(0, path.find_last_of('/'));
  }
  return Variable("RANKMESH_CUDA_KERNELS", folder + "/rankmesh.fatbin");
}

std::string ReadKernels(bool look) {
  const std::string path = KernelsPath();
  std::ifstream file(path, std::ios::binary);
  if (file) return look ? "" : std::string(std::istreambuf_iterator<char>(file), {});
  throw Unavailable("the CUDA kernels are not built: " + path +
                    " is not there; `npm run build:native` makes it where CUDA's toolkit (nvcc) is, for the devices of the machine or for RANKMESH_CUDA_ARCHS");
}

}  // namespace rankmesh::cuda
