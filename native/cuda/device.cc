// Devices are shared by all threads of the process, whose engines are on one context each: pointers mean the same to all of them.
#include "device.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <map>

namespace rankmesh::cuda {
namespace {

/** Bytes of the module that begins at `at`, of several one behind the other; where it does not tell, it is the rest. */
size_t LengthAt(const std::string& modules, size_t at) {
  struct {
    uint32_t magic;
    uint16_t version, header_bytes;
    uint64_t bytes;
  } header{};
  if (modules.size() - at < sizeof header) return modules.size() - at;
  std::memcpy(&header, modules.data() + at, sizeof header);
  return header.magic == 0xba55ed50 && header.bytes < modules.size() ? header.header_bytes + header.bytes : modules.size() - at;
}

}  // namespace

std::shared_ptr<Device> Device::Open(int index) {
  static std::mutex mutex;
  static std::map<std::pair<const Driver*, int>, std::weak_ptr<Device>> devices;
  const Driver& driver = Driver::Get();
  if (index < 0 || index >= driver.devices())
    throw Unavailable("there is no CUDA device " + std::to_string(index) + ": the driver sees " + std::to_string(driver.devices()));
  const std::lock_guard lock(mutex);
  auto& known = devices[{&driver, index}];
  const auto before = known.lock();
  if (before && !before->lost_) return before;
  if (before) driver.Check(driver.cuDevicePrimaryCtxReset_v2(before->handle_), "cuDevicePrimaryCtxReset");
  const std::shared_ptr<Device> device(new Device(driver, index));
  known = device;
  return device;
}

Device::Device(const Driver& of, int index) : driver(of), info(InfoOf(of, index)) {
  const std::string kernels = ReadKernels();
  driver.Check(driver.cuDeviceGet(&handle_, index), "cuDeviceGet");
  driver.Check(driver.cuDevicePrimaryCtxRetain(&context_, handle_), "cuDevicePrimaryCtxRetain");
  try {
    Enter();
    for (size_t at = 0; at < kernels.size(); at += LengthAt(kernels, at)) {
      ModuleHandle module = nullptr;
      driver.Check(driver.cuModuleLoadData(&module, kernels.data() + at), "cuModuleLoadData of " + KernelsPath());
      modules_.push_back(module);
    }
  } catch (...) {
    for (const ModuleHandle module : modules_) driver.cuModuleUnload(module);
    driver.cuDevicePrimaryCtxRelease_v2(handle_);
    throw;
  }
}

Device::~Device() {
  // Where the process ends, the driver may have gone before; what these return does not matter.
  if (TryEnter())
    for (const ModuleHandle module : modules_) driver.cuModuleUnload(module);
  driver.cuDevicePrimaryCtxRelease_v2(handle_);
}

FunctionHandle Device::Kernel(const char* name, unsigned shared_bytes) {
  const std::lock_guard lock(mutex_);
  Function& function = functions_[name];
  if (!function.handle) {
    Result result = kNotFound;
    for (size_t i = 0; i < modules_.size() && result == kNotFound; i++) result = driver.cuModuleGetFunction(&function.handle, modules_[i], name);
    driver.Check(result, std::string("the kernel ") + name);
  }
  if (shared_bytes > function.shared_bytes) {
    const Result result = driver.cuFuncSetAttribute(function.handle, kMaxDynamicSharedBytes, static_cast<int>(shared_bytes));
    driver.Check(result, std::to_string(shared_bytes) + " bytes of shared memory for " + name);
    function.shared_bytes = shared_bytes;
  }
  return function.handle;
}

void Device::EnablePeer(const Device& peer) {
  Enter();
  const Result result = driver.cuCtxEnablePeerAccess(peer.context_, 0);
  if (result != kPeerAccessAlreadyEnabled) driver.Check(result, "access of CUDA device " + std::to_string(info.index) + " to " + std::to_string(peer.info.index));
}

DeviceBlock::DeviceBlock(std::shared_ptr<Device> on, size_t size) : device(std::move(on)) {
  device->Enter();
  DevicePointer pointer = 0;
  device->driver.Check(device->driver.cuMemAlloc_v2(&pointer, size), "cuMemAlloc of " + std::to_string(size) + " bytes");
  data = reinterpret_cast<std::byte*>(pointer);
  bytes = size;
}

DeviceBlock::~DeviceBlock() {
  if (device->TryEnter()) device->driver.cuMemFree_v2(PointerOf(data));
}

PinnedBlock::PinnedBlock(std::shared_ptr<Device> on, size_t size) : device(std::move(on)) {
  device->Enter();
  void* pointer = nullptr;
  device->driver.Check(device->driver.cuMemHostAlloc(&pointer, size, kHostPortable), "cuMemHostAlloc of " + std::to_string(size) + " bytes");
  data = static_cast<std::byte*>(pointer);
  bytes = size;
}

PinnedBlock::~PinnedBlock() {
  if (device->TryEnter()) device->driver.cuMemFreeHost(data);
}

std::string MachineName() {
  std::string name;
  std::getline(std::ifstream("/proc/sys/kernel/random/boot_id"), name);
  char host[256] = {};
  if (name.empty() && gethostname(host, sizeof host - 1) == 0) name = host;
  return name;
}

SharedBlock::SharedBlock(std::shared_ptr<Device> on, size_t size) : device(std::move(on)) {
  // Memory that is only promised would end the process at its first use.
  file_ = memfd_create("rankmesh", MFD_CLOEXEC);
  const int refused = file_ < 0 ? errno : posix_fallocate(file_, 0, static_cast<off_t>(size));
  if (refused != 0) {
    Drop();
    throw CudaError(kOutOfMemory, std::to_string(size) + " bytes of memory of the system, for several devices: " + std::strerror(refused));
  }
  Map(size);
}

SharedBlock::SharedBlock(std::shared_ptr<Device> on, const SharedFile& shared, size_t size) : device(std::move(on)) {
  const std::string name = "/proc/" + std::to_string(shared.process) + "/fd/" + std::to_string(shared.file);
  file_ = open(name.c_str(), O_RDWR | O_CLOEXEC);
  struct stat about {};
  const int refused = file_ < 0 || fstat(file_, &about) != 0 ? errno : 0;
  if (refused != 0 || about.st_ino != shared.inode || static_cast<size_t>(about.st_size) < size) {
    Drop();
    throw Unavailable("memory that process " + std::to_string(shared.process) + " shares cannot be opened: " +
                      (refused != 0 ? std::strerror(refused) : "it is another file's"));
  }
  Map(size);
}

void SharedBlock::Map(size_t size) {
  const Driver& driver = device->driver;
  void* const mapped = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file_, 0);
  if (mapped == MAP_FAILED) {
    Drop();
    throw CudaError(kOutOfMemory, "a map of " + std::to_string(size) + " bytes");
  }
  bytes = size;
  try {
    device->Enter();
    driver.Check(driver.cuMemHostRegister_v2(mapped, size, kHostPortable | kHostDeviceMap), "cuMemHostRegister of " + std::to_string(size) + " bytes");
    host = static_cast<std::byte*>(mapped);
    DevicePointer pointer = 0;
    driver.Check(driver.cuMemHostGetDevicePointer_v2(&pointer, mapped, 0), "cuMemHostGetDevicePointer");
    data = reinterpret_cast<std::byte*>(pointer);
  } catch (...) {
    if (!host) munmap(mapped, size);
    Drop();
    throw;
  }
}

