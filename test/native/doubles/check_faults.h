// Checks of the double: errors lose a device, what is planted comes, and who touches what is not theirs is found.
#pragma once
#include "check.h"

#include <signal.h>
#include <sys/wait.h>

namespace check {

using namespace cuda_double;

/** Errors of kernels lose their device, and no other. */
inline void Lost(const char* how) {
  Begin();
  void *const stream = NewStream(), *const second = NewStream();
  void* const event = NewEvent();
  const DevicePointer words = NewMemory(400), never = NewMemory(4);
  const std::string what = how;
  int code = kIllegalAddress;
  bool at_once = false;
  // Work of another stream that would never end does.
  GOOD(cuStreamWaitValue32_v2(second, never, 1, 1));
  GOOD(cuEventRecord(event, second));
  if (what == "outside") {
    GOOD(LaunchAdd(words, 1024, 1, stream));
  } else if (what == "misaligned") {
    GOOD(LaunchAdd(words + 2, 10, 1, stream));
    code = kMisalignedAddress;
  } else if (what == "freed") {
    GOOD(cuMemFree_v2(words));
    GOOD(LaunchAdd(words, 1, 1, stream));
  } else if (what == "used") {
    GOOD(cuMemsetD32Async(words, 0, 1, stream));
    GOOD(cuStreamSynchronize(stream));
    GOOD(cuStreamWaitValue32_v2(stream, words, 1, 0));
    GIVES(kIllegalAddress, cuMemFree_v2(words));
    at_once = true;
  } else if (what == "peer") {
    GOOD(cuCtxSetCurrent(contexts[1]));
    const DevicePointer theirs = NewMemory(400);
    GOOD(cuCtxSetCurrent(contexts[0]));
    GOOD(cuMemcpyAsync(words, theirs, 4, stream));  // copies need no access
    GOOD(cuStreamSynchronize(stream));
    GIVES(kInvalidValue, cuMemsetD32Async(theirs, 0, 1, stream));
    GIVES(kIllegalAddress, LaunchAdd(theirs, 1, 1, stream));
    at_once = true;
  } else if (what == "diverged") {
    GOOD(Launch("double_diverge", 1, 64, stream, words));
    code = kLaunchFailed;
  } else if (what == "planted") {
    GOOD(cuMemsetD32Async(words, 1, 1, stream));
    GOOD(cuStreamSynchronize(stream));
    Plant("lose 0 2 719");
    (void)LaunchAdd(words, 100, 1, stream);
    (void)LaunchAdd(words, 100, 1, stream);  // may hear of it already
    code = kLaunchFailed;
  }
  if (!at_once) {
    GIVES(code, cuEventSynchronize(event));
    GIVES(code, cuStreamSynchronize(stream));
  }
  DevicePointer more;
  GIVES(code, cuMemAlloc_v2(&more, 4));
  GIVES(code, LaunchAdd(words, 1, 1, stream));
  GIVES(code, cuStreamQuery(stream));
  GOOD(cuCtxSetCurrent(contexts[1]));
  void* const other = NewStream();
  const DevicePointer theirs = NewMemory(4);
  GOOD(cuMemsetD32Async(theirs, 1, 1, other));
  GOOD(LaunchAdd(theirs, 1, 1, other));
  TRUE(Words(theirs, 1, other)[0] == 2);
  // Whoever gives the context back and takes it anew has a working device.
  GOOD(cuDevicePrimaryCtxRelease_v2(0));
  GOOD(cuDevicePrimaryCtxRetain(&contexts[0], 0));
  GOOD(cuCtxSetCurrent(contexts[0]));
  TRUE(NewMemory(4) != 0);
}

/** What tests plant. */
inline void Faults() {
  Begin();
  DevicePointer words;
  Plant("fail cuMemAlloc 2 2; fail cuStreamSynchronize 1 719");
  GOOD(cuMemAlloc_v2(&words, 16));
  GIVES(kOutOfMemory, cuMemAlloc_v2(&words, 16));
  GOOD(cuMemAlloc_v2(&words, 16));
  void* const stream = NewStream();
  GIVES(kLaunchFailed, cuStreamSynchronize(stream));
  GOOD(cuStreamSynchronize(stream));
  Plant("memory 1000000");
  size_t free, total;
  GOOD(cuMemGetInfo_v2(&free, &total));
  TRUE(total == 1000000 && free == total - 32);
  GIVES(kOutOfMemory, cuMemAlloc_v2(&words, 999990));
  GOOD(cuMemAlloc_v2(&words, 900000));
  GIVES(kOutOfMemory, cuMemAlloc_v2(&words, 100000));
  GOOD(cuMemFree_v2(words));
  GOOD(cuMemAlloc_v2(&words, 100000));
  Plant("delay 0 30000");
  void *const start = NewEvent(0), *const end = NewEvent(0);
  GOOD(cuMemsetD32Async(words, 0, 1, stream));
  GOOD(cuEventRecord(start, stream));
  GOOD(LaunchAdd(words, 1, 1, stream));
  GOOD(cuEventRecord(end, stream));
  GOOD(cuEventSynchronize(end));
  float took;
  GOOD(cuEventElapsedTime(&took, start, end));
  TRUE(took >= 29);
}

/** Bytes behind the end that alignment leaves are looked at when memory is freed; new memory holds no numbers. */
inline void Slack() {
  Begin();
  void* const stream = NewStream();
  const DevicePointer words = NewMemory(8), numbers = NewMemory(8);
  GOOD(cuMemsetD32Async(words, 0, 2, stream));
  GOOD(LaunchAdd(words, 3, 1, stream));
  GOOD(cuStreamSynchronize(stream));
  GOOD(cuMemFree_v2(words));
  float number;
  const unsigned bits = Words(numbers, 2, stream)[1];
  std::memcpy(&number, &bits, 4);
  TRUE(number != number);
}

/** The host, which cannot read what a device's memory holds, does not survive trying. */
inline void HostTouches() {
  Begin();
  void* const stream = NewStream();
  const DevicePointer words = NewMemory(8);
  void* pinned;
  GOOD(cuMemHostAlloc(&pinned, 8, 1));
  GOOD(cuMemsetD32Async(words, 5, 2, stream));
  GOOD(cuMemcpyAsync(At(pinned), words, 8, stream));
  GOOD(cuStreamSynchronize(stream));
  TRUE(*static_cast<volatile unsigned*>(pinned) == 5);
  usleep(20000);  // memory is not shut all the time
  TRUE(Words(words, 1, stream)[0] == 5);
  const pid_t child = fork();
  if (child == 0) _exit(static_cast<int>(*reinterpret_cast<volatile unsigned*>(words)));
  int status = 0;
  TRUE(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

inline void NoDevices() {
  GIVES(kNoDevice, cuInit(0));
  int version;
  GOOD(cuDriverGetVersion(&version));
  TRUE(version == 11040);
  GIVES(kNotInitialized, cuDeviceGetCount(&version));
}

}  // namespace check
