// The double's memory without addresses, what is mapped where, and multicasts: stores of kernels to their addresses reach all memory that is bound.
//
// Each is a file without a name: what all processes know of it, then the bytes of memory. It becomes a file descriptor, or a fabric's handle, by
// which other processes map the same. In a process, memory is mapped once at most. What a multicast's addresses reach is
// emulation::TheMulticasts(), as of the last kernel that was given them; nothing lies there itself.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <unordered_map>

#include "driver.h"
#include "multicasts.h"

using namespace cuda_double;

namespace {

using Handle = unsigned long long;

/** Sizes of memory, of addresses and of multicasts are multiples of it. A real one is larger. */
constexpr size_t kUnit = 64 << 10;
constexpr int kFiles = 1, kFabric = 8;
constexpr uint32_t kMagic = 0x72616e6d;
constexpr size_t kMost = emulation::Multicast::kMost;

/** A file as other processes find it. */
struct Place {
  int32_t process, file;
  uint64_t inode;

  int Open() const {
    char name[64];
    std::snprintf(name, sizeof name, "/proc/%d/fd/%d", process, file);
    const int opened = open(name, O_RDWR | O_CLOEXEC);
    struct stat about;
    if (opened < 0 || (fstat(opened, &about) == 0 && about.st_ino == inode)) return opened;
    close(opened);
    return -1;
  }
};

/** What a file begins with. */
struct Head {
  uint32_t magic;
  bool multicast;
  /** As all processes number it. */
  int device;
  int types;
  size_t bytes;
  /** Of a multicast: how many devices it is for, those that were added, and their memory; guarded by `busy`. */
  size_t devices;
  std::atomic<bool> busy;
  size_t added, bindings;
  int team[kMost];
  struct {
    int device;
    Place memory;
  } bound[kMost];

  bool Has(int of) const { return std::find(team, team + added, of) != team + added; }
  size_t BoundOf(int of) const {
    return static_cast<size_t>(std::find_if(bound, bound + bindings, [of](const auto& one) { return one.device == of; }) - bound);
  }
};
static_assert(sizeof(Head) <= kHeadBytes);

class Busy {
 public:
  explicit Busy(Head& of) : head_(of) {
    while (head_.busy.exchange(true, std::memory_order_acquire)) {
    }
  }
  ~Busy() { head_.busy.store(false, std::memory_order_release); }

 private:
  Head& head_;
};

/** Memory of a device, or a multicast, as this process has it; it lasts as long as its handle, its mappings, and of memory, its bindings. */
struct Object {
  int file;
  Head* head;
  bool imported;
  int uses = 1;
  /** Where it is mapped. */
  std::vector<Allocation*> at;
  /** Of a multicast: what this process has bound, and memory of others, by file. */
  std::map<int, Object*> bound;
  std::map<uint64_t, std::byte*> far;
};

uint64_t InodeOf(int file) {
  struct stat about {};
  fstat(file, &about);
  return about.st_ino;
}

/** Guarded by Lock(). */
struct Objects {
  Handle next = 0x1000;
  std::unordered_map<Handle, Object*> handles;
  std::map<DevicePointer, size_t> reserved;
  std::map<DevicePointer, Object*> mapped;

