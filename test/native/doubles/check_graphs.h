// Checks of the double: graphs, and what must not be captured.
#pragma once
#include "check.h"

namespace check {

using namespace cuda_double;

/** Graphs of several streams do what was captured, again and again; and what must not be done meanwhile. */
inline void Graphs() {
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

}  // namespace check
