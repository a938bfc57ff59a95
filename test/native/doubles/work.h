// Pieces of work, what each waits for, and the thread that does them: one for all devices of a process.
//
// Work that is ready is taken in an order made of the seed; kernels run side by side, as far as their threads fit the device.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "types.h"

namespace cuda_double {

struct Work;

/** The end of a piece of work. */
struct Mark {
  bool done = false;
  int result = kSuccess;
  /** Nanoseconds, once done. */
  uint64_t at = 0;
  std::vector<std::shared_ptr<Work>> waiting;
};
using MarkPointer = std::shared_ptr<Mark>;

/** A kernel, by name. */
struct Kernel {
  const char* name;
  size_t argument_bytes;
  /** Most of a block. */
  int threads;
  void (*run)(const void* arguments);
};
const Kernel* FindKernel(const char* name);

struct KernelLaunch {
  const Kernel* kernel = nullptr;
  unsigned grid[3] = {1, 1, 1};
  unsigned threads = 1;
  unsigned shared_bytes = 0;
  /** Aligned to 64 bytes. */
  std::shared_ptr<std::byte> arguments;
};

struct Range {
  const void* at;
  size_t bytes;
};

/** What is to be done; a graph does the same many times. */
struct Task {
  int device = 0;
  const char* what = "";
  /** Called until it returns 1 (done) or an error (negated); 0: not yet. Of kernels, none. */
  std::function<int()> step;
  KernelLaunch launch;
  /** Memory that it uses, arguments of kernels aside. */
  std::vector<Range> uses;
};

struct Running;

struct Work {
  Task task;
  MarkPointer mark = std::make_shared<Mark>();
  size_t blockers = 0;
  /** Of kernels: when all that they wait for was done, 0 before; they start once the delay is over as it is then. */
  uint64_t ready_at = 0;
  bool begun = false;
  std::unique_ptr<Running> running;
  Work();
  ~Work();
};

/** Guards all that the API's functions and the machine share. */
std::mutex& Lock();

/** With the lock held: does `task` once all of `after` is done. */
MarkPointer Submit(Task task, const std::vector<MarkPointer>& after);

/** With the lock held: waits until it is done; gives its result. */
int WaitFor(std::unique_lock<std::mutex>& lock, const MarkPointer& mark);

/** With the lock held, after the host has learnt that something is done: see `Shut`. */
void ShutIfIdle();

/** With the lock held: the error that a device was lost to, and losing it. All its work ends with the error, without being done. */
int LostTo(int device);
void Lose(int device, int code);
void Restore(int device);

/** With the lock held: waits until a device has nothing to do. */
void WaitForAll(std::unique_lock<std::mutex>& lock, int device);

/** With the lock held: work that has not ended and uses memory between two addresses; null for none. */
const char* UserOf(const void* from, const void* to);

/** Calls `visit` for everything among a kernel's arguments that might be an address. */
void EachPointer(const KernelLaunch& launch, const std::function<void(const void*)>& visit);

/** Whether this thread is the machine, running something: no time for calls. */
bool OnMachine();

uint64_t Nanoseconds();

}  // namespace cuda_double
