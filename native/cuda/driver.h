// CUDA's driver, found when it is asked for: its functions, as this addon declares them itself, and its errors. Nothing of CUDA is linked.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace rankmesh::cuda {

using Result = int;
using DeviceHandle = int;
using DevicePointer = unsigned long long;
using ContextHandle = struct CUctx_st*;
using ModuleHandle = struct CUmod_st*;
using FunctionHandle = struct CUfunc_st*;
using StreamHandle = struct CUstream_st*;
using EventHandle = struct CUevent_st*;
using GraphHandle = struct CUgraph_st*;
using GraphExecHandle = struct CUgraphExec_st*;

/** Memory of a device, or a multicast, that has no address yet. */
using MemoryHandle = unsigned long long;

struct Uuid {
  unsigned char bytes[16];
};
struct IpcHandle {
  unsigned char bytes[64];
};
/** Of memory, for machines that NVLink joins. */
struct FabricHandle {
  unsigned char bytes[64];
};
/** Where memory lies: `type` is kOnDevice. */
struct MemoryLocation {
  int type;
  int device;
};
struct MemoryProperties {
  int type;
  int handle_types;
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
  unsigned long long handle_types;
  unsigned long long flags;
};
static_assert(sizeof(MemoryProperties) == 32 && sizeof(MemoryAccess) == 12 && sizeof(MulticastProperties) == 32);

constexpr Result kSuccess = 0;
constexpr Result kOutOfMemory = 2;
constexpr Result kNoDevice = 100;
constexpr Result kNotFound = 500;
constexpr Result kNotReady = 600;
constexpr Result kPeerAccessAlreadyEnabled = 704;
constexpr Result kNotSupported = 801;

/** The numbers of CUdevice_attribute that are asked for. */
constexpr int kMultiprocessorCount = 16;
constexpr int kUnifiedAddressing = 41;
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr int kFabricSupported = 128;
constexpr int kMulticastSupported = 132;

constexpr unsigned kStreamNonBlocking = 1;
constexpr unsigned kEventTimed = 0;
constexpr unsigned kEventUntimed = 2;
/** Pinned memory that all devices may use. */
constexpr unsigned kHostPortable = 1;
/** Pinned memory that kernels use as well. */
constexpr unsigned kHostDeviceMap = 2;
constexpr unsigned kIpcLazyPeerAccess = 1;
constexpr int kMaxDynamicSharedBytes = 8;
/** The architecture that a kernel was compiled to PTX for, such as 90. */
constexpr int kPtxVersion = 5;
constexpr int kOnDevice = 1;
constexpr int kPinnedMemory = 1;
/** What handles of memory may become for other processes: file descriptors, on a machine; and data, on machines that NVLink joins. */
constexpr int kFileDescriptors = 1;
constexpr int kFabric = 8;
constexpr int kReadWrite = 3;
constexpr int kLeastGranularity = 0;
/** Calls that others make meanwhile are not looked at. */
constexpr int kCaptureRelaxed = 2;

