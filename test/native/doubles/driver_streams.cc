// The double's streams and events.
#include <atomic>

#include "driver.h"
#include "enqueue.h"

using namespace cuda_double;

namespace {
constexpr unsigned kNonBlocking = 1;
constexpr unsigned kUntimed = 2;

/** Of calls that look at a stream or wait for it. */
int NotWhileCapturing(Call& call, Stream* stream) {
  if (!stream) return call.error;
  if (stream->capture) {
    stream->capture->broken = true;
    return kCaptureUnsupported;
  }
  return call.Forbidden() ? call.error : static_cast<int>(kSuccess);
}
}  // namespace

DRIVER_API cuStreamCreate(void** handle, unsigned flags) {
  CALL(cuStreamCreate, kContext);
  if (flags > kNonBlocking) return kInvalidValue;
  auto* const stream = new Stream{call.device->index, flags != kNonBlocking, nullptr, nullptr, {}};
  call.driver.streams.insert(stream);
  call.device->streams.insert(stream);
  CountUp(kStreams);
  *handle = stream;
  return kSuccess;
}

DRIVER_API cuStreamCreateWithPriority(void** handle, unsigned flags, int) { return cuStreamCreate(handle, flags); }

/** What it has been given is done all the same. */
DRIVER_API cuStreamDestroy_v2(void* handle) {
  CALL(cuStreamDestroy_v2, kContext);
  Stream* const stream = call.StreamOf(handle);
  if (!stream || !handle) return kInvalidHandle;
  if (stream->capture) {
    stream->capture->broken = true;
    if (stream->capture->origin == stream) call.driver.captures.erase(stream->capture.get());
  }
  call.driver.devices[static_cast<size_t>(stream->device)]->streams.erase(stream);
  call.driver.streams.erase(stream);
  delete stream;
  CountUp(kStreams, -1);
  return kSuccess;
}

DRIVER_API cuStreamQuery(void* handle) {
  CALL(cuStreamQuery, kContext);
  Stream* const stream = call.StreamOf(handle);
  if (const int error = NotWhileCapturing(call, stream)) return error;
  if (!stream->last || stream->last->done) return stream->last ? stream->last->result : static_cast<int>(kSuccess);
  return kNotReady;
}

DRIVER_API cuStreamSynchronize(void* handle) {
  CALL(cuStreamSynchronize, kContext);
  Stream* const stream = call.StreamOf(handle);
  if (const int error = NotWhileCapturing(call, stream)) return error;
  const int device = stream->device, result = WaitFor(call.lock, stream->last);
  return result != kSuccess ? result : LostTo(device);
}

DRIVER_API cuStreamWaitEvent(void* handle, void* event_handle, unsigned flags) {
  CALL(cuStreamWaitEvent, kContext);
  Stream* const stream = call.StreamOf(handle);
  Event* const event = stream ? call.EventOf(event_handle) : nullptr;
  if (!event) return call.error;
  if (flags > 1) return kInvalidValue;
  if (event->capture) {
    if (stream->capture && stream->capture != event->capture) {
      stream->capture->broken = event->capture->broken = true;
      return kCaptureIsolation;
    }
    stream->capture = event->capture;  // joins
    stream->nodes.insert(stream->nodes.end(), event->nodes.begin(), event->nodes.end());
    return kSuccess;
  }
  if (stream->capture) {
    if (!event->mark) return kSuccess;
    stream->capture->broken = true;
    return kCaptureIsolation;
  }
  if (!event->mark || event->mark->done) return kSuccess;
  Task task;
  task.device = stream->device;
  stream->last = Submit(std::move(task), {stream->last, event->mark});
  return kSuccess;
}

namespace {
/** A store or a wait of a stream, which others may see or end at any time. */
int AddWordTask(Call& call, void* handle, DevicePointer at, const char* what, std::function<int(std::atomic_ref<unsigned>)> step) {
  Stream* const stream = call.StreamOf(handle);
  if (!stream) return call.error;
  const auto* const word = reinterpret_cast<unsigned*>(at);
  const Allocation* const allocation = Find(word);
  if (at % 4 != 0 || !allocation || !Reaches(*call.device, *allocation)) return kInvalidValue;
  Task task;
  task.what = what;
  task.uses = {{word, sizeof *word}};
  task.step = [=] { return step(std::atomic_ref(*reinterpret_cast<unsigned*>(at))); };
  return call.Add(stream, std::move(task));
}
}  // namespace

DRIVER_API cuStreamWriteValue32_v2(void* handle, DevicePointer at, unsigned value, unsigned flags) {
  CALL(cuStreamWriteValue32_v2, kContext);
  if (flags > 1) return kInvalidValue;
  return AddWordTask(call, handle, at, "a write of a word", [=](std::atomic_ref<unsigned> word) {
    word.store(value, std::memory_order_release);
    return 1;
  });
}

