// Numbers and shapes of CUDA's driver API, as its manual gives them.
#pragma once
#include <cstddef>
#include <cstdint>

namespace cuda_double {

enum Result : int {
  kSuccess = 0,
  kInvalidValue = 1,
  kOutOfMemory = 2,
  kNotInitialized = 3,
  kNoDevice = 100,
  kInvalidDevice = 101,
  kInvalidImage = 200,
  kInvalidContext = 201,
  kPeerAccessUnsupported = 217,
  kInvalidHandle = 400,
  kNotFound = 500,
  kNotReady = 600,
  kIllegalAddress = 700,
  kLaunchOutOfResources = 701,
  kPeerAccessAlreadyEnabled = 704,
  kPeerAccessNotEnabled = 705,
  kHostMemoryAlreadyRegistered = 712,
  kContextIsDestroyed = 709,
  kAssert = 710,
  kMisalignedAddress = 716,
  kLaunchFailed = 719,
  kCooperativeTooLarge = 720,
  kNotPermitted = 800,
  kNotSupported = 801,
  kCaptureUnsupported = 900,
  kCaptureInvalidated = 901,
  kCaptureUnmatched = 903,
  kCaptureUnjoined = 904,
  kCaptureIsolation = 905,
  kCaptureImplicit = 906,
  kCaptureWrongThread = 908,
};

using DevicePointer = unsigned long long;

struct Uuid {
  char bytes[16];
};

/** Of memory, opened by another process. */
struct IpcHandle {
  char reserved[64];
};

/** Where memory lies: of type 1, on a device. */
struct MemoryLocation {
  int type, device;
};
struct MemoryProperties {
  int type, handle_types;
  MemoryLocation location;
  void* security;
  unsigned char flags[8];
};
struct MemoryAccess {
  MemoryLocation location;
  int flags;
};
struct MulticastProperties {
  unsigned devices;
  size_t bytes;
  unsigned long long handle_types, flags;
};

struct LaunchConfig {
  unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
  void* stream;
  void* attributes;
  unsigned attribute_count;
};

enum CaptureStatus : int { kNoCapture = 0, kCapturing = 1, kCaptureBroken = 2 };
enum CaptureMode : int { kGlobal = 0, kThreadLocal = 1, kRelaxed = 2 };

}  // namespace cuda_double
