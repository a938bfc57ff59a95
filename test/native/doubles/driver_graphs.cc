// The double's graphs: what streams would have done, kept to be done many times.
#include <pthread.h>

#include <algorithm>

#include "driver.h"

using namespace cuda_double;

namespace {

struct GraphHandle {
  std::shared_ptr<Graph> graph;
};
struct Exec {
  int device;
  std::shared_ptr<Graph> graph;
  /** The end of its last launch: it does not run beside itself. */
  MarkPointer last;
};

template <typename T>
std::unordered_set<T*>& All() {
  static auto* const all = new std::unordered_set<T*>;
  return *all;
}

/** Every stream that takes part in a capture. */
template <typename F>
void EachMember(Driver& driver, const Capture* capture, F visit) {
  for (Stream* stream : driver.streams) {
    if (stream->capture.get() == capture) visit(*stream);
  }
}

int Instantiate(Call& call, void** handle, void* graph_handle) {
  auto* const graph = static_cast<GraphHandle*>(graph_handle);
  if (!All<GraphHandle>().count(graph)) return kInvalidHandle;
  auto* const exec = new Exec{call.device->index, std::make_shared<Graph>(*graph->graph), nullptr};
  All<Exec>().insert(exec);
  CountUp(kGraphs);
  *handle = exec;
  return kSuccess;
}

}  // namespace

DRIVER_API cuStreamBeginCapture_v2(void* handle, int mode) {
  CALL(cuStreamBeginCapture_v2, kContext);
  Stream* const stream = call.StreamOf(handle);
  if (!stream) return call.error;
  if (stream == &call.device->null_stream) return kCaptureUnsupported;
  if (mode < kGlobal || mode > kRelaxed) return kInvalidValue;
  if (stream->capture) return kCaptureUnsupported;
  auto* const thread = reinterpret_cast<void*>(pthread_self());
  const uint64_t id = ++call.driver.capture_ids;
  auto* const capture = new Capture{std::make_shared<Graph>(), stream, static_cast<CaptureMode>(mode), thread, false, id};
  call.driver.captures.insert(capture);
  stream->capture.reset(capture);
  stream->nodes.clear();
  return kSuccess;
}

DRIVER_API cuStreamEndCapture(void* handle, void** graph_handle) {
  CALL(cuStreamEndCapture, kContext);
  *graph_handle = nullptr;
  Stream* const stream = call.StreamOf(handle);
  if (!stream) return call.error;
  const std::shared_ptr<Capture> capture = stream->capture;
  if (!capture || capture->origin != stream) return kCaptureUnmatched;
  if (capture->mode != kRelaxed && capture->thread != reinterpret_cast<void*>(pthread_self())) return kCaptureWrongThread;
  const std::vector<Node>& nodes = capture->graph->nodes;
  // Everything that others have added must come before something of the stream where it all began.
  std::vector<bool> joined(nodes.size());
  for (const size_t last : stream->nodes) joined[last] = true;
  for (size_t n = nodes.size(); n-- > 0;) {
    if (!joined[n]) continue;
    for (const size_t before : nodes[n].after) joined[before] = true;
  }
  const bool all_joined = std::all_of(joined.begin(), joined.end(), [](bool each) { return each; });
  EachMember(call.driver, capture.get(), [&](Stream& member) {
    member.capture.reset();
    member.nodes.clear();
  });
  for (Event* event : call.driver.events) {
    if (event->capture == capture) event->capture.reset();
  }
  call.driver.captures.erase(capture.get());
  if (capture->broken) return kCaptureInvalidated;
  if (!all_joined) return kCaptureUnjoined;
  auto* const graph = new GraphHandle{capture->graph};
  All<GraphHandle>().insert(graph);
  CountUp(kGraphs);
  *graph_handle = graph;
  return kSuccess;
}

