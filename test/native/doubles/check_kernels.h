// Checks of the double: kernels that wait for each other, of one process and of two, and what cannot be launched.
#pragma once
#include "check.h"

#include <sys/wait.h>

namespace check {

using namespace cuda_double;

/** Kernels of two streams that wait for each other, and shared memory and barriers. */
inline void Kernels() {
  Begin();
  GOOD(cuCtxEnablePeerAccess(contexts[1], 0));
  const DevicePointer words = NewMemory(16);
  void* const first = NewStream();
  GOOD(cuMemsetD32Async(words, 0, 4, first));
  GOOD(cuStreamSynchronize(first));
  GOOD(cuCtxSetCurrent(contexts[1]));
  GOOD(cuCtxEnablePeerAccess(contexts[0], 0));
  void* const second = NewStream();
  GOOD(Launch("double_hand_over", 2, 64, second, HandArgs{words + 8, words, 1000, 0}));
  GOOD(cuCtxSetCurrent(contexts[0]));
  GIVES(kNotReady, cuStreamQuery(second));
  GOOD(Launch("double_hand_over", 2, 64, first, HandArgs{words, words + 8, 1000, 1}));
  const std::vector<unsigned> ended = Words(words, 4, first);
  TRUE(ended[2] == 1999);
  GOOD(cuStreamSynchronize(second));
  TRUE(Words(words, 4, first)[0] == 2000);

  constexpr unsigned kCount = 1000, kBlocks = 8;
  std::vector<float> numbers(kCount), sums(kBlocks), wanted(kBlocks);
  for (unsigned i = 0; i < kCount; i++) wanted[i / 128] += numbers[i] = static_cast<float>(i % 37);
  const DevicePointer from = NewMemory(4 * kCount), to = NewMemory(4 * kBlocks);
  struct {
    DevicePointer from, to;
    unsigned count;
  } const args{from, to, kCount};
  GOOD(cuMemcpyAsync(from, At(numbers.data()), 4 * kCount, first));
  GOOD(Launch("double_sum", kBlocks, 128, first, args, 4 * 128));
  GOOD(cuMemcpyAsync(At(sums.data()), to, 4 * kBlocks, first));
  GOOD(cuStreamSynchronize(first));
  TRUE(sums == wanted);
  GIVES(kInvalidValue, Launch("double_sum", 0, 128, first, args, 4 * 128));
  GIVES(kInvalidValue, Launch("double_sum", 1, 2048, first, args, 4 * 128));
  GIVES(kLaunchOutOfResources, Launch("double_sum", 1, 512, first, args, 4 * 512));
  GIVES(kInvalidValue, Launch("double_sum", 1, 128, first, args, 64 << 10));
  void* function;
  GOOD(cuModuleGetFunction(&function, module, "double_sum"));
  GOOD(cuFuncSetAttribute(function, 8, 64 << 10));
  GIVES(kInvalidValue, cuFuncSetAttribute(function, 8, 256 << 10));
  GIVES(kNotFound, cuModuleGetFunction(&function, module, "no_such_kernel"));
  void* none;
  GIVES(kInvalidImage, cuModuleLoadData(&none, "\x7f" "ELF"));
}

/** Memory of one process in another, and kernels of both that wait for each other. */
inline void Processes(const char* library, const char* handle_text) {
  if (handle_text) usleep(1000);
  Begin();
  void* const stream = NewStream();
  constexpr uint64_t kRounds = 200;
  if (handle_text) {
    IpcHandle handle;
    for (size_t i = 0; i < sizeof handle; i++) {
      handle.reserved[i] = static_cast<char>(std::stoi(std::string(handle_text + 2 * i, 2), nullptr, 16));
    }
    DevicePointer words, again;
    GIVES(kInvalidValue, cuIpcOpenMemHandle_v2(&words, handle, 0));
    GOOD(cuIpcOpenMemHandle_v2(&words, handle, 1));
    GOOD(cuIpcOpenMemHandle_v2(&again, handle, 1));
    TRUE(words == again);
    TRUE(Words(words + 16, 1, stream)[0] == 77);
    GOOD(Launch("double_hand_over", 1, 32, stream, HandArgs{words + 8, words, kRounds, 0}));
    GOOD(cuMemsetD32Async(words + 16, 78, 1, stream));
    GOOD(cuStreamSynchronize(stream));
    GOOD(cuIpcCloseMemHandle(words));
    GOOD(cuIpcCloseMemHandle(words));
    GIVES(kInvalidValue, cuIpcCloseMemHandle(words));
    return;
  }
  const DevicePointer words = NewMemory(20);
  GOOD(cuMemsetD32Async(words, 0, 4, stream));
  GOOD(cuMemsetD32Async(words + 16, 77, 1, stream));
  GOOD(cuStreamSynchronize(stream));
  IpcHandle handle;
  GOOD(cuIpcGetMemHandle(&handle, words));
  DevicePointer own;
  GIVES(kInvalidContext, cuIpcOpenMemHandle_v2(&own, handle, 1));
  std::string text;
  for (const char byte : handle.reserved) {
    char digits[3];
    std::snprintf(digits, sizeof digits, "%02x", static_cast<unsigned char>(byte));
    text += digits;
  }
  const pid_t child = fork();
  if (child == 0) {
    execl("/proc/self/exe", "check", library, "processes", "0", text.c_str(), nullptr);
    _exit(2);
  }
  GOOD(Launch("double_hand_over", 1, 32, stream, HandArgs{words, words + 8, kRounds, 1}));
  GOOD(cuStreamSynchronize(stream));
  int status = 0;
  TRUE(waitpid(child, &status, 0) == child && status == 0);
  TRUE(Words(words + 16, 1, stream)[0] == 78);
}

}  // namespace check
