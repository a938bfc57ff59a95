// Multicasts: one store of a kernel reaches memory of several devices, each of which is one rank's, in whatever process.
#pragma once
#include "shareable.h"

namespace rankmesh::cuda {

/** Why kernels of this device cannot store to a multicast; empty where they can. */
std::string MulticastObstacle(Device& device);

/** `bytes`, and as many more as fill a unit of the device's memory, or of a multicast of so many devices; 0 for none. Throws CudaError. */
size_t WholeUnits(const Device& device, unsigned devices, size_t bytes);

/** What the devices of a group have in common; of any thread, and as each process has it. */
class Multicast : public Shareable {
 public:
  /** Of so many devices, for `bytes`, whole units, of memory of each; any of the devices makes it. Throws CudaError. */
  Multicast(const Device& device, unsigned devices, size_t bytes);
  /** What another process has made. Throws CudaError, or Unavailable where it cannot be had. */
  Multicast(const Driver& driver, const Ticket& ticket, size_t bytes) : Shareable(driver, ticket), bytes(bytes) {}
  void Add(const Device& device) const;

  const size_t bytes;
};

/** Memory of a device that can be bound to a multicast. */
struct BindableBlock : ShareableBlock {
  /** Whole units. Throws CudaError. */
  BindableBlock(std::shared_ptr<Device> device, size_t bytes);
  BindableBlock(const BindableBlock&) = delete;
  /** No kernel stores to the multicast any more. */
  ~BindableBlock();
  /** Once all devices have been added; once. */
  void Bind(std::shared_ptr<Multicast> multicast);
  void Allow(const Device& other) const { mapping_->Allow(other); }

 private:
  std::shared_ptr<Multicast> bound_;
};

/** A multicast as one device has it. Its kernels store there once all memory is bound, and never read. */
struct MulticastBlock : ShareableBlock {
  /** Adds the device to the multicast. Throws CudaError. */
  MulticastBlock(std::shared_ptr<Device> device, std::shared_ptr<Multicast> multicast);
  /** Binds memory of the device, and gives this its address. Throws CudaError. */
  void Bind(BindableBlock& memory);
  const std::shared_ptr<Multicast> multicast;
};

}  // namespace rankmesh::cuda