void SharedBlock::Drop() {
  if (host && device->TryEnter()) device->driver.cuMemHostUnregister(host);
  if (host) munmap(host, bytes);
  if (file_ >= 0) close(file_);
}

SharedBlock::~SharedBlock() { Drop(); }

SharedFile SharedBlock::Shared() const {
  struct stat about {};
  fstat(file_, &about);
  return {getpid(), file_, about.st_ino};
}

ImportedBlock::ImportedBlock(std::shared_ptr<Device> on, const IpcHandle& handle, size_t size) : device(std::move(on)) {
  device->Enter();
  DevicePointer pointer = 0;
  device->driver.Check(device->driver.cuIpcOpenMemHandle_v2(&pointer, handle, kIpcLazyPeerAccess), "cuIpcOpenMemHandle");
  data = reinterpret_cast<std::byte*>(pointer);
  bytes = size;
}

ImportedBlock::~ImportedBlock() {
  if (device->TryEnter()) device->driver.cuIpcCloseMemHandle(PointerOf(data));
}

Event::Event(std::shared_ptr<Device> device, unsigned flags) : device_(std::move(device)) {
  device_->driver.Check(device_->driver.cuEventCreate(&handle_, flags), "cuEventCreate");
}

Event::~Event() {
  if (device_->TryEnter()) device_->driver.cuEventDestroy_v2(handle_);
}

bool Event::Passed() const {
  const Result result = device_->driver.cuEventQuery(handle_);
  if (result == kNotReady) return false;
  device_->driver.Check(result, "the stream");
  return true;
}

}  // namespace rankmesh::cuda