  Object* Of(Handle handle, bool multicast) {
    const auto found = handles.find(handle);
    if (found != handles.end() && found->second->head->multicast == multicast) return found->second;
    Report("there is no %s %llu", multicast ? "multicast" : "memory", handle);
    return nullptr;
  }
};

Objects& All() {
  static auto* const all = new Objects;
  return *all;
}

/** Takes the file over; null where it is none of these. */
Object* Opened(int file, bool imported) {
  void* const head = file < 0 ? MAP_FAILED : mmap(nullptr, kHeadBytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (head != MAP_FAILED && (!imported || static_cast<Head*>(head)->magic == kMagic)) return new Object{file, static_cast<Head*>(head), imported};
  if (head != MAP_FAILED) munmap(head, kHeadBytes);
  if (file >= 0) close(file);
  return nullptr;
}

/** A new file with such a head. */
int Create(Handle* handle, bool multicast, int device, int types, size_t bytes, size_t devices) {
  const int file = memfd_create("libcuda-double", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(kHeadBytes + bytes)) != 0) return kOutOfMemory;
  Object* const object = Opened(file, false);
  if (!object) return kOutOfMemory;
  new (object->head) Head{kMagic, multicast, device, types, bytes, devices, false, 0, 0, {}, {}};
  if (!multicast) PoisonFile(file, bytes);
  All().handles[*handle = All().next++] = object;
  CountUp(kVirtual);
  return kSuccess;
}

void Use(Object& object) {
  object.uses++;
  CountUp(kVirtual);
}

void Drop(Object* object) {
  CountUp(kVirtual, -1);
  if (--object->uses > 0) return;
  if (object->imported) CountUp(kImports, -1);
  else if (!object->head->multicast) Unclaim(object->head->device - SettingsNow().uuid, object->head->bytes);
  if (!object->bound.empty()) Report("a multicast has gone to which memory is bound");
  for (const auto& [inode, memory] : object->far) munmap(memory, object->head->bytes);
  munmap(object->head, kHeadBytes);
  close(object->file);
  delete object;
}

/** Where this process has the memory of a file. */
std::byte* MemoryAt(Object& multicast, const Place& place) {
  for (const auto& [device, memory] : multicast.bound) {
    if (InodeOf(memory->file) == place.inode) return memory->at.empty() ? nullptr : memory->at[0]->data;
  }
  auto& known = multicast.far[place.inode];
  const int file = known ? -1 : place.Open();
  if (file >= 0) {
    void* const memory = mmap(nullptr, multicast.head->bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, kHeadBytes);
    if (memory != MAP_FAILED) known = static_cast<std::byte*>(memory);
    close(file);
  }
  return known;
}

/** What the addresses of a multicast reach now. */
void Tell(Object& object) {
  auto& multicasts = emulation::TheMulticasts();
  multicasts.stored = [] { CountUp(kMulticastStores); };
  emulation::Multicast now{nullptr, object.head->bytes, {}, object.head->devices};
  {
    const Busy busy(*object.head);
    for (size_t i = 0; i < object.head->bindings; i++) now.memory[i] = MemoryAt(object, object.head->bound[i].memory);
  }
  for (const Allocation* at : object.at) {
    now.at = at->data;
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

/** What all processes call a device of this one, and what this one calls it; -1 where it does not see it. */
int Everywhere(int device) { return device + SettingsNow().uuid; }
int Here(const Call& call, int device) { return Known(call, device - SettingsNow().uuid) ? device - SettingsNow().uuid : -1; }

/** What handles may become. */
int CheckTypes(unsigned long long types) {
  if ((types & ~static_cast<unsigned long long>(kFiles | kFabric)) != 0) return kInvalidValue;
  if ((types & kFabric) == 0 || SettingsNow().fabric == 1) return kSuccess;
  return SettingsNow().fabric == 0 ? kInvalidValue : kNotPermitted;
}

int CheckProperties(const Call& call, const MulticastProperties* properties) {
  if (!SettingsNow().multicast) return kNotSupported;
  if (!properties || properties->devices < 2 || properties->devices > std::min(call.driver.devices.size(), kMost)) return kInvalidValue;
  return properties->bytes > 0 && properties->flags == 0 ? CheckTypes(properties->handle_types) : static_cast<int>(kInvalidValue);
}

}  // namespace

void cuda_double::RefreshMulticast(const Allocation& at) {
  const auto found = All().mapped.find(reinterpret_cast<DevicePointer>(at.data));
  if (found != All().mapped.end()) Tell(*found->second);
}

DRIVER_API cuMemCreate(Handle* handle, size_t bytes, const MemoryProperties* properties, unsigned long long flags) {
  CALL(cuMemCreate, kInit);
  if (!properties || properties->type != 1 || properties->location.type != 1 || flags != 0) return kInvalidValue;
  if (!Whole(bytes) || !Known(call, properties->location.device)) return kInvalidValue;
  if (const int error = CheckTypes(static_cast<unsigned>(properties->handle_types))) return error;
  if (!Claim(properties->location.device, bytes)) return kOutOfMemory;
  return Create(handle, false, Everywhere(properties->location.device), properties->handle_types, bytes, 0);
}

DRIVER_API cuMemGetAllocationGranularity(size_t* bytes, const MemoryProperties* properties, int option) {
  CALL(cuMemGetAllocationGranularity, kInit);
  if (!properties || !Known(call, properties->location.device) || (option != 0 && option != 1)) return kInvalidValue;
  *bytes = kUnit;
  return kSuccess;
}

DRIVER_API cuMemExportToShareableHandle(void* shareable, Handle handle, int type, unsigned long long flags) {
  CALL(cuMemExportToShareableHandle, kInit);
  const auto known = All().handles.find(handle);
  if (known == All().handles.end() || !shareable || flags != 0) return kInvalidValue;
  const Object& object = *known->second;
  if ((object.head->types & type) == 0) return kInvalidValue;
  if (type == kFabric) {
    const Place place{getpid(), object.file, InodeOf(object.file)};
    std::memset(shareable, 0, 64);
    std::memcpy(shareable, &place, sizeof place);
    return kSuccess;
  }
  const int file = fcntl(object.file, F_DUPFD_CLOEXEC, 0);
  if (file < 0) return kOutOfMemory;
  *static_cast<int*>(shareable) = file;
  return kSuccess;
}

/** The file descriptor remains the caller's. */
DRIVER_API cuMemImportFromShareableHandle(Handle* handle, void* shareable, int type) {
  CALL(cuMemImportFromShareableHandle, kInit);
  Place place;
  if (type == kFabric) std::memcpy(&place, shareable, sizeof place);
  else if (type != kFiles) return kInvalidValue;
  const int file = type == kFabric ? place.Open() : fcntl(static_cast<int>(reinterpret_cast<intptr_t>(shareable)), F_DUPFD_CLOEXEC, 0);
  Object* const object = Opened(file, true);
  if (!object) return kInvalidHandle;
  if ((object->head->types & type) == 0) Report("memory is imported in a way that it was not made for");
  All().handles[*handle = All().next++] = object;
  CountUp(kVirtual);
  CountUp(kImports);
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
  const Head& head = *object.head;
  const auto room = All().reserved.find(pointer);
  if (room == All().reserved.end() || room->second != bytes || bytes != head.bytes || offset != 0 || flags != 0) return kInvalidValue;
  if (All().mapped.count(pointer)) return kInvalidValue;
  if (head.multicast && head.added < head.devices) return kInvalidValue;
  if (!head.multicast && !object.at.empty()) {
    Report("memory that is mapped twice is not emulated");
    return kNotSupported;
  }
  auto* const at = reinterpret_cast<std::byte*>(pointer);
  Allocation* const mapped = Map(head.multicast ? Kind::kMulticast : Kind::kVirtual, Here(call, head.device), at, bytes, object.file);
  if (!mapped) return kOutOfMemory;
  object.at.push_back(mapped);
  All().mapped[pointer] = &object;
  Use(object);
  if (head.multicast) Tell(object);
  return kSuccess;
}

DRIVER_API cuMemUnmap(DevicePointer pointer, size_t bytes) {
  CALL(cuMemUnmap, kInit);
  const auto found = All().mapped.find(pointer);
  if (found == All().mapped.end() || found->second->head->bytes != bytes) {
    Report("nothing is mapped at %llx, which is unmapped", pointer);
    return kInvalidValue;
  }
  Object& object = *found->second;
  const auto place = std::find_if(object.at.begin(), object.at.end(), [&](const Allocation* at) { return at->data == reinterpret_cast<std::byte*>(pointer); });
  if (const int error = Used(object.head->multicast ? "a multicast" : "memory", **place)) return error;
  if (object.head->multicast) emulation::TheMulticasts().Remove((*place)->data);
  Free(*place);
  object.at.erase(place);
  All().mapped.erase(found);
  Drop(&object);
  return kSuccess;
}

DRIVER_API cuMemSetAccess(DevicePointer pointer, size_t bytes, const MemoryAccess* access, size_t count) {
  CALL(cuMemSetAccess, kInit);
  const auto found = All().mapped.find(pointer);
  if (found == All().mapped.end() || found->second->head->bytes != bytes || !access) return kInvalidValue;
  const Head& head = *found->second->head;
  for (size_t i = 0; i < count; i++) {
    const auto& [location, flags] = access[i];
    if (location.type != 1 || flags != 3 || !Known(call, location.device)) return kInvalidValue;
    if (head.multicast && !head.Has(Everywhere(location.device))) return kInvalidValue;
    if (!head.multicast && Everywhere(location.device) != head.device && !SettingsNow().peers) return kPeerAccessUnsupported;
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
  return Create(handle, true, -1, static_cast<int>(properties->handle_types), properties->bytes, properties->devices);
}

DRIVER_API cuMulticastAddDevice(Handle handle, int device) {
  CALL(cuMulticastAddDevice, kInit);
  Object* const object = All().Of(handle, true);
  if (!object) return kInvalidValue;
  Head& head = *object->head;
  const Busy busy(head);
  if (!Known(call, device) || head.added == head.devices || head.Has(Everywhere(device))) return kInvalidValue;
  head.team[head.added++] = Everywhere(device);
  return kSuccess;
}

/** Before all devices are there a real one waits, maybe for ever. */
DRIVER_API cuMulticastBindMem(Handle handle, size_t at, Handle memory_handle, size_t offset, size_t bytes, unsigned long long flags) {
  CALL(cuMulticastBindMem, kInit);
  Object *const object = All().Of(handle, true), *const memory = All().Of(memory_handle, false);
  if (!object || !memory || at != 0 || offset != 0 || flags != 0 || bytes != object->head->bytes || bytes != memory->head->bytes) return kInvalidValue;
  const int device = memory->head->device;
  {
    Head& head = *object->head;
    const Busy busy(head);
    if (head.added < head.devices) {
      Report("memory is bound to a multicast of %zu devices, of which %zu have been added", head.devices, head.added);
      return kInvalidValue;
    }
    if (!head.Has(device) || head.BoundOf(device) < head.bindings) return kInvalidValue;
    head.bound[head.bindings++] = {device, {getpid(), memory->file, InodeOf(memory->file)}};
  }
  object->bound[device] = memory;
  Use(*memory);
  Tell(*object);
  return kSuccess;
}

DRIVER_API cuMulticastUnbind(Handle handle, int number, size_t at, size_t bytes) {
  CALL(cuMulticastUnbind, kInit);
  Object* const object = All().Of(handle, true);
  const int device = Everywhere(number);
  if (!object || at != 0 || bytes != object->head->bytes) return kInvalidValue;
  const auto found = object->bound.find(device);
  if (found == object->bound.end()) {
    Report("no memory of device %d, which is unbound, is bound to the multicast", device);
    return kInvalidValue;
  }
  for (const Allocation* mapped : object->at) {
    if (const int error = Used("memory of a multicast", *mapped)) return error;
  }
  {
    Head& head = *object->head;
    const Busy busy(head);
    head.bound[head.BoundOf(device)] = head.bound[head.bindings - 1];
    head.bindings--;
  }
  Object* const memory = found->second;
  object->bound.erase(found);
  Tell(*object);
  Drop(memory);
  return kSuccess;
}
