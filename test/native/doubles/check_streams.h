// Checks of the double: streams do their work in order, later, and as events say.
#pragma once
#include "check.h"

namespace check {

using namespace cuda_double;

/** Random work on streams of two devices that wait for each other, against the same work done here. */
inline void Order(uint32_t seed) {
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
inline void Asynchrony() {
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
  GOOD(cuEventSynchronize(before));
  GOOD(cuStreamWaitValue32_v2(stream, word, 1, 1));  // until the host says so
  GOOD(cuMemcpyAsync(word + 4, At(&pageable), 4, stream));
  GOOD(cuMemcpyAsync(At(pinned), word + 4, 4, stream));
  GOOD(cuEventRecord(after, stream));
  usleep(20000);
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
inline void NullStream() {
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

}  // namespace check
