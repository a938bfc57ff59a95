// A handle becomes a file for processes of the machine, and data for those of machines that NVLink joins.
#include "shareable.h"

#include <unistd.h>

#include <cstring>

#include "handover.h"

namespace rankmesh::cuda {

Shareable::Shareable(const Driver& of, const Ticket& ticket) : driver(of) {
  Result refused = kSuccess;
  if (ticket.has_fabric) {
    FabricHandle fabric = ticket.fabric;
    refused = driver.cuMemImportFromShareableHandle(&handle_, &fabric, kFabric);
    if (refused == kSuccess) return;
  }
  int file = -1;
  try {
    file = Fetch(std::string(ticket.desk, strnlen(ticket.desk, sizeof ticket.desk)), ticket.number);
  } catch (const Unavailable&) {
    driver.Check(refused, "cuMemImportFromShareableHandle of a fabric's handle");
    throw;
  }
  const Result imported = driver.cuMemImportFromShareableHandle(&handle_, reinterpret_cast<void*>(static_cast<intptr_t>(file)), kFileDescriptors);
  close(file);
  driver.Check(imported, "cuMemImportFromShareableHandle");
}

bool Shareable::KnowsFabric(const Device& device) {
  int knows = 0;
  // Drivers that do not know the question know no such handles.
  return device.driver.cuDeviceGetAttribute(&knows, kFabricSupported, device.handle()) == kSuccess && knows != 0;
}

int Shareable::File() const {
  int file = -1;
  driver.Check(driver.cuMemExportToShareableHandle(&file, handle_, kFileDescriptors, 0), "cuMemExportToShareableHandle");
  return file;
}

void Shareable::Describe(Ticket& ticket) const {
  ticket.has_fabric = (types_ & kFabric) != 0 && driver.cuMemExportToShareableHandle(&ticket.fabric, handle_, kFabric, 0) == kSuccess;
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

void ShareableBlock::Map(size_t size) {
  mapping_.emplace(*device, object->handle(), size);
  data = mapping_->data();
  bytes = size;
}

FarBlock::FarBlock(std::shared_ptr<Device> on, const Ticket& ticket, size_t size)
    : ShareableBlock(on, std::make_shared<Shareable>(on->driver, ticket)) {
  Map(size);
}

}  // namespace rankmesh::cuda
