// The double's memory: allocations, copies and fills in stream order, handles for other processes.
#include <algorithm>
#include <cstring>

#include "driver.h"

using namespace cuda_double;

namespace {

const void* At(DevicePointer pointer) { return reinterpret_cast<const void*>(pointer); }

/** The allocation that begins at an address. */
Allocation* Beginning(const void* at) {
  Allocation* const found = Find(at);
  return found && found->data == at ? found : nullptr;
}

/** Whether a copy may touch these bytes: those of one allocation, of any device, or of the host. */
bool Sound(const void* at, size_t bytes) {
  if (Allocation* const of = Find(at)) return static_cast<const std::byte*>(at) + bytes <= of->end();
  return at != nullptr && !WasFreed(at);
}

/** Frees it, unless work that has not ended uses it: then the device is lost. */
int Release(Call& call, Allocation* allocation) {
  if (const char* user = UserOf(allocation->data, allocation->end())) {
    Report("memory at %p is freed while %s, which has not ended, uses it", static_cast<void*>(allocation->data), user);
    Lose(call.device->index, kIllegalAddress);
    return kIllegalAddress;
  }
  Free(allocation);
  return kSuccess;
}

int AddCopy(Call& call, void* stream, void* to, const void* from, size_t bytes) {
  Stream* const of = call.StreamOf(stream);
  if (!of) return call.error;
  if (bytes == 0) return kSuccess;
  if (!Sound(to, bytes) || !Sound(from, bytes)) return kInvalidValue;
  Task task;
  task.what = "a copy";
  task.uses = {{to, bytes}, {from, bytes}};
  task.step = [=] {
    std::memmove(to, from, bytes);
    CountUp(kCopies);
    return 1;
  };
  return call.Add(of, std::move(task));
}

template <typename T>
int AddFill(Call& call, void* stream, DevicePointer pointer, T value, size_t count) {
  Stream* const of = call.StreamOf(stream);
  if (!of) return call.error;
  if (count == 0) return kSuccess;
  Allocation* const allocation = Find(At(pointer));
  if (!allocation || !Reaches(*call.device, *allocation)) return kInvalidValue;
  if (pointer % sizeof(T) != 0 || !Sound(At(pointer), count * sizeof(T))) return kInvalidValue;
  Task task;
  task.what = "a fill";
  task.uses = {{At(pointer), count * sizeof(T)}};
  task.step = [=] {
    std::fill_n(reinterpret_cast<T*>(pointer), count, value);
    return 1;
  };
  return call.Add(of, std::move(task));
}

int Finish(Call& call) {
  const int result = WaitFor(call.lock, call.device->null_stream.last);
  return result != kSuccess ? result : LostTo(call.device->index);
}

}  // namespace

DRIVER_API cuMemAlloc_v2(DevicePointer* pointer, size_t bytes) {
  CALL(cuMemAlloc_v2, kContext);
  if (call.Forbidden()) return call.error;
  if (bytes == 0) return kInvalidValue;
  Allocation* const allocation = Allocate(Kind::kDevice, call.device->index, bytes);
  if (!allocation) return kOutOfMemory;
  *pointer = reinterpret_cast<DevicePointer>(allocation->data);
  return kSuccess;
}

DRIVER_API cuMemFree_v2(DevicePointer pointer) {
  CALL(cuMemFree_v2, kContext);
  if (call.Forbidden()) return call.error;
  if (pointer == 0) return kSuccess;
  Allocation* const allocation = Beginning(At(pointer));
  if (allocation && allocation->kind == Kind::kDevice) return Release(call, allocation);
  Report("%p, which is freed, is no memory of a device", At(pointer));
  return kInvalidValue;
}

DRIVER_API cuMemGetInfo_v2(size_t* free, size_t* total) {
  CALL(cuMemGetInfo_v2, kContext);
  *total = SettingsNow().memory;
  *free = *total - BytesUsed(call.device->index);
  return kSuccess;
}