DRIVER_API cuStreamWaitValue32_v2(void* handle, DevicePointer at, unsigned value, unsigned flags) {
  CALL(cuStreamWaitValue32_v2, kContext);
  if (flags > 3) return kInvalidValue;
  return AddWordTask(call, handle, at, "a wait for a word", [=](std::atomic_ref<unsigned> word) {
    const unsigned now = word.load(std::memory_order_acquire);
    switch (flags) {
      case 0: return static_cast<int>(static_cast<int>(now - value) >= 0);
      case 1: return static_cast<int>(now == value);
      case 2: return static_cast<int>((now & value) != 0);
      default: return static_cast<int>(~(now | value) != 0);
    }
  });
}

DRIVER_API cuEventCreate(void** handle, unsigned flags) {
  CALL(cuEventCreate, kContext);
  if (flags > 7) return kInvalidValue;
  auto* const event = new Event{call.device->index, (flags & kUntimed) == 0, nullptr, nullptr, {}};
  call.driver.events.insert(event);
  call.device->events.insert(event);
  CountUp(kEvents);
  *handle = event;
  return kSuccess;
}

DRIVER_API cuEventDestroy_v2(void* handle) {
  CALL(cuEventDestroy_v2, kContext);
  Event* const event = call.EventOf(handle);
  if (!event) return call.error;
  call.driver.devices[static_cast<size_t>(event->device)]->events.erase(event);
  call.driver.events.erase(event);
  delete event;
  CountUp(kEvents, -1);
  return kSuccess;
}

DRIVER_API cuEventRecord(void* handle, void* stream_handle) {
  CALL(cuEventRecord, kContext);
  Event* const event = call.EventOf(handle);
  Stream* const stream = event ? call.StreamOf(stream_handle) : nullptr;
  if (!stream) return call.error;
  if (stream->device != event->device) return kInvalidHandle;
  event->capture = stream->capture;
  if (stream->capture) {
    event->nodes = stream->nodes;
    event->mark = nullptr;
    return kSuccess;
  }
  const int result = call.Add(stream, {});
  if (result == kSuccess) event->mark = stream->last;
  return result;
}

DRIVER_API cuEventQuery(void* handle) {
  CALL(cuEventQuery, kContext);
  Event* const event = call.EventOf(handle);
  if (!event) return call.error;
  if (event->capture) {
    event->capture->broken = true;
    return kCaptureUnsupported;
  }
  if (call.Forbidden()) return call.error;
  if (!event->mark) return kSuccess;
  if (!event->mark->done) return kNotReady;
  ShutIfIdle();
  return event->mark->result;
}

DRIVER_API cuEventSynchronize(void* handle) {
  CALL(cuEventSynchronize, kContext);
  Event* const event = call.EventOf(handle);
  if (!event) return call.error;
  if (event->capture) {
    event->capture->broken = true;
    return kCaptureUnsupported;
  }
  if (call.Forbidden()) return call.error;
  const MarkPointer mark = event->mark;
  return WaitFor(call.lock, mark);
}

DRIVER_API cuEventElapsedTime(float* milliseconds, void* from, void* to) {
  CALL(cuEventElapsedTime, kContext);
  const Event* const start = call.EventOf(from);
  const Event* const end = start ? call.EventOf(to) : nullptr;
  if (!end) return call.error;
  if (!start->timed || !end->timed || !start->mark || !end->mark || start->device != end->device) return kInvalidHandle;
  if (!start->mark->done || !end->mark->done) return kNotReady;
  *milliseconds = static_cast<float>((static_cast<double>(end->mark->at) - static_cast<double>(start->mark->at)) / 1e6);
  return kSuccess;
}

extern "C" __attribute__((visibility("default"))) int rankmesh_double_enqueue(void* handle, const char* what, int (*step)(void*),
                                                                              void (*drop)(void*), void* data) {
  const std::shared_ptr<void> kept(data, drop);
  CALL(rankmesh_double_enqueue, kContext);
  Stream* const stream = call.StreamOf(handle);
  if (!stream) return call.error;
  Task task;
  task.what = what;
  task.step = [step, kept] { return step(kept.get()); };
  return call.Add(stream, std::move(task));
}

extern "C" __attribute__((visibility("default"))) void rankmesh_double_report(const char* what) { Report("%s", what); }

extern "C" __attribute__((visibility("default"))) int rankmesh_double_entered(const char* function) { return Entered(function); }

DRIVER_API cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
  CALL(cuLaunchHostFunc, kContext);
  Stream* const stream = call.StreamOf(handle);
  if (!stream) return call.error;
  Task task;
  task.what = "a function of the host";
  task.step = [=] {
    function(data);
    return 1;
  };
  return call.Add(stream, std::move(task));
}
