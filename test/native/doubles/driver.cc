// A double of libcuda for machines without a GPU: devices, contexts, and what every call checks.
#include "driver.h"

#include <dlfcn.h>
#include <pthread.h>

#include <cstdio>
#include <cstring>

namespace cuda_double {
namespace {

thread_local int current = -1;

}  // namespace

Driver& TheDriver() {
  static Driver* const driver = new Driver;
  return *driver;
}

int CurrentDevice() { return current; }
void SetCurrentDevice(int device) { current = device; }

Call::Call(const char* function, Needs needs) : lock(Lock(), std::defer_lock), driver(TheDriver()) {
  if (OnMachine()) {
    Report("%s is called by a function that a stream runs", function);
    error = kNotPermitted;
    return;
  }
  error = Entered(function);
  if (error != kSuccess) return;
  lock.lock();
  if (needs != kNothing && !driver.initialised) error = kNotInitialized;
  if (needs != kContext || error != kSuccess) return;
  if (current < 0) {
    error = kInvalidContext;
    return;
  }
  device = driver.devices[static_cast<size_t>(current)].get();
  error = device->uses == 0 ? static_cast<int>(kContextIsDestroyed) : LostTo(current);
}

Stream* Call::StreamOf(void* handle) {
  // 1 and 2 are the null stream's other names: the legacy one and that of a thread, which is not emulated.
  if (!handle || handle == reinterpret_cast<void*>(1)) return &device->null_stream;
  auto* const stream = static_cast<Stream*>(handle);
  if (driver.streams.count(stream)) return stream;
  Report("there is no stream %p", handle);
  error = kInvalidHandle;
  return nullptr;
}

Event* Call::EventOf(void* handle) {
  auto* const event = static_cast<Event*>(handle);
  if (driver.events.count(event)) return event;
  Report("there is no event %p", handle);
  error = kInvalidHandle;
  return nullptr;
}

int Call::Add(Stream* stream, Task task) {
  task.device = stream->device;
  if (Capture* const capture = stream->capture.get()) {
    if (capture->broken) return kCaptureInvalidated;
    std::vector<Node>& nodes = capture->graph->nodes;
    nodes.push_back({std::move(task), stream->nodes});
    stream->nodes = {nodes.size() - 1};
    return kSuccess;
  }
  Device& of = *driver.devices[static_cast<size_t>(stream->device)];
  std::vector<MarkPointer> after = {stream->last};
  // The null stream waits for all streams that are not told to ignore it, and they for it.
  if (stream == &of.null_stream) {
    for (Stream* other : of.streams) {
      if (!other->blocking) continue;
      if (other->capture) {
        other->capture->broken = true;
        return kCaptureImplicit;
      }
      after.push_back(other->last);
    }
  } else if (stream->blocking) {
    after.push_back(of.null_stream.last);
  }
  stream->last = Submit(std::move(task), after);
  return kSuccess;
}

bool Call::Forbidden() {
  for (Capture* capture : driver.captures) {
    const bool here = capture->thread == reinterpret_cast<void*>(pthread_self());
    if (capture->mode == kRelaxed || (capture->mode == kThreadLocal && !here)) continue;
    capture->broken = true;
    error = kCaptureUnsupported;
    return true;
  }
  return false;
}

bool Reaches(const Device& device, const Allocation& allocation) {
  if (allocation.kind == Kind::kVirtual || allocation.kind == Kind::kMulticast) return allocation.access >> device.index & 1;
  return allocation.kind != Kind::kDevice || allocation.device == device.index || device.peers.count(allocation.device) > 0;
}

}  // namespace cuda_double

using namespace cuda_double;

DRIVER_API cuInit(unsigned flags) {
  CALL(cuInit, kNothing);
  if (flags != 0) return kInvalidValue;
  const int count = SettingsNow().devices;
  if (count == 0) return kNoDevice;
  for (int d = static_cast<int>(call.driver.devices.size()); d < count; d++) {
    call.driver.devices.push_back(std::make_unique<Device>());
    call.driver.devices.back()->index = call.driver.devices.back()->null_stream.device = d;
  }
  call.driver.initialised = true;
  return kSuccess;
}

DRIVER_API cuDriverGetVersion(int* version) {
  if (const int fault = Entered("cuDriverGetVersion")) return fault;
  *version = SettingsNow().version;
  return kSuccess;
}

DRIVER_API cuDeviceGetCount(int* count) {
  CALL(cuDeviceGetCount, kInit);
  *count = static_cast<int>(call.driver.devices.size());
  return kSuccess;
}