DRIVER_API cuStreamIsCapturing(void* handle, int* status) {
  CALL(cuStreamIsCapturing, kContext);
  const Stream* const stream = call.StreamOf(handle);
  if (!stream) return call.error;
  *status = !stream->capture ? kNoCapture : stream->capture->broken ? kCaptureBroken : kCapturing;
  return kSuccess;
}

DRIVER_API cuStreamGetCaptureInfo_v2(void* handle, int* status, uint64_t* id, void** graph, const void** nodes, size_t* count) {
  CALL(cuStreamGetCaptureInfo_v2, kContext);
  const Stream* const stream = call.StreamOf(handle);
  if (!stream) return call.error;
  *status = !stream->capture ? kNoCapture : stream->capture->broken ? kCaptureBroken : kCapturing;
  if (id) *id = stream->capture ? stream->capture->id : 0;
  if (graph || nodes || count) return kNotSupported;
  return kSuccess;
}

DRIVER_API cuThreadExchangeStreamCaptureMode(int* mode) {
  CALL(cuThreadExchangeStreamCaptureMode, kNothing);
  (void)mode;
  Report("cuThreadExchangeStreamCaptureMode is not emulated");
  return kNotSupported;
}

DRIVER_API cuGraphInstantiateWithFlags(void** exec, void* graph, unsigned long long flags) {
  CALL(cuGraphInstantiateWithFlags, kContext);
  return flags > 15 ? static_cast<int>(kInvalidValue) : Instantiate(call, exec, graph);
}

DRIVER_API cuGraphInstantiate_v2(void** exec, void* graph, void**, char*, size_t) {
  CALL(cuGraphInstantiate_v2, kContext);
  return Instantiate(call, exec, graph);
}

DRIVER_API cuGraphGetNodes(void* handle, void** nodes, size_t* count) {
  CALL(cuGraphGetNodes, kContext);
  auto* const graph = static_cast<GraphHandle*>(handle);
  if (!All<GraphHandle>().count(graph)) return kInvalidHandle;
  if (nodes) return kNotSupported;
  *count = graph->graph->nodes.size();
  return kSuccess;
}

DRIVER_API cuGraphLaunch(void* handle, void* stream_handle) {
  CALL(cuGraphLaunch, kContext);
  auto* const exec = static_cast<Exec*>(handle);
  Stream* const stream = call.StreamOf(stream_handle);
  if (!stream) return call.error;
  if (!All<Exec>().count(exec) || stream->device != exec->device) return kInvalidHandle;
  if (stream->capture) {
    Report("a graph inside a graph is not emulated");
    return kNotSupported;
  }
  // Nothing of it begins before what the stream and an earlier launch have to do.
  if (const int result = call.Add(stream, {})) return result;
  Task begin;
  begin.device = exec->device;
  const MarkPointer begun = Submit(std::move(begin), {stream->last, exec->last});
  std::vector<MarkPointer> marks;
  for (const Node& node : exec->graph->nodes) {
    std::vector<MarkPointer> after = {begun};
    for (const size_t before : node.after) after.push_back(marks[before]);
    marks.push_back(Submit(node.task, after));
  }
  Task end;
  end.device = exec->device;
  marks.push_back(begun);
  exec->last = stream->last = Submit(std::move(end), marks);
  return kSuccess;
}

DRIVER_API cuGraphExecDestroy(void* handle) {
  CALL(cuGraphExecDestroy, kContext);
  auto* const exec = static_cast<Exec*>(handle);
  if (!All<Exec>().erase(exec)) return kInvalidHandle;
  delete exec;
  CountUp(kGraphs, -1);
  return kSuccess;
}

DRIVER_API cuGraphDestroy(void* handle) {
  CALL(cuGraphDestroy, kContext);
  auto* const graph = static_cast<GraphHandle*>(handle);
  if (!All<GraphHandle>().erase(graph)) return kInvalidHandle;
  delete graph;
  CountUp(kGraphs, -1);
  return kSuccess;
}