/** Name, and parameters. */
#define RANKMESH_CUDA_FUNCTIONS(F)                                                                                                                  \
  F(cuInit, (unsigned flags))                                                                                                                      \
  F(cuDriverGetVersion, (int* version))                                                                                                            \
  F(cuGetErrorName, (Result result, const char** name))                                                                                            \
  F(cuGetErrorString, (Result result, const char** text))                                                                                          \
  F(cuDeviceGetCount, (int* count))                                                                                                                \
  F(cuDeviceGet, (DeviceHandle * device, int index))                                                                                               \
  F(cuDeviceGetName, (char* name, int length, DeviceHandle device))                                                                                \
  F(cuDeviceGetUuid_v2, (Uuid * uuid, DeviceHandle device))                                                                                        \
  F(cuDeviceTotalMem_v2, (size_t * bytes, DeviceHandle device))                                                                                    \
  F(cuDeviceGetAttribute, (int* value, int attribute, DeviceHandle device))                                                                        \
  F(cuDeviceCanAccessPeer, (int* can, DeviceHandle device, DeviceHandle peer))                                                                     \
  F(cuDevicePrimaryCtxRetain, (ContextHandle * context, DeviceHandle device))                                                                      \
  F(cuDevicePrimaryCtxRelease_v2, (DeviceHandle device))                                                                                           \
  F(cuDevicePrimaryCtxReset_v2, (DeviceHandle device))                                                                                             \
  F(cuCtxSetCurrent, (ContextHandle context))                                                                                                      \
  F(cuCtxEnablePeerAccess, (ContextHandle peer, unsigned flags))                                                                                   \
  F(cuModuleLoadData, (ModuleHandle * module, const void* image))                                                                                  \
  F(cuModuleUnload, (ModuleHandle module))                                                                                                         \
  F(cuModuleGetFunction, (FunctionHandle * function, ModuleHandle module, const char* name))                                                       \
  F(cuFuncSetAttribute, (FunctionHandle function, int attribute, int value))                                                                       \
  F(cuMemGetInfo_v2, (size_t * free, size_t * total))                                                                                              \
  F(cuMemAlloc_v2, (DevicePointer * pointer, size_t bytes))                                                                                        \
  F(cuMemFree_v2, (DevicePointer pointer))                                                                                                         \
  F(cuMemHostAlloc, (void** pointer, size_t bytes, unsigned flags))                                                                                \
  F(cuMemFreeHost, (void* pointer))                                                                                                                \
  F(cuMemHostRegister_v2, (void* pointer, size_t bytes, unsigned flags))                                                                           \
  F(cuMemHostUnregister, (void* pointer))                                                                                                          \
  F(cuMemHostGetDevicePointer_v2, (DevicePointer * device_pointer, void* pointer, unsigned flags))                                                 \
  F(cuMemcpyAsync, (DevicePointer to, DevicePointer from, size_t bytes, StreamHandle stream))                                                      \
  F(cuMemsetD8Async, (DevicePointer to, unsigned char value, size_t bytes, StreamHandle stream))                                                   \
  F(cuIpcGetMemHandle, (IpcHandle * handle, DevicePointer pointer))                                                                                \
  F(cuIpcOpenMemHandle_v2, (DevicePointer * pointer, IpcHandle handle, unsigned flags))                                                            \
  F(cuIpcCloseMemHandle, (DevicePointer pointer))                                                                                                  \
  F(cuStreamCreate, (StreamHandle * stream, unsigned flags))                                                                                       \
  F(cuStreamDestroy_v2, (StreamHandle stream))                                                                                                     \
  F(cuStreamWaitEvent, (StreamHandle stream, EventHandle event, unsigned flags))                                                                   \
  F(cuStreamSynchronize, (StreamHandle stream))                                                                                                    \
  F(cuStreamBeginCapture_v2, (StreamHandle stream, int mode))                                                                                      \
  F(cuStreamEndCapture, (StreamHandle stream, GraphHandle* graph))                                                                                 \
  F(cuEventCreate, (EventHandle * event, unsigned flags))                                                                                          \
  F(cuEventDestroy_v2, (EventHandle event))                                                                                                        \
  F(cuEventRecord, (EventHandle event, StreamHandle stream))                                                                                       \
  F(cuEventQuery, (EventHandle event))                                                                                                             \
  F(cuEventSynchronize, (EventHandle event))                                                                                                       \
  F(cuEventElapsedTime, (float* milliseconds, EventHandle start, EventHandle end))                                                                 \
  F(cuLaunchKernel, (FunctionHandle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,               \
                     unsigned block_z, unsigned shared_bytes, StreamHandle stream, void** parameters, void** extra))                               \
  F(cuGraphInstantiateWithFlags, (GraphExecHandle * exec, GraphHandle graph, unsigned long long flags))                                            \
  F(cuGraphLaunch, (GraphExecHandle exec, StreamHandle stream))                                                                                    \
  F(cuGraphExecDestroy, (GraphExecHandle exec))                                                                                                    \
  F(cuGraphDestroy, (GraphHandle graph))