DRIVER_API cuMemGetAddressRange_v2(DevicePointer* base, size_t* bytes, DevicePointer pointer) {
  CALL(cuMemGetAddressRange_v2, kContext);
  const Allocation* const allocation = Find(At(pointer));
  if (!allocation) return kNotFound;
  if (base) *base = reinterpret_cast<DevicePointer>(allocation->data);
  if (bytes) *bytes = allocation->bytes;
  return kSuccess;
}

DRIVER_API cuMemHostAlloc(void** pointer, size_t bytes, unsigned flags) {
  CALL(cuMemHostAlloc, kContext);
  if (call.Forbidden()) return call.error;
  if (bytes == 0 || flags > 7) return kInvalidValue;
  Allocation* const allocation = Allocate(Kind::kPinned, -1, bytes);
  if (!allocation) return kOutOfMemory;
  *pointer = allocation->data;
  return kSuccess;
}

DRIVER_API cuMemAllocHost_v2(void** pointer, size_t bytes) { return cuMemHostAlloc(pointer, bytes, 0); }

DRIVER_API cuMemFreeHost(void* pointer) {
  CALL(cuMemFreeHost, kContext);
  if (call.Forbidden()) return call.error;
  Allocation* const allocation = Beginning(pointer);
  if (allocation && allocation->kind == Kind::kPinned) return Release(call, allocation);
  Report("%p, which is freed, is no pinned memory", pointer);
  return kInvalidValue;
}

/** For all contexts, and for kernels: another way is not emulated. */
DRIVER_API cuMemHostRegister_v2(void* pointer, size_t bytes, unsigned flags) {
  CALL(cuMemHostRegister_v2, kContext);
  if (call.Forbidden()) return call.error;
  if (!pointer || bytes == 0 || flags != 3) return kInvalidValue;
  return Register(pointer, bytes) ? kSuccess : kHostMemoryAlreadyRegistered;
}

DRIVER_API cuMemHostUnregister(void* pointer) {
  CALL(cuMemHostUnregister, kContext);
  if (call.Forbidden()) return call.error;
  Allocation* const allocation = Beginning(pointer);
  if (allocation && allocation->kind == Kind::kRegistered) return Release(call, allocation);
  Report("%p, which is unregistered, was not registered", pointer);
  return kInvalidValue;
}

DRIVER_API cuMemHostGetDevicePointer_v2(DevicePointer* device_pointer, void* pointer, unsigned) {
  CALL(cuMemHostGetDevicePointer_v2, kContext);
  const Allocation* const allocation = Find(pointer);
  if (!allocation || (allocation->kind != Kind::kPinned && allocation->kind != Kind::kRegistered)) return kInvalidValue;
  *device_pointer = reinterpret_cast<DevicePointer>(pointer);
  return kSuccess;
}

DRIVER_API cuMemcpyAsync(DevicePointer to, DevicePointer from, size_t bytes, void* stream) {
  CALL(cuMemcpyAsync, kContext);
  return AddCopy(call, stream, const_cast<void*>(At(to)), At(from), bytes);
}

DRIVER_API cuMemcpyHtoDAsync_v2(DevicePointer to, const void* from, size_t bytes, void* stream) {
  CALL(cuMemcpyHtoDAsync_v2, kContext);
  return AddCopy(call, stream, const_cast<void*>(At(to)), from, bytes);
}

DRIVER_API cuMemcpyDtoHAsync_v2(void* to, DevicePointer from, size_t bytes, void* stream) {
  CALL(cuMemcpyDtoHAsync_v2, kContext);
  return AddCopy(call, stream, to, At(from), bytes);
}

DRIVER_API cuMemcpyDtoDAsync_v2(DevicePointer to, DevicePointer from, size_t bytes, void* stream) {
  CALL(cuMemcpyDtoDAsync_v2, kContext);
  return AddCopy(call, stream, const_cast<void*>(At(to)), At(from), bytes);
}

/** Through the null stream, waited for. */
DRIVER_API cuMemcpy(DevicePointer to, DevicePointer from, size_t bytes) {
  CALL(cuMemcpy, kContext);
  if (call.Forbidden()) return call.error;
  const int result = AddCopy(call, nullptr, const_cast<void*>(At(to)), At(from), bytes);
  return result != kSuccess ? result : Finish(call);
}