DRIVER_API cuDeviceGet(int* device, int ordinal) {
  CALL(cuDeviceGet, kInit);
  if (ordinal < 0 || static_cast<size_t>(ordinal) >= call.driver.devices.size()) return kInvalidDevice;
  *device = ordinal;
  return kSuccess;
}

#define KNOWN_DEVICE(device) \
  if ((device) < 0 || static_cast<size_t>(device) >= call.driver.devices.size()) return kInvalidDevice

DRIVER_API cuDeviceGetName(char* name, int length, int device) {
  CALL(cuDeviceGetName, kInit);
  KNOWN_DEVICE(device);
  std::snprintf(name, static_cast<size_t>(length), "Emulated CUDA device");
  return kSuccess;
}

DRIVER_API cuDeviceGetUuid_v2(Uuid* uuid, int device) {
  CALL(cuDeviceGetUuid_v2, kInit);
  KNOWN_DEVICE(device);
  std::memcpy(uuid, "emulated device", 16);
  uuid->bytes[15] = static_cast<char>(SettingsNow().uuid + device);
  return kSuccess;
}

DRIVER_API cuDeviceGetUuid(Uuid* uuid, int device) { return cuDeviceGetUuid_v2(uuid, device); }

DRIVER_API cuDeviceTotalMem_v2(size_t* bytes, int device) {
  CALL(cuDeviceTotalMem_v2, kInit);
  KNOWN_DEVICE(device);
  *bytes = SettingsNow().memory;
  return kSuccess;
}

DRIVER_API cuDeviceGetAttribute(int* value, int attribute, int device) {
  CALL(cuDeviceGetAttribute, kInit);
  KNOWN_DEVICE(device);
  const Settings settings = SettingsNow();
  switch (attribute) {
    case 1: *value = 1024; break;                           // threads of a block
    case 2: case 3: *value = 1024; break;                   // its x and y
    case 4: *value = 64; break;                             // its z
    case 5: *value = 2147483647; break;                     // blocks of a grid: x
    case 6: case 7: *value = 65535; break;                  // y and z
    case 8: *value = 48 << 10; break;                       // shared memory of a block
    case 10: *value = 32; break;                            // threads of a warp
    case 12: *value = 65536; break;                         // registers of a block
    case 13: *value = 1'000'000; break;                     // clock, kHz
    case 15: case 19: case 31: *value = 1; break;           // copies beside kernels, host memory mapped, kernels side by side
    case 16: *value = settings.multiprocessors; break;
    case 18: case 20: *value = 0; break;                    // integrated, compute mode
    case 33: *value = device + 1; break;                    // PCI bus
    case 34: case 50: *value = 0; break;                    // PCI device and domain
    case 36: *value = 1'000'000; break;                     // memory clock, kHz
    case 37: *value = 512; break;                           // memory bus, bits
    case 38: *value = 4 << 20; break;                       // L2, bytes
    case 39: *value = 2048; break;                          // threads of a multiprocessor
    case 40: *value = 1; break;                             // copy engines
    case 41: *value = 1; break;                             // unified addresses
    case 75: *value = settings.capability / 10; break;
    case 76: *value = settings.capability % 10; break;
    case 81: *value = 228 << 10; break;                     // shared memory of a multiprocessor
    case 88: *value = 0; break;                             // pageable memory access
    case 92: case 122: *value = 1; break;                   // memory operations of streams
    case 95: *value = 1; break;                             // cooperative launches
    case 97: *value = 227 << 10; break;                     // shared memory of a block, where asked for
    case 106: *value = 32; break;                           // blocks of a multiprocessor
    case 111: *value = 1 << 10; break;                      // shared memory that each block costs beside its own
    case 128: *value = settings.fabric != 0; break;         // a fabric's handles
    case 132: *value = settings.multicast; break;           // multicast
    default: Report("attribute %d of a device is not emulated", attribute); return kInvalidValue;
  }
  return kSuccess;
}

DRIVER_API cuDeviceCanAccessPeer(int* can, int device, int peer) {
  CALL(cuDeviceCanAccessPeer, kInit);
  KNOWN_DEVICE(device);
  KNOWN_DEVICE(peer);
  *can = device != peer && SettingsNow().peers;
  return kSuccess;
}

