// A handle becomes a file for processes of the machine, and data for those of machines that NVLink joins.
#include "shareable.h"

#include <unistd.h>

#include <cstring>

#include "handover.h"

namespace rankmesh::cuda {

Shareable::Shareable(const Driver& of, const Ticket& ticket) : driver(of) {
  FabricHandle fabric = ticket.fabric;
  const bool is_given = ticket.fabric_result == kSuccess;
  const Result refused = is_given ? driver.cuMemImportFromShareableHandle(&handle_, &fabric, kFabric) : ticket.fabric_result;
  if (refused == kSuccess) return;
  int file = -1;
  try {
    file = Fetch(std::string(ticket.desk, strnlen(ticket.desk, sizeof ticket.desk)), ticket.number);
  } catch (const Unavailable& no_file) {
    // Other machines have no file of it anyway.
    if (!is_given && refused == kNotSupported) throw;
    const std::string call = is_given ? "cuMemImportFromShareableHandle of a handle of a fabric" : "a handle of a fabric, in the process that has it";
    driver.Fail(refused, std::string(no_file.what()) + "; is there an IMEX channel (/dev/nvidia-caps-imex-channels)? " + call);
  }
  const Result imported = driver.cuMemImportFromShareableHandle(&handle_, reinterpret_cast<void*>(static_cast<intptr_t>(file)), kFileDescriptors);
  close(file);
  driver.Check(imported, "cuMemImportFromShareableHandle");
}

int Shareable::TypesOf(const Device& device) {
  int knows = 0;
  // Drivers that do not know the question know no handles of fabrics.
  if (device.driver.cuDeviceGetAttribute(&knows, kFabricSupported, device.handle()) != kSuccess) knows = 0;
  return knows ? kFileDescriptors | kFabric : kFileDescriptors;
}

int Shareable::File() const {
  int file = -1;
  driver.Check(driver.cuMemExportToShareableHandle(&file, handle_, kFileDescriptors, 0), "cuMemExportToShareableHandle");
  return file;
}

void Shareable::Describe(Ticket& ticket) const {
  ticket.fabric_result = fabric_result_;
  if (fabric_result_ == kSuccess) ticket.fabric_result = driver.cuMemExportToShareableHandle(&ticket.fabric, handle_, kFabric, 0);
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
