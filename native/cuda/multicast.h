// Multicasts: one store of a kernel reaches memory of several devices. For ranks of one process, each on a device of its own.
#pragma once
#include <optional>

#include "device.h"

namespace rankmesh::cuda {

/** Why kernels of this device cannot store to a multicast; empty where they can. */
std::string MulticastObstacle(Device& device);

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

/** What the devices of a group have in common; of any thread. */
class Multicast {
 public:
  /** Of so many devices, for `bytes` of memory of each, and as many more as fill a unit. Throws CudaError. */
  Multicast(const Driver& driver, unsigned devices, size_t bytes);
  Multicast(const Multicast&) = delete;
  /** Nothing is bound to it. */
  ~Multicast();
  void Add(const Device& device) const;

  const Driver& driver;
  const size_t bytes;
  MemoryHandle handle = 0;
};

/** Memory of a device that can be bound to a multicast. */
struct BindableBlock : engine::Block {
  /** Throws CudaError. */
  BindableBlock(std::shared_ptr<Device> device, unsigned devices, size_t bytes);
  BindableBlock(const BindableBlock&) = delete;
  /** No kernel stores to the multicast any more. */
  ~BindableBlock();
  /** Once all devices have been added; once. */
  void Bind(std::shared_ptr<Multicast> multicast);
  void Allow(const Device& other) const { mapping_->Allow(other); }
  const std::shared_ptr<Device> device;

 private:
  MemoryHandle handle_ = 0;
  std::optional<Mapping> mapping_;
  std::shared_ptr<Multicast> bound_;
};

/** A multicast as one device has it. Its kernels store there once all memory is bound, and never read. */
struct MulticastBlock : engine::Block {
  /** Adds the device to the multicast. Throws CudaError. */
  MulticastBlock(std::shared_ptr<Device> device, std::shared_ptr<Multicast> multicast);
  /** Binds memory of the device, and gives this its address. Throws CudaError. */
  void Bind(BindableBlock& memory);
  const std::shared_ptr<Device> device;
  const std::shared_ptr<Multicast> multicast;

 private:
  std::optional<Mapping> mapping_;
};

}  // namespace rankmesh::cuda