DRIVER_API cuDevicePrimaryCtxRetain(void** context, int device) {
  CALL(cuDevicePrimaryCtxRetain, kInit);
  KNOWN_DEVICE(device);
  Device& of = *call.driver.devices[static_cast<size_t>(device)];
  of.uses++;
  *context = &of;
  return kSuccess;
}

namespace {
/** With nobody left who uses it: everything of the context is gone. */
void Destroy(Call& call, Device& device) {
  WaitForAll(call.lock, device.index);
  for (Stream* stream : device.streams) {
    call.driver.streams.erase(stream);
    delete stream;
    CountUp(kStreams, -1);
  }
  for (Event* event : device.events) {
    call.driver.events.erase(event);
    delete event;
    CountUp(kEvents, -1);
  }
  device.streams.clear();
  device.events.clear();
  device.peers.clear();
  device.null_stream.last = nullptr;
  FreeAllOf(device.index);
  Restore(device.index);
}
}  // namespace

DRIVER_API cuDevicePrimaryCtxRelease_v2(int device) {
  CALL(cuDevicePrimaryCtxRelease_v2, kInit);
  KNOWN_DEVICE(device);
  Device& of = *call.driver.devices[static_cast<size_t>(device)];
  if (of.uses == 0) return kInvalidContext;
  if (--of.uses == 0) Destroy(call, of);
  return kSuccess;
}

DRIVER_API cuDevicePrimaryCtxReset_v2(int device) {
  CALL(cuDevicePrimaryCtxReset_v2, kInit);
  KNOWN_DEVICE(device);
  Destroy(call, *call.driver.devices[static_cast<size_t>(device)]);
  return kSuccess;
}

DRIVER_API cuDevicePrimaryCtxSetFlags_v2(int device, unsigned) {
  CALL(cuDevicePrimaryCtxSetFlags_v2, kInit);
  KNOWN_DEVICE(device);
  return kSuccess;
}

DRIVER_API cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
  CALL(cuDevicePrimaryCtxGetState, kInit);
  KNOWN_DEVICE(device);
  *flags = 0;
  *active = call.driver.devices[static_cast<size_t>(device)]->uses > 0;
  return kSuccess;
}

DRIVER_API cuCtxSetCurrent(void* context) {
  CALL(cuCtxSetCurrent, kInit);
  if (context && static_cast<Device*>(context)->uses == 0) return kInvalidContext;
  SetCurrentDevice(context ? static_cast<Device*>(context)->index : -1);
  return kSuccess;
}

DRIVER_API cuCtxGetCurrent(void** context) {
  CALL(cuCtxGetCurrent, kInit);
  *context = CurrentDevice() < 0 ? nullptr : call.driver.devices[static_cast<size_t>(CurrentDevice())].get();
  return kSuccess;
}

DRIVER_API cuCtxGetDevice(int* device) {
  CALL(cuCtxGetDevice, kInit);
  if (CurrentDevice() < 0) return kInvalidContext;
  *device = CurrentDevice();
  return kSuccess;
}

DRIVER_API cuCtxSynchronize() {
  CALL(cuCtxSynchronize, kContext);
  if (call.Forbidden()) return call.error;
  WaitForAll(call.lock, call.device->index);
  return LostTo(call.device->index);
}

DRIVER_API cuCtxEnablePeerAccess(void* peer, unsigned flags) {
  CALL(cuCtxEnablePeerAccess, kContext);
  const auto* const other = static_cast<Device*>(peer);
  if (flags != 0 || !other) return kInvalidValue;
  if (other->uses == 0 || other == call.device) return kInvalidContext;
  if (!SettingsNow().peers) return kPeerAccessUnsupported;
  return call.device->peers.insert(other->index).second ? kSuccess : kPeerAccessAlreadyEnabled;
}

DRIVER_API cuCtxDisablePeerAccess(void* peer) {
  CALL(cuCtxDisablePeerAccess, kContext);
  return call.device->peers.erase(static_cast<Device*>(peer)->index) ? kSuccess : kPeerAccessNotEnabled;
}

/** By the name that headers have; the functions that have a number behind their names are meant first, as they are by the headers. */
DRIVER_API cuGetProcAddress_v2(const char* symbol, void** function, int, uint64_t, int* status) {
  CALL(cuGetProcAddress_v2, kNothing);
  *function = nullptr;
  for (const char* end : {"_v2", ""}) {
    if (!*function) *function = dlsym(RTLD_DEFAULT, (std::string(symbol) + end).c_str());
  }
  if (status) *status = *function ? 0 : 1;
  return *function ? kSuccess : kNotFound;
}
