// What is given back here needs no context, so a device that is lost gives it back as well.
#include "multicast.h"

namespace rankmesh::cuda {
namespace {

/** A kernel that stores to multicasts, as all of its kind do that were compiled with it. */
constexpr char kKernel[] = "peer_sum_f32_2_packets";
/** The first architecture whose kernels can. */
constexpr int kOldestPtx = 90;

/** `bytes`, and as many more as fill a unit of a multicast of so many devices. Throws CudaError. */
size_t WholeUnits(const Driver& driver, unsigned devices, size_t bytes) {
  const MulticastProperties properties{devices, bytes, kFileDescriptors, 0};
  size_t unit = 0;
  driver.Check(driver.cuMulticastGetGranularity(&unit, &properties, kLeastGranularity), "cuMulticastGetGranularity");
  return (bytes + unit - 1) / unit * unit;
}

}  // namespace

std::string MulticastObstacle(Device& device) {
  const Driver& driver = device.driver;
  if (!driver.no_multicast().empty()) return "the driver lacks " + driver.no_multicast();
  int supported = 0, ptx = 0;
  // Drivers that do not know the question know no multicasts.
  if (driver.cuDeviceGetAttribute(&supported, kMulticastSupported, device.handle()) != kSuccess || supported == 0)
    return "CUDA device " + std::to_string(device.info.index) + " has no multicasts";
  try {
    device.Enter();
    driver.Check(driver.cuFuncGetAttribute(&ptx, kPtxVersion, device.Kernel(kKernel, 0)), "cuFuncGetAttribute");
  } catch (const CudaError& failed) {
    return failed.what();
  }
  if (ptx >= kOldestPtx) return "";
  return "the kernels are compiled for " + std::to_string(ptx) + ", and multicasts need " + std::to_string(kOldestPtx) + " (RANKMESH_CUDA_ARCHS)";
}

Mapping::Mapping(const Device& device, MemoryHandle handle, size_t bytes) : driver_(device.driver), bytes_(bytes) {
  driver_.Check(driver_.cuMemAddressReserve(&pointer_, bytes, 0, 0, 0), "cuMemAddressReserve of " + std::to_string(bytes) + " bytes");
  const Result mapped = driver_.cuMemMap(pointer_, bytes, 0, handle, 0);
  try {
    driver_.Check(mapped, "cuMemMap");
    Allow(device);
  } catch (...) {
    if (mapped == kSuccess) driver_.cuMemUnmap(pointer_, bytes);
    driver_.cuMemAddressFree(pointer_, bytes);
    throw;
  }
}

Mapping::~Mapping() {
  driver_.cuMemUnmap(pointer_, bytes_);
  driver_.cuMemAddressFree(pointer_, bytes_);
}

void Mapping::Allow(const Device& device) const {
  const MemoryAccess access{{kOnDevice, device.handle()}, kReadWrite};
  driver_.Check(driver_.cuMemSetAccess(pointer_, bytes_, &access, 1), "cuMemSetAccess for CUDA device " + std::to_string(device.info.index));
}

Multicast::Multicast(const Driver& of, unsigned devices, size_t least) : driver(of), bytes(WholeUnits(of, devices, least)) {
  const MulticastProperties properties{devices, bytes, kFileDescriptors, 0};
  driver.Check(driver.cuMulticastCreate(&handle, &properties), "cuMulticastCreate for " + std::to_string(devices) + " devices");
}

Multicast::~Multicast() { driver.cuMemRelease(handle); }

void Multicast::Add(const Device& device) const {
  driver.Check(driver.cuMulticastAddDevice(handle, device.handle()), "cuMulticastAddDevice of CUDA device " + std::to_string(device.info.index));
}

BindableBlock::BindableBlock(std::shared_ptr<Device> on, unsigned devices, size_t least) : device(std::move(on)) {
  const Driver& driver = device->driver;
  const size_t size = WholeUnits(driver, devices, least);
  MemoryProperties properties{};
  properties.type = kPinnedMemory;
  properties.handle_types = kFileDescriptors;
  properties.location = {kOnDevice, device->handle()};
  driver.Check(driver.cuMemCreate(&handle_, size, &properties, 0), "cuMemCreate of " + std::to_string(size) + " bytes");
  try {
    mapping_.emplace(*device, handle_, size);
  } catch (...) {
    driver.cuMemRelease(handle_);
    throw;
  }
  data = mapping_->data();
  bytes = size;
}

BindableBlock::~BindableBlock() {
  const Driver& driver = device->driver;
  if (bound_) driver.cuMulticastUnbind(bound_->handle, device->handle(), 0, bytes);
  mapping_.reset();
  driver.cuMemRelease(handle_);
}

void BindableBlock::Bind(std::shared_ptr<Multicast> multicast) {
  const Driver& driver = device->driver;
  driver.Check(driver.cuMulticastBindMem(multicast->handle, 0, handle_, 0, bytes, 0), "cuMulticastBindMem");
  bound_ = std::move(multicast);
}

MulticastBlock::MulticastBlock(std::shared_ptr<Device> on, std::shared_ptr<Multicast> of) : device(std::move(on)), multicast(std::move(of)) {
  multicast->Add(*device);
}

void MulticastBlock::Bind(BindableBlock& memory) {
  memory.Bind(multicast);
  mapping_.emplace(*device, multicast->handle, multicast->bytes);
  data = mapping_->data();
  bytes = multicast->bytes;
}

}  // namespace rankmesh::cuda