DRIVER_API cuMemcpyHtoD_v2(DevicePointer to, const void* from, size_t bytes) {
  return cuMemcpy(to, reinterpret_cast<DevicePointer>(from), bytes);
}

DRIVER_API cuMemcpyDtoH_v2(void* to, DevicePointer from, size_t bytes) {
  return cuMemcpy(reinterpret_cast<DevicePointer>(to), from, bytes);
}

DRIVER_API cuMemsetD8Async(DevicePointer to, unsigned char value, size_t count, void* stream) {
  CALL(cuMemsetD8Async, kContext);
  return AddFill(call, stream, to, value, count);
}

DRIVER_API cuMemsetD32Async(DevicePointer to, unsigned value, size_t count, void* stream) {
  CALL(cuMemsetD32Async, kContext);
  return AddFill(call, stream, to, value, count);
}

DRIVER_API cuMemsetD8_v2(DevicePointer to, unsigned char value, size_t count) {
  CALL(cuMemsetD8_v2, kContext);
  return AddFill(call, nullptr, to, value, count);  // a real one does not wait either
}

DRIVER_API cuMemsetD32_v2(DevicePointer to, unsigned value, size_t count) {
  CALL(cuMemsetD32_v2, kContext);
  return AddFill(call, nullptr, to, value, count);
}

DRIVER_API cuPointerGetAttribute(void* data, int attribute, DevicePointer pointer) {
  CALL(cuPointerGetAttribute, kContext);
  const Allocation* const allocation = Find(At(pointer));
  if (!allocation) return kInvalidValue;
  const bool device = allocation->kind != Kind::kPinned && allocation->kind != Kind::kRegistered;
  switch (attribute) {
    case 1: *static_cast<void**>(data) = device ? call.driver.devices[static_cast<size_t>(allocation->device)].get() : call.device; break;
    case 2: *static_cast<unsigned*>(data) = device ? 2 : 1; break;  // device or host memory
    case 3: *static_cast<DevicePointer*>(data) = pointer; break;
    case 4:
      if (device) return kInvalidValue;
      *static_cast<void**>(data) = const_cast<void*>(At(pointer));
      break;
    case 7: *static_cast<uint64_t*>(data) = allocation->id; break;
    case 8: *static_cast<bool*>(data) = false; break;
    case 9: *static_cast<int*>(data) = device ? allocation->device : 0; break;
    case 11: *static_cast<DevicePointer*>(data) = reinterpret_cast<DevicePointer>(allocation->data); break;
    case 12: *static_cast<size_t*>(data) = allocation->bytes; break;
    default: Report("attribute %d of a pointer is not emulated", attribute); return kInvalidValue;
  }
  return kSuccess;
}

DRIVER_API cuIpcGetMemHandle(IpcHandle* handle, DevicePointer pointer) {
  CALL(cuIpcGetMemHandle, kContext);
  const Allocation* const allocation = Find(At(pointer));
  if (!allocation || allocation->kind != Kind::kDevice) return kInvalidValue;
  Describe(*allocation, handle);
  return kSuccess;
}

DRIVER_API cuIpcOpenMemHandle_v2(DevicePointer* pointer, IpcHandle handle, unsigned flags) {
  CALL(cuIpcOpenMemHandle_v2, kContext);
  if (flags != 1) return kInvalidValue;  // access of peers, enabled when it is needed
  Allocation* allocation = nullptr;
  const Result result = Import(handle, &allocation);
  if (result != kSuccess) return result;
  *pointer = reinterpret_cast<DevicePointer>(allocation->data);
  return kSuccess;
}

DRIVER_API cuIpcCloseMemHandle(DevicePointer pointer) {
  CALL(cuIpcCloseMemHandle, kContext);
  Allocation* const allocation = Beginning(At(pointer));
  if (!allocation || allocation->kind != Kind::kImported) {
    Report("%p, which is closed, is no memory of another process", At(pointer));
    return kInvalidValue;
  }
  return --allocation->uses > 0 ? static_cast<int>(kSuccess) : Release(call, allocation);
}
