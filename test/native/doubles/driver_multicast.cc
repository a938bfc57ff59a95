// The double's memory without addresses, what is mapped where, and multicasts: stores of kernels to their addresses reach all memory that is bound.
//
// Memory is mapped once at most. What a multicast's addresses reach is emulation::TheMulticasts(); nothing lies there itself.
#include <algorithm>
#include <map>
#include <unordered_map>

#include "driver.h"
#include "multicasts.h"

using namespace cuda_double;

namespace {

using Handle = unsigned long long;

/** Sizes of memory, of addresses and of multicasts are multiples of it. A real one is larger. */
constexpr size_t kUnit = 64 << 10;

/** Memory of a device, or a multicast; it lasts as long as its handle, its mappings, and of memory, its bindings. */
struct Object {
  bool multicast;
  int device;
  size_t bytes;
  int uses = 1;
  /** Where it is mapped. */
  std::vector<Allocation*> at;
  /** Of a multicast: how many devices it is for, those that were added, and their memory. */
  size_t devices = 0;
  std::vector<int> team;
  std::map<int, Object*> bound;
};

/** Guarded by Lock(). */
struct Objects {
  Handle next = 0x1000;
  std::unordered_map<Handle, Object*> handles;
  std::map<DevicePointer, size_t> reserved;
  std::map<DevicePointer, Object*> mapped;

  Object* Of(Handle handle, bool multicast) {
    const auto found = handles.find(handle);
    if (found != handles.end() && found->second->multicast == multicast) return found->second;
    Report("there is no %s %llu", multicast ? "multicast" : "memory", handle);
    return nullptr;
  }
};

Objects& All() {
  static auto* const all = new Objects;
  return *all;
}

void Use(Object& object) {
  object.uses++;
  CountUp(kVirtual);
}

void Drop(Object* object) {
  CountUp(kVirtual, -1);
  if (--object->uses > 0) return;
  if (!object->multicast) Unclaim(object->device, object->bytes);
  else if (!object->bound.empty()) Report("a multicast has gone to which memory is bound");
  delete object;
}

/** What the addresses of a multicast reach now. */
void Tell(const Object& object) {
  auto& multicasts = emulation::TheMulticasts();
  multicasts.stored = [] { CountUp(kMulticastStores); };
  for (const Allocation* at : object.at) {
    emulation::Multicast now{at->data, object.bytes, {}, object.devices};
    size_t i = 0;
    for (const auto& [device, memory] : object.bound) now.memory[i++] = memory->at.empty() ? nullptr : memory->at[0]->data;
    multicasts.Set(now);
  }
}

/** Whether work that has not ended uses these addresses, or kernels could store through them: then the device is lost. */
int Used(const char* what, const Allocation& at) {
  const char* const user = UserOf(at.data, at.end());
  if (!user) return kSuccess;
  Report("%s at %p is taken away while %s, which has not ended, uses it", what, static_cast<void*>(at.data), user);
  Lose(at.device, kIllegalAddress);
  return kIllegalAddress;
}

bool Whole(size_t bytes) { return bytes > 0 && bytes % kUnit == 0; }

bool Known(const Call& call, int device) { return device >= 0 && static_cast<size_t>(device) < call.driver.devices.size(); }

int CheckProperties(const Call& call, const MulticastProperties* properties) {
  if (!SettingsNow().multicast) return kNotSupported;
  if (!properties || properties->devices < 2 || properties->devices > call.driver.devices.size()) return kInvalidValue;
  return properties->bytes > 0 && properties->handle_types <= 1 && properties->flags == 0 ? kSuccess : kInvalidValue;
}

}  // namespace

DRIVER_API cuMemCreate(Handle* handle, size_t bytes, const MemoryProperties* properties, unsigned long long flags) {
  CALL(cuMemCreate, kInit);
  if (!properties || properties->type != 1 || properties->handle_types > 1 || properties->location.type != 1 || flags != 0) return kInvalidValue;
  if (!Whole(bytes) || !Known(call, properties->location.device)) return kInvalidValue;
  if (!Claim(properties->location.device, bytes)) return kOutOfMemory;
  All().handles[*handle = All().next++] = new Object{false, properties->location.device, bytes};
  CountUp(kVirtual);
  return kSuccess;
}

DRIVER_API cuMemRelease(Handle handle) {
  CALL(cuMemRelease, kInit);
  const auto found = All().handles.find(handle);
  if (found == All().handles.end()) {
    Report("there is no memory %llu, which is released", handle);
    return kInvalidValue;
  }
  Object* const object = found->second;
  All().handles.erase(found);
  Drop(object);
  return kSuccess;
}

DRIVER_API cuMemAddressReserve(DevicePointer* pointer, size_t bytes, size_t alignment, DevicePointer at, unsigned long long flags) {
  CALL(cuMemAddressReserve, kInit);
  if (!Whole(bytes) || alignment != 0 || at != 0 || flags != 0) return kInvalidValue;
  std::byte* const addresses = Reserve(bytes);
  if (!addresses) return kOutOfMemory;
  All().reserved[*pointer = reinterpret_cast<DevicePointer>(addresses)] = bytes;
  CountUp(kVirtual);
  return kSuccess;
}

DRIVER_API cuMemAddressFree(DevicePointer pointer, size_t bytes) {
  CALL(cuMemAddressFree, kInit);
  const auto found = All().reserved.find(pointer);
  if (found == All().reserved.end() || found->second != bytes || All().mapped.count(pointer)) {
    Report("%zu addresses from %llx on, which are freed, are not reserved, or in use", bytes, pointer);
    return kInvalidValue;
  }
  All().reserved.erase(found);
  CountUp(kVirtual, -1);
  return kSuccess;
}

