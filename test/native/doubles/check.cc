// Checks that the driver's double keeps CUDA's rules. Arguments: the library, what to check, a seed. Says `good` where all is as it should be.
#include "check_products.h"

#include <signal.h>
#include <sys/wait.h>

namespace {

using namespace check;
using namespace cuda_double;

const char* library = nullptr;
uint32_t seed = 0;

/** Random work on streams of two devices that wait for each other, against the same work done here. */
void Order() {
  Begin();
  emulation::Randomness random(seed);
  constexpr unsigned kStreams = 4, kWords = 200;
  GOOD(cuCtxEnablePeerAccess(contexts[1], 0));
  void *streams[kStreams], *events[kStreams];
  DevicePointer memory[kStreams];
  std::vector<unsigned> wanted[kStreams];
  // Two of each device; work that is handed from one to the other is ordered by events.
  for (unsigned s = 0; s < kStreams; s++) {
    GOOD(cuCtxSetCurrent(contexts[s % 2]));
    streams[s] = NewStream();
    events[s] = NewEvent();
    memory[s] = NewMemory(4 * kWords);
    wanted[s].assign(kWords, s);
    GOOD(cuMemsetD32Async(memory[s], s, kWords, streams[s]));
  }
  for (int step = 0; step < 300; step++) {
    const unsigned s = random.Below(kStreams), other = random.Below(kStreams), value = random();
    GOOD(cuCtxSetCurrent(contexts[s % 2]));
    switch (random.Below(4)) {
      case 0:
        GOOD(LaunchAdd(memory[s], kWords, value, streams[s]));
        for (unsigned& word : wanted[s]) word += value;
        break;
      case 1:
        GOOD(cuMemsetD8Async(memory[s] + 4, static_cast<unsigned char>(value), 8, streams[s]));
        wanted[s][1] = wanted[s][2] = (value & 255) * 0x01010101u;
        break;
      case 2: {
        GOOD(cuMemcpyAsync(memory[s] + 4 * 50, memory[s], 4 * 50, streams[s]));
        std::copy_n(wanted[s].begin(), 50, wanted[s].begin() + 50);
        break;
      }
      default: {
        // From another stream's memory: after what that one has done, and before what it does next.
        if (other == s) break;
        GOOD(cuCtxSetCurrent(contexts[other % 2]));
        GOOD(cuEventRecord(events[other], streams[other]));
        GOOD(cuStreamWaitEvent(streams[s], events[other], 0));
        GOOD(cuMemcpyAsync(memory[s], memory[other], 4 * kWords, streams[s]));
        GOOD(cuCtxSetCurrent(contexts[s % 2]));
        GOOD(cuEventRecord(events[s], streams[s]));
        GOOD(cuStreamWaitEvent(streams[other], events[s], 0));
        wanted[s] = wanted[other];
      }
    }
  }
  for (unsigned s = 0; s < kStreams; s++) {
    GOOD(cuCtxSetCurrent(contexts[s % 2]));
    TRUE(Words(memory[s], kWords, streams[s]) == wanted[s]);
    GOOD(cuMemFree_v2(memory[s]));
    GOOD(cuStreamDestroy_v2(streams[s]));
    GOOD(cuEventDestroy_v2(events[s]));
  }
}

/** Launches return before the work is done, that of pageable memory too; events say when it is. */
void Asynchrony() {
  Begin();
  void* const stream = NewStream();
  const DevicePointer word = NewMemory(8), other = NewMemory(4);
  GOOD(cuMemsetD32Async(word, 0, 2, stream));
  GOOD(cuMemsetD32Async(other, 0, 1, stream));
  GOOD(cuStreamSynchronize(stream));
  void* pinned;
  GOOD(cuMemHostAlloc(&pinned, 4, 1));
  unsigned pageable = 5;
  *static_cast<unsigned*>(pinned) = 6;
  void *const before = NewEvent(0), *const after = NewEvent(0), *const never = NewEvent();
  GOOD(cuEventRecord(before, stream));
  GOOD(cuStreamWaitValue32_v2(stream, word, 1, 1));  // until the host says so
  GOOD(cuMemcpyAsync(word + 4, At(&pageable), 4, stream));
  GOOD(cuMemcpyAsync(At(pinned), word + 4, 4, stream));
  GOOD(cuEventRecord(after, stream));
  usleep(20000);
  GOOD(cuEventSynchronize(before));
  GIVES(kNotReady, cuEventQuery(after));
  GIVES(kNotReady, cuStreamQuery(stream));
  float took = 0;
  GIVES(kNotReady, cuEventElapsedTime(&took, before, after));
  TRUE(*static_cast<unsigned*>(pinned) == 6);
  pageable = 7;
  // Others go on meanwhile; a wait for an event means what was recorded when it was asked for.
  void *const second = NewStream(), *const third = NewStream();
  GOOD(cuStreamWaitEvent(third, after, 0));
  GOOD(cuMemsetD32Async(other, 8, 1, third));
  GOOD(cuEventRecord(after, second));
  GOOD(cuEventSynchronize(after));
  GOOD(cuEventQuery(never));
  GOOD(cuStreamWaitEvent(second, never, 0));
  GIVES(kNotReady, cuStreamQuery(third));
  TRUE(Words(other, 1, second)[0] == 0);
  GOOD(cuStreamWriteValue32_v2(second, word, 1, 0));
  GOOD(cuStreamSynchronize(stream));
  TRUE(*static_cast<unsigned*>(pinned) == 7);
  TRUE(Words(other, 1, third)[0] == 8);
  GOOD(cuEventRecord(after, stream));
  GOOD(cuEventSynchronize(after));
  GOOD(cuEventElapsedTime(&took, before, after));
  TRUE(took >= 20);
  GIVES(kInvalidHandle, cuEventElapsedTime(&took, before, never));
}

/** The null stream and streams that do not ignore it. */
void NullStream() {
  Begin();
  void *const blocking = NewStream(0), *const free = NewStream();
  const DevicePointer word = NewMemory(16);
  GOOD(cuMemsetD32Async(word, 0, 4, nullptr));
  GOOD(cuStreamSynchronize(nullptr));
  GOOD(cuStreamWaitValue32_v2(blocking, word, 1, 1));
  GOOD(cuMemsetD32Async(word + 4, 5, 1, nullptr));
  GOOD(cuMemsetD32Async(word + 8, 6, 1, free));
  GOOD(cuStreamSynchronize(free));
  GIVES(kNotReady, cuStreamQuery(nullptr));
  TRUE(Words(word + 4, 2, free) == (std::vector<unsigned>{0, 6}));
  GOOD(cuStreamWriteValue32_v2(free, word, 1, 0));
  GOOD(cuMemsetD32Async(word + 4, 7, 1, blocking));
  TRUE(Words(word + 4, 1, blocking)[0] == 7);
}

/** Kernels of two streams that wait for each other, and shared memory and barriers. */
void Kernels() {
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
  GIVES(kNotReady, cuStreamQuery(first) == 0 ? cuStreamQuery(second) : kNotReady);
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
void Processes(const char* handle_text) {
  if (handle_text) usleep(1000);
  Begin();
  void* const stream = NewStream();
  constexpr uint64_t kRounds = 200;
  if (handle_text) {
    IpcHandle handle;
    for (size_t i = 0; i < sizeof handle; i++) handle.reserved[i] = static_cast<char>(std::stoi(std::string(handle_text + 2 * i, 2), nullptr, 16));
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

/** Graphs of several streams do what was captured, again and again; and what must not be done meanwhile. */
void Graphs() {
  Begin();
  void *const stream = NewStream(), *const side = NewStream();
  void *const fork_event = NewEvent(), *const join = NewEvent(), *const apart = NewEvent();
  const DevicePointer a = NewMemory(400), b = NewMemory(400);
  GOOD(cuMemsetD32Async(a, 0, 100, stream));
  GOOD(cuStreamSynchronize(stream));
  GOOD(cuStreamBeginCapture_v2(stream, kThreadLocal));
  GOOD(LaunchAdd(a, 100, 3, stream));
  GOOD(cuEventRecord(fork_event, stream));
  GOOD(cuStreamWaitEvent(side, fork_event, 0));
  GOOD(cuMemcpyAsync(b, a, 400, side));
  GOOD(LaunchAdd(b, 100, 1, side));
  GOOD(cuEventRecord(join, side));
  GOOD(cuStreamWaitEvent(stream, join, 0));
  GOOD(cuMemcpyAsync(a, b, 200, stream));
  void *graph, *exec;
  GIVES(kCaptureUnmatched, cuStreamEndCapture(side, &graph));
  GOOD(cuStreamEndCapture(stream, &graph));
  GOOD(cuGraphInstantiateWithFlags(&exec, graph, 0));
  GOOD(cuGraphDestroy(graph));
  TRUE(Words(a, 1, stream)[0] == 0);  // nothing has been done yet
  for (int i = 0; i < 5; i++) GOOD(cuGraphLaunch(exec, i % 2 ? stream : side));
  GOOD(cuStreamSynchronize(stream));
  const std::vector<unsigned> now = Words(a, 100, side);
  TRUE(now[0] == 20 && now[49] == 20 && now[50] == 15 && now[99] == 15);
  GOOD(cuGraphExecDestroy(exec));

  GOOD(cuStreamBeginCapture_v2(stream, kGlobal));
  DevicePointer more;
  GIVES(kCaptureUnsupported, cuMemAlloc_v2(&more, 4));
  GIVES(kCaptureInvalidated, cuStreamEndCapture(stream, &graph));
  GOOD(cuStreamBeginCapture_v2(stream, kRelaxed));
  GOOD(cuMemAlloc_v2(&more, 4));
  GOOD(cuEventRecord(apart, side));
  GOOD(cuEventSynchronize(apart));
  GIVES(kCaptureIsolation, cuStreamWaitEvent(stream, apart, 0));
  GIVES(kCaptureInvalidated, cuStreamEndCapture(stream, &graph));
  GOOD(cuStreamBeginCapture_v2(stream, kRelaxed));
  GIVES(kCaptureUnsupported, cuStreamSynchronize(stream));
  GIVES(kCaptureInvalidated, cuStreamEndCapture(stream, &graph));
  GOOD(cuStreamBeginCapture_v2(stream, kRelaxed));
  GOOD(cuEventRecord(fork_event, stream));
  GOOD(cuStreamWaitEvent(side, fork_event, 0));
  GOOD(LaunchAdd(b, 100, 1, side));
  GIVES(kCaptureUnjoined, cuStreamEndCapture(stream, &graph));
  GOOD(LaunchAdd(b, 100, 1, side));
  GOOD(cuStreamSynchronize(side));
}

/** Errors of kernels lose their device, and no other. */
void Lost(const char* how) {
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
void Faults() {
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
void Slack() {
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
void HostTouches() {
  Begin();
  void* const stream = NewStream();
  const DevicePointer words = NewMemory(8);
  void* pinned;
  GOOD(cuMemHostAlloc(&pinned, 8, 1));
  GOOD(cuMemsetD32Async(words, 5, 2, stream));
  GOOD(cuMemcpyAsync(At(pinned), words, 8, stream));
  GOOD(cuStreamSynchronize(stream));
  TRUE(*static_cast<volatile unsigned*>(pinned) == 5);
  TRUE(Words(words, 1, stream)[0] == 5);
  const pid_t child = fork();
  if (child == 0) _exit(static_cast<int>(*reinterpret_cast<volatile unsigned*>(words)));
  int status = 0;
  TRUE(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
}

void NoDevices() {
  GIVES(kNoDevice, cuInit(0));
  int version;
  GOOD(cuDriverGetVersion(&version));
  TRUE(version == 11040);
  GIVES(kNotInitialized, cuDeviceGetCount(&version));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) Wrong("arguments: library what seed");
  library = argv[1];
  seed = static_cast<uint32_t>(std::strtoul(argv[3], nullptr, 10));
  Load(library);
  const std::string what = argv[2];
  if (what == "order") Order();
  else if (what == "asynchrony") Asynchrony();
  else if (what == "null-stream") NullStream();
  else if (what == "kernels") Kernels();
  else if (what == "processes") Processes(argc > 4 ? argv[4] : nullptr);
  else if (what == "graphs") Graphs();
  else if (what == "faults") Faults();
  else if (what == "slack") Slack();
  else if (what == "host") HostTouches();
  else if (what == "products") Products(std::string(argv[1]).replace(std::strlen(argv[1]) - std::strlen("libcuda-double.so"), std::string::npos,
                                                                      "libcublasLt-double.so"), seed);
  else if (what == "no-devices") NoDevices();
  else Lost(what.c_str());
  if (argc <= 4) std::printf("good\n");
  return 0;
}
