// What checks of the driver's double are written with: its functions, and how a failure is told.
#pragma once
#include <dlfcn.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <string>
#include <vector>

#include "thread.h"
#include "types.h"

namespace check {

using cuda_double::DevicePointer;
using cuda_double::IpcHandle;
using cuda_double::MemoryAccess;
using cuda_double::MemoryProperties;
using cuda_double::MulticastProperties;

[[noreturn]] inline void Wrong(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vprintf(format, arguments);
  va_end(arguments);
  std::printf("\n");
  std::fflush(stdout);
  std::_Exit(1);
}

#define CHECK_FUNCTIONS(F)                                                                                                         \
  F(cuInit, (unsigned))                                                                                                           \
  F(cuDriverGetVersion, (int*))                                                                                                   \
  F(cuDeviceGetCount, (int*))                                                                                                     \
  F(cuDeviceCanAccessPeer, (int*, int, int))                                                                                      \
  F(cuDevicePrimaryCtxRetain, (void**, int))                                                                                      \
  F(cuDevicePrimaryCtxRelease_v2, (int))                                                                                          \
  F(cuCtxSetCurrent, (void*))                                                                                                     \
  F(cuCtxEnablePeerAccess, (void*, unsigned))                                                                                     \
  F(cuMemAlloc_v2, (DevicePointer*, size_t))                                                                                      \
  F(cuMemFree_v2, (DevicePointer))                                                                                                \
  F(cuMemGetInfo_v2, (size_t*, size_t*))                                                                                          \
  F(cuMemHostAlloc, (void**, size_t, unsigned))                                                                                   \
  F(cuMemFreeHost, (void*))                                                                                                       \
  F(cuMemcpyAsync, (DevicePointer, DevicePointer, size_t, void*))                                                                 \
  F(cuMemsetD8Async, (DevicePointer, unsigned char, size_t, void*))                                                               \
  F(cuMemsetD32Async, (DevicePointer, unsigned, size_t, void*))                                                                   \
  F(cuIpcGetMemHandle, (IpcHandle*, DevicePointer))                                                                               \
  F(cuIpcOpenMemHandle_v2, (DevicePointer*, IpcHandle, unsigned))                                                                 \
  F(cuIpcCloseMemHandle, (DevicePointer))                                                                                         \
  F(cuStreamCreate, (void**, unsigned))                                                                                           \
  F(cuStreamDestroy_v2, (void*))                                                                                                  \
  F(cuStreamQuery, (void*))                                                                                                       \
  F(cuStreamSynchronize, (void*))                                                                                                 \
  F(cuStreamWaitEvent, (void*, void*, unsigned))                                                                                  \
  F(cuStreamWriteValue32_v2, (void*, DevicePointer, unsigned, unsigned))                                                          \
  F(cuStreamWaitValue32_v2, (void*, DevicePointer, unsigned, unsigned))                                                           \
  F(cuStreamBeginCapture_v2, (void*, int))                                                                                        \
  F(cuStreamEndCapture, (void*, void**))                                                                                          \
  F(cuEventCreate, (void**, unsigned))                                                                                            \
  F(cuEventDestroy_v2, (void*))                                                                                                   \
  F(cuEventRecord, (void*, void*))                                                                                                \
  F(cuEventQuery, (void*))                                                                                                        \
  F(cuEventSynchronize, (void*))                                                                                                  \
  F(cuEventElapsedTime, (float*, void*, void*))                                                                                   \
  F(cuModuleLoadData, (void**, const void*))                                                                                      \
  F(cuModuleGetFunction, (void**, void*, const char*))                                                                            \
  F(cuFuncSetAttribute, (void*, int, int))                                                                                        \
  F(cuLaunchKernel, (void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**, void**))         \
  F(cuGraphInstantiateWithFlags, (void**, void*, unsigned long long))                                                             \
  F(cuGraphLaunch, (void*, void*))                                                                                                \
  F(cuGraphExecDestroy, (void*))                                                                                                  \
  F(cuGraphDestroy, (void*))                                                                                                      \
  F(cuDeviceGetAttribute, (int*, int, int))                                                                                       \
  F(cuMemCreate, (unsigned long long*, size_t, const MemoryProperties*, unsigned long long))                                      \
  F(cuMemRelease, (unsigned long long))                                                                                           \
  F(cuMemAddressReserve, (DevicePointer*, size_t, size_t, DevicePointer, unsigned long long))                                     \
  F(cuMemAddressFree, (DevicePointer, size_t))                                                                                    \
  F(cuMemMap, (DevicePointer, size_t, size_t, unsigned long long, unsigned long long))                                            \
  F(cuMemUnmap, (DevicePointer, size_t))                                                                                          \
  F(cuMemSetAccess, (DevicePointer, size_t, const MemoryAccess*, size_t))                                                         \
  F(cuMulticastGetGranularity, (size_t*, const MulticastProperties*, int))                                                        \
  F(cuMulticastCreate, (unsigned long long*, const MulticastProperties*))                                                         \
  F(cuMulticastAddDevice, (unsigned long long, int))                                                                              \
  F(cuMulticastBindMem, (unsigned long long, size_t, unsigned long long, size_t, size_t, unsigned long long))                     \
  F(cuMulticastUnbind, (unsigned long long, int, size_t, size_t))                                                                 \
  F(cuGetErrorString, (int, const char**))

#define CHECK_DECLARE(name, parameters) inline int(*name) parameters = nullptr;
CHECK_FUNCTIONS(CHECK_DECLARE)
#undef CHECK_DECLARE

inline void Load(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) Wrong("%s", dlerror());
#define CHECK_LOAD(name, parameters) \
  if (!(name = reinterpret_cast<int(*) parameters>(dlsym(library, #name)))) Wrong("%s is not there", #name);
  CHECK_FUNCTIONS(CHECK_LOAD)
#undef CHECK_LOAD
}

/** That a call gives what it should. */
#define GIVES(code, ...)                                                                                        \
  do {                                                                                                          \
    const int gave = (__VA_ARGS__);                                                                             \
    const int wanted_code = static_cast<int>(code);                                                             \
    if (gave != wanted_code) ::check::Wrong("line %d: " #__VA_ARGS__ " gives %d, not %d", __LINE__, gave, wanted_code); \
  } while (false)
#define GOOD(...) GIVES(0, __VA_ARGS__)
#define TRUE(...)                                                                      \
  do {                                                                                 \
    if (!(__VA_ARGS__)) ::check::Wrong("line %d: " #__VA_ARGS__ " is not so", __LINE__); \
  } while (false)

inline void* contexts[2];
inline void* module = nullptr;

/** Begins with two devices, the first one current. */
inline void Begin() {
  GOOD(cuInit(0));
  for (int d = 0; d < 2; d++) GOOD(cuDevicePrimaryCtxRetain(&contexts[d], d));
  GOOD(cuCtxSetCurrent(contexts[0]));
  GOOD(cuModuleLoadData(&module, "rankmesh double"));
}

inline void* NewStream(unsigned flags = 1) {
  void* stream;
  GOOD(cuStreamCreate(&stream, flags));
  return stream;
}

inline void* NewEvent(unsigned flags = 2) {
  void* event;
  GOOD(cuEventCreate(&event, flags));
  return event;
}

inline DevicePointer NewMemory(size_t bytes) {
  DevicePointer pointer;
  GOOD(cuMemAlloc_v2(&pointer, bytes));
  return pointer;
}

inline DevicePointer At(const void* host) { return reinterpret_cast<DevicePointer>(host); }

/** Words of a device as they are once a stream has come so far. */
inline std::vector<unsigned> Words(DevicePointer at, size_t count, void* stream) {
  std::vector<unsigned> words(count);
  GOOD(cuMemcpyAsync(At(words.data()), at, 4 * count, stream));
  GOOD(cuStreamSynchronize(stream));
  return words;
}

template <typename Args>
int Launch(const char* name, unsigned blocks, unsigned threads, void* stream, Args args, unsigned shared_bytes = 0) {
  void* function;
  if (const int error = cuModuleGetFunction(&function, module, name)) return error;
  void* parameters[] = {&args};
  return cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, shared_bytes, stream, parameters, nullptr);
}

struct AddArgs {
  DevicePointer words;
  unsigned count, value;
};
inline int LaunchAdd(DevicePointer words, unsigned count, unsigned value, void* stream) {
  return Launch("double_add", (count + 63) / 64, 64, stream, AddArgs{words, count, value});
}

struct HandArgs {
  DevicePointer mine, theirs;
  uint64_t rounds, first;
};

/** Changes the settings of the double while it runs, as test/support/cuda.ts does. */
inline void Plant(const std::string& settings) {
  static uint32_t generation = 0;
  std::fstream file(std::getenv("RANKMESH_CUDA_DOUBLE_CONTROL"), std::ios::in | std::ios::out | std::ios::binary);
  const auto length = static_cast<uint32_t>(settings.size());
  file.seekp(4).write(reinterpret_cast<const char*>(&length), 4).write(settings.data(), length).flush();
  generation++;
  file.seekp(0).write(reinterpret_cast<const char*>(&generation), 4).flush();
  TRUE(file.good());
}

}  // namespace check
