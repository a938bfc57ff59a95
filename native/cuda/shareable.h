// Memory of a device, or a multicast, as a handle that several processes can have, and the addresses at which a device sees it.
#pragma once
#include <optional>

#include "device.h"

namespace rankmesh::cuda {

/** What opens a handle in other processes; data. */
struct Ticket {
  /** Empty where the process that has it hands over no files; see Fetch. */
  char desk[48];
  uint64_t number;
  /** A handle for machines that NVLink joins, where the driver has given one: what it said of that. */
  FabricHandle fabric;
  int32_t fabric_result;
};

/** A handle of the driver's. What is given back here needs no context, so a device that is lost gives it back as well. */
class Shareable {
 public:
  /** What the handles of new memory of the device may become, as the driver takes it; it is asked by `make(types)`. Throws CudaError with `what`. */
  template <typename Make>
  Shareable(const Device& device, Make make, const std::string& what) : driver(device.driver) {
    const int types = TypesOf(device);
    // Where the machine is not set up for fabrics, the driver says so now.
    if (types & kFabric) fabric_result_ = make(&handle_, types);
    if (fabric_result_ != kSuccess) driver.Check(make(&handle_, kFileDescriptors), what);
  }
  /** What another process has. Throws CudaError, or Unavailable where it cannot be had. */
  Shareable(const Driver& driver, const Ticket& ticket);
  Shareable(const Shareable&) = delete;
  ~Shareable() { driver.cuMemRelease(handle_); }

  /** A new file by which it is opened. Throws CudaError. */
  int File() const;
  /** Writes the handle for other machines, where there is one. */
  void Describe(Ticket& ticket) const;
  MemoryHandle handle() const { return handle_; }
  /** What new handles are to become, if the driver takes it. */
  static int TypesOf(const Device& device);

  const Driver& driver;

 private:
  MemoryHandle handle_ = 0;
  Result fabric_result_ = kNotSupported;
};

/** Addresses at which a device has memory, or a multicast. */
class Mapping {
 public:
  /** Throws CudaError. */
  Mapping(const Device& device, MemoryHandle handle, size_t bytes);
  Mapping(const Mapping&) = delete;
  ~Mapping();
  /** Another device may use them as well. Throws CudaError. */
  void Allow(const Device& device) const;
  std::byte* data() const { return reinterpret_cast<std::byte*>(pointer_); }

 private:
  const Driver& driver_;
  DevicePointer pointer_ = 0;
  const size_t bytes_;
};

/** What lies behind such a handle. */
struct ShareableBlock : engine::Block {
  const std::shared_ptr<Device> device;
  const std::shared_ptr<Shareable> object;

 protected:
  ShareableBlock(std::shared_ptr<Device> on, std::shared_ptr<Shareable> of) : device(std::move(on)), object(std::move(of)) {}
  /** Throws CudaError. */
  void Map(size_t size);
  std::optional<Mapping> mapping_;
};

/** Memory of another process. */
struct FarBlock : ShareableBlock {
  /** Throws CudaError, or Unavailable. */
  FarBlock(std::shared_ptr<Device> device, const Ticket& ticket, size_t bytes);
};

}  // namespace rankmesh::cuda
