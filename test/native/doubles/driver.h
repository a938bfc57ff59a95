// What the functions of the API share: devices as contexts, streams, events, captures.
#pragma once
#include <memory>
#include <mutex>
#include <string>
#include <unordered_set>
#include <vector>

#include "memory.h"
#include "settings.h"
#include "types.h"
#include "work.h"

#define DRIVER_API extern "C" __attribute__((visibility("default"))) int

namespace cuda_double {

struct Graph;

/** A graph that is being captured, from the stream where it began. */
struct Capture {
  std::shared_ptr<Graph> graph;
  struct Stream* origin;
  CaptureMode mode;
  void* thread;
  bool broken = false;
  uint64_t id;
};

struct Stream {
  int device;
  bool blocking;
  MarkPointer last;
  /** While it takes part in a capture: the nodes that come before the next one. */
  std::shared_ptr<Capture> capture;
  std::vector<size_t> nodes;
};

struct Event {
  int device;
  bool timed;
  /** Null before it is recorded. */
  MarkPointer mark;
  std::shared_ptr<Capture> capture;
  std::vector<size_t> nodes;
};

/** A node and those it comes after, all of which have smaller numbers. */
struct Node {
  Task task;
  std::vector<size_t> after;
};

struct Graph {
  std::vector<Node> nodes;
};

/** A device; its primary context is the only one. */
struct Device {
  int index;
  int uses = 0;
  std::unordered_set<int> peers;
  Stream null_stream{0, true, nullptr, nullptr, {}};
  std::unordered_set<Stream*> streams;
  std::unordered_set<Event*> events;
};

/** All of it is guarded by Lock(). */
struct Driver {
  bool initialised = false;
  std::vector<std::unique_ptr<Device>> devices;
  std::unordered_set<Stream*> streams;
  std::unordered_set<Event*> events;
  std::unordered_set<Capture*> captures;
  uint64_t capture_ids = 0;
};
Driver& TheDriver();

/** The context of this thread; -1 for none. */
int CurrentDevice();
void SetCurrentDevice(int device);

/** One call of a function of the API: holds the lock; `error` says why it must not go on. */
class Call {
 public:
  enum Needs { kNothing, kInit, kContext };
  Call(const char* function, Needs needs);
  int error = kSuccess;
  std::unique_lock<std::mutex> lock;
  Driver& driver;
  /** The current context's. */
  Device* device = nullptr;

  /** Of the API's handle; null is the null stream. Null, and `error` is set, where there is no such stream or its device is lost. */
  Stream* StreamOf(void* handle);
  Event* EventOf(void* handle);
  /** Adds a task to a stream, or to the graph that it captures. */
  int Add(Stream* stream, Task task);
  /** For calls that must not be made during captures that forbid it. */
  bool Forbidden();
};

/** Begins a function: `CALL(cuInit, kNothing);` returns from it where it must fail. */
#define CALL(function, needs)              \
  Call call(#function, Call::needs);       \
  if (call.error != kSuccess) return call.error

/** With the lock held: what a multicast reaches may have changed in other processes. */
void RefreshMulticast(const Allocation& at);

/** Whether kernels of `device` reach the memory. */
bool Reaches(const Device& device, const Allocation& allocation);

}  // namespace cuda_double
