// Whether there are multicasts, and what is bound to them.
#include "multicast.h"

#include <algorithm>

namespace rankmesh::cuda {
namespace {

/** A kernel that stores to multicasts, as all of its kind do that were compiled with it. */
constexpr char kKernel[] = "peer_sum_f32_2_packets";
/** The first architecture whose kernels can. */
constexpr int kOldestPtx = 90;

/** A call, and what came of it. */
struct Asked {
  Result result;
  const char* call;
};

/** Of memory that is pinned to the device. */
MemoryProperties PropertiesOf(const Device& device, int types) {
  MemoryProperties properties{};
  properties.type = kPinnedMemory;
  properties.handle_types = types;
  properties.location = {kOnDevice, device.handle()};
  return properties;
}

std::shared_ptr<Shareable> NewMemory(const Device& device, size_t bytes) {
  const auto make = [&](MemoryHandle* handle, int types) {
    const MemoryProperties properties = PropertiesOf(device, types);
    return device.driver.cuMemCreate(handle, bytes, &properties, 0);
  };
  return std::make_shared<Shareable>(device, make, "cuMemCreate of " + std::to_string(bytes) + " bytes");
}

auto NewMulticast(const Driver& driver, unsigned devices, size_t bytes) {
  return [&driver, devices, bytes](MemoryHandle* handle, int types) {
    const MulticastProperties properties{devices, bytes, static_cast<unsigned long long>(types), 0};
    return driver.cuMulticastCreate(handle, &properties);
  };
}

}  // namespace

size_t WholeUnits(const Device& device, unsigned devices, size_t bytes) {
  const Driver& driver = device.driver;
  size_t of_memory = 1, of_multicast = 1;
  const auto ask = [&](int types) {
    const MemoryProperties memory = PropertiesOf(device, types);
    const MulticastProperties multicast{devices, bytes, static_cast<unsigned long long>(types), 0};
    Asked asked{driver.cuMemGetAllocationGranularity(&of_memory, &memory, kLeastGranularity), "cuMemGetAllocationGranularity"};
    if (asked.result == kSuccess && devices > 0)
      asked = {driver.cuMulticastGetGranularity(&of_multicast, &multicast, kLeastGranularity), "cuMulticastGetGranularity"};
    return asked;
  };
  const int types = Shareable::TypesOf(device);
  Asked asked = ask(types);
  // As in Shareable, where the machine is not set up for fabrics.
  if (asked.result != kSuccess && types != kFileDescriptors) asked = ask(kFileDescriptors);
  driver.Check(asked.result, asked.call);
  const size_t unit = std::max(of_memory, of_multicast);  // both are powers of two
  return (bytes + unit - 1) / unit * unit;
}

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

Multicast::Multicast(const Device& device, unsigned devices, size_t size)
    : Shareable(device, NewMulticast(device.driver, devices, size), "cuMulticastCreate for " + std::to_string(devices) + " devices"), bytes(size) {}

void Multicast::Add(const Device& device) const {
  driver.Check(driver.cuMulticastAddDevice(handle(), device.handle()), "cuMulticastAddDevice of CUDA device " + std::to_string(device.info.index));
}

BindableBlock::BindableBlock(std::shared_ptr<Device> on, size_t size) : ShareableBlock(on, NewMemory(*on, size)) { Map(size); }

BindableBlock::~BindableBlock() {
  if (bound_) device->driver.cuMulticastUnbind(bound_->handle(), device->handle(), 0, bytes);
}

void BindableBlock::Bind(std::shared_ptr<Multicast> to) {
  device->driver.Check(device->driver.cuMulticastBindMem(to->handle(), 0, object->handle(), 0, bytes, 0), "cuMulticastBindMem");
  bound_ = std::move(to);
}

MulticastBlock::MulticastBlock(std::shared_ptr<Device> on, std::shared_ptr<Multicast> of) : ShareableBlock(std::move(on), of), multicast(std::move(of)) {
  multicast->Add(*device);
}

void MulticastBlock::Bind(BindableBlock& memory) {
  memory.Bind(multicast);
  Map(multicast->bytes);
}

}  // namespace rankmesh::cuda