DRIVER_API cuMemMap(DevicePointer pointer, size_t bytes, size_t offset, Handle handle, unsigned long long flags) {
  CALL(cuMemMap, kInit);
  const auto known = All().handles.find(handle);
  if (known == All().handles.end()) return kInvalidValue;
  Object& object = *known->second;
  const auto room = All().reserved.find(pointer);
  if (room == All().reserved.end() || room->second != bytes || bytes != object.bytes || offset != 0 || flags != 0) return kInvalidValue;
  if (All().mapped.count(pointer)) return kInvalidValue;
  if (object.multicast && object.team.size() < object.devices) return kInvalidValue;
  if (!object.multicast && !object.at.empty()) {
    Report("memory that is mapped twice is not emulated");
    return kNotSupported;
  }
  auto* const at = reinterpret_cast<std::byte*>(pointer);
  Allocation* const mapped = Map(object.multicast ? Kind::kMulticast : Kind::kVirtual, object.device, at, bytes);
  object.at.push_back(mapped);
  All().mapped[pointer] = &object;
  Use(object);
  if (object.multicast) Tell(object);
  return kSuccess;
}

DRIVER_API cuMemUnmap(DevicePointer pointer, size_t bytes) {
  CALL(cuMemUnmap, kInit);
  const auto found = All().mapped.find(pointer);
  if (found == All().mapped.end() || found->second->bytes != bytes) {
    Report("nothing is mapped at %llx, which is unmapped", pointer);
    return kInvalidValue;
  }
  Object& object = *found->second;
  const auto place = std::find_if(object.at.begin(), object.at.end(), [&](const Allocation* at) { return at->data == reinterpret_cast<std::byte*>(pointer); });
  if (const int error = Used(object.multicast ? "a multicast" : "memory", **place)) return error;
  if (object.multicast) emulation::TheMulticasts().Remove((*place)->data);
  Free(*place);
  object.at.erase(place);
  All().mapped.erase(found);
  Drop(&object);
  return kSuccess;
}

DRIVER_API cuMemSetAccess(DevicePointer pointer, size_t bytes, const MemoryAccess* access, size_t count) {
  CALL(cuMemSetAccess, kInit);
  const auto found = All().mapped.find(pointer);
  if (found == All().mapped.end() || found->second->bytes != bytes || !access) return kInvalidValue;
  const Object& object = *found->second;
  for (size_t i = 0; i < count; i++) {
    const auto& [location, flags] = access[i];
    if (location.type != 1 || flags != 3 || !Known(call, location.device)) return kInvalidValue;
    if (object.multicast && std::find(object.team.begin(), object.team.end(), location.device) == object.team.end()) return kInvalidValue;
    if (!object.multicast && location.device != object.device && !SettingsNow().peers) return kPeerAccessUnsupported;
    Find(reinterpret_cast<const void*>(pointer))->access |= uint64_t{1} << location.device;
  }
  return kSuccess;
}

DRIVER_API cuMulticastGetGranularity(size_t* bytes, const MulticastProperties* properties, int option) {
  CALL(cuMulticastGetGranularity, kInit);
  if (const int error = CheckProperties(call, properties)) return error;
  if (option != 0 && option != 1) return kInvalidValue;
  *bytes = kUnit;
  return kSuccess;
}

DRIVER_API cuMulticastCreate(Handle* handle, const MulticastProperties* properties) {
  CALL(cuMulticastCreate, kInit);
  if (const int error = CheckProperties(call, properties)) return error;
  if (!Whole(properties->bytes)) return kInvalidValue;
  auto* const object = new Object{true, -1, properties->bytes};
  object->devices = properties->devices;
  All().handles[*handle = All().next++] = object;
  CountUp(kVirtual);
  return kSuccess;
}

DRIVER_API cuMulticastAddDevice(Handle handle, int device) {
  CALL(cuMulticastAddDevice, kInit);
  Object* const object = All().Of(handle, true);
  if (!object || !Known(call, device) || object->team.size() == object->devices) return kInvalidValue;
  if (std::find(object->team.begin(), object->team.end(), device) != object->team.end()) return kInvalidValue;
  object->team.push_back(device);
  return kSuccess;
}

/** Before all devices are there a real one waits, maybe for ever. */
DRIVER_API cuMulticastBindMem(Handle handle, size_t at, Handle memory_handle, size_t offset, size_t bytes, unsigned long long flags) {
  CALL(cuMulticastBindMem, kInit);
  Object *const object = All().Of(handle, true), *const memory = All().Of(memory_handle, false);
  if (!object || !memory || at != 0 || offset != 0 || flags != 0 || bytes != object->bytes || bytes != memory->bytes) return kInvalidValue;
  if (object->team.size() < object->devices) {
    Report("memory is bound to a multicast of %zu devices, of which %zu have been added", object->devices, object->team.size());
    return kInvalidValue;
  }
  if (std::find(object->team.begin(), object->team.end(), memory->device) == object->team.end() || object->bound.count(memory->device)) return kInvalidValue;
  object->bound[memory->device] = memory;
  Use(*memory);
  Tell(*object);
  return kSuccess;
}

DRIVER_API cuMulticastUnbind(Handle handle, int device, size_t at, size_t bytes) {
  CALL(cuMulticastUnbind, kInit);
  Object* const object = All().Of(handle, true);
  if (!object || at != 0 || bytes != object->bytes) return kInvalidValue;
  const auto found = object->bound.find(device);
  if (found == object->bound.end()) {
    Report("no memory of device %d, which is unbound, is bound to the multicast", device);
    return kInvalidValue;
  }
  for (const Allocation* mapped : object->at) {
    if (const int error = Used("memory of a multicast", *mapped)) return error;
  }
  Object* const memory = found->second;
  object->bound.erase(found);
  Tell(*object);
  Drop(memory);
  return kSuccess;
}