/** Of drivers that know multicasts; others have some of these or none. */
#define RANKMESH_CUDA_MULTICAST_FUNCTIONS(F)                                                                                                        \
  F(cuFuncGetAttribute, (int* value, int attribute, FunctionHandle function))                                                                      \
  F(cuMemCreate, (MemoryHandle * handle, size_t bytes, const MemoryProperties* properties, unsigned long long flags))                              \
  F(cuMemGetAllocationGranularity, (size_t * bytes, const MemoryProperties* properties, int option))                                               \
  F(cuMemRelease, (MemoryHandle handle))                                                                                                           \
  F(cuMemAddressReserve, (DevicePointer * pointer, size_t bytes, size_t alignment, DevicePointer at, unsigned long long flags))                    \
  F(cuMemAddressFree, (DevicePointer pointer, size_t bytes))                                                                                       \
  F(cuMemMap, (DevicePointer pointer, size_t bytes, size_t offset, MemoryHandle handle, unsigned long long flags))                                 \
  F(cuMemUnmap, (DevicePointer pointer, size_t bytes))                                                                                             \
  F(cuMemSetAccess, (DevicePointer pointer, size_t bytes, const MemoryAccess* access, size_t count))                                               \
  F(cuMemExportToShareableHandle, (void* shareable, MemoryHandle handle, int type, unsigned long long flags))                                      \
  F(cuMemImportFromShareableHandle, (MemoryHandle * handle, void* shareable, int type))                                                            \
  F(cuMulticastGetGranularity, (size_t * bytes, const MulticastProperties* properties, int option))                                                \
  F(cuMulticastCreate, (MemoryHandle * multicast, const MulticastProperties* properties))                                                          \
  F(cuMulticastAddDevice, (MemoryHandle multicast, DeviceHandle device))                                                                           \
  F(cuMulticastBindMem, (MemoryHandle multicast, size_t at, MemoryHandle memory, size_t offset, size_t bytes, unsigned long long flags))           \
  F(cuMulticastUnbind, (MemoryHandle multicast, DeviceHandle device, size_t at, size_t bytes))

/** A call that failed, with the driver's name and text for it. */
struct CudaError : std::runtime_error {
  CudaError(Result code, const std::string& text) : std::runtime_error(text), result(code) {}
  /** Whether the device's context is of no more use: all calls give this from now on. */
  bool Lasting() const;
  const Result result;
};

/** There is no CUDA to be used here, and why. */
struct Unavailable : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Driver {
 public:
  /**
   * The driver that RANKMESH_CUDA_PATH names, or libcuda.so.1: loaded once and initialised, never unloaded. Throws Unavailable where it is not
   * there, lacks functions, is older than 12.0 or sees no device.
   */
  static const Driver& Get();

  /** `what`: the call, in the error's text. Throws CudaError unless the result is kSuccess. */
  template <typename Text>
  void Check(Result result, const Text& what) const {
    if (result != kSuccess) Fail(result, what);
  }
  [[noreturn]] void Fail(Result result, const std::string& what) const;

  const std::string& path() const { return path_; }
  /** The first of the functions of multicasts that the driver lacks; empty where it has all. */
  const std::string& no_multicast() const { return no_multicast_; }
  /** 1000 * major + 10 * minor. */
  int version() const { return version_; }
  int devices() const { return devices_; }

#define RANKMESH_DECLARE(name, parameters) Result(*name) parameters = nullptr;
  RANKMESH_CUDA_FUNCTIONS(RANKMESH_DECLARE)
  RANKMESH_CUDA_MULTICAST_FUNCTIONS(RANKMESH_DECLARE)
#undef RANKMESH_DECLARE

 private:
  explicit Driver(std::string path);

  std::string path_;
  std::string no_multicast_;
  int version_ = 0;
  int devices_ = 0;
};

struct DeviceInfo {
  int index;
  std::string name;
  Uuid uuid;
  /** Major and minor. */
  int capability[2];
  size_t memory_bytes;
  int multiprocessors;

  /** As nvidia-smi prints it. */
  std::string UuidText() const;
};

DeviceInfo InfoOf(const Driver& driver, int index);

/** The file with the kernels that RANKMESH_CUDA_KERNELS names, or the one beside the addon. */
std::string KernelsPath();
/** What is in it, or, with `look`, nothing. Throws Unavailable where it is not there. */
std::string ReadKernels(bool look = false);

}  // namespace rankmesh::cuda
