// The machine's thread. Memory that a kernel or a copy must not touch ends it as a device would: with an error that loses the device.
#include "work.h"

#include <chrono>
#include <csetjmp>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <list>
#include <thread>
#include <unordered_set>
#include <utility>

#include <sched.h>
#include <sys/mman.h>
#include <time.h>

#include "memory.h"
#include "platform.cuh"
#include "settings.h"

namespace cuda_double {

/** A kernel's threads. */
struct Running {
  explicit Running(emulation::Launch launch) : grid(std::move(launch)) {}
  emulation::Grid grid;
};

Work::Work() = default;
Work::~Work() = default;

namespace {

constexpr unsigned kThreadsPerMultiprocessor = 2048;
/** Steps in which nothing has moved before the machine sleeps between them. */
constexpr size_t kPatience = 200;

struct State {
  std::mutex mutex;
  std::condition_variable more, ended;
  /** Work that nothing holds back. */
  std::vector<std::shared_ptr<Work>> ready;
  std::unordered_set<Work*> all;
  std::vector<int> lost = std::vector<int>(64);
  bool started = false;
};

State& TheState() {
  static State* const state = new State;
  return *state;
}

thread_local bool on_machine = false;
/** Where a copy goes on that touched what it must not. */
sigjmp_buf copy_failed;
volatile sig_atomic_t copying = 0;
const void* volatile touched = nullptr;
struct sigaction before_us[3];
constexpr int kSignals[3] = {SIGSEGV, SIGBUS, SIGILL};

void OnSignal(int signal, siginfo_t* about, void* context) {
  if (on_machine) {
    touched = about->si_addr;
    // Kernels are compiled with checks of alignment, which trap.
    if (emulation::host->thread) emulation::Break(signal == SIGILL ? "misaligned address" : "illegal address");
    if (copying) siglongjmp(copy_failed, 1);
  }
  const struct sigaction& next = before_us[signal == SIGSEGV ? 0 : signal == SIGBUS ? 1 : 2];
  if (const char* what = Find(about->si_addr) ? "memory of a device" : WasFreed(about->si_addr) ? "memory that was freed" : nullptr) {
    std::fprintf(stderr, "libcuda double: the host touches %s at %p\n", what, about->si_addr);
  }
  if ((next.sa_flags & SA_SIGINFO) && next.sa_sigaction) return next.sa_sigaction(signal, about, context);
  if (next.sa_handler != SIG_DFL && next.sa_handler != SIG_IGN && next.sa_handler) return next.sa_handler(signal);
  std::signal(signal, SIG_DFL);  // comes again, and ends the process
}

void CatchSignals() {
  stack_t stack{};
  stack.ss_size = 64 << 10;
  stack.ss_sp = mmap(nullptr, stack.ss_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  sigaltstack(&stack, nullptr);
  struct sigaction action{};
  action.sa_sigaction = OnSignal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
  for (int i = 0; i < 3; i++) sigaction(kSignals[i], &action, &before_us[i]);
}

/** With the lock held. */
void Complete(State& state, const std::shared_ptr<Work>& work, int result) {
  Mark& mark = *work->mark;
  mark.done = true;
  mark.result = result;
  mark.at = Nanoseconds();
  for (auto& waiting : mark.waiting) {
    if (--waiting->blockers == 0) state.ready.push_back(std::move(waiting));
  }
  mark.waiting.clear();
  state.all.erase(work.get());
  state.ended.notify_all();
}

/** Threads of a device that kernels have. */
uint64_t Occupied(const State& state, int device) {
  uint64_t threads = 0;
  for (const auto& work : state.ready) {
    if (work->running && work->task.device == device) threads += work->running->grid.resident() * work->task.launch.threads;
  }
  return threads;
}

struct Outcome {
  /** 1, 0 or an error, negated. */
  int status;
  bool moved;
};

/** Without the lock. */
Outcome StepKernel(Work& work, uint64_t room) {
  const KernelLaunch& launch = work.task.launch;
  if (!work.running) {
    if (work.ready_at == 0) work.ready_at = Nanoseconds();
    if (room == 0 || Nanoseconds() < work.ready_at + DelayOf(work.task.device)) return {0, false};
    const auto run = launch.kernel->run;
    const std::byte* const arguments = launch.arguments.get();
    work.running = std::make_unique<Running>(
        emulation::Launch{{launch.grid[0], launch.grid[1], launch.grid[2]}, launch.threads, launch.shared_bytes, [=] { run(arguments); }});
    CountUp(kKernels);
  }
  const bool ended = work.running->grid.Step(work.running->grid.resident() + room);
  const std::string why = std::exchange(emulation::host->broken, {});
  if (why.empty()) return {ended, work.running->grid.moved()};
  const Index3 block = blockIdx;
  if (why == "illegal address") {
    Report("kernel %s touches %p, which is no memory%s, in block (%u, %u, %u), thread %u", launch.kernel->name, touched,
           WasFreed(touched) ? " or was freed, or lies behind the end of some" : "", block.x, block.y, block.z, threadIdx.x);
    return {-kIllegalAddress, true};
  }
  Report("kernel %s: %s, in block (%u, %u, %u), thread %u", launch.kernel->name, why.c_str(), block.x, block.y, block.z, threadIdx.x);
  return {why == "misaligned address" ? -kMisalignedAddress : -kLaunchFailed, true};
}

/** Without the lock. */
Outcome StepTask(Work& work) {
  if (sigsetjmp(copy_failed, 0) != 0) {
    copying = 0;
    Report("%s touches %p, which is no memory", work.task.what, touched);
    return {-kIllegalAddress, true};
  }
  copying = 1;
  const int status = work.task.step ? work.task.step() : 1;
  copying = 0;
  return {status, status != 0};
}

void Live() {
  State& state = TheState();
  emulation::Host host;
  host.random = emulation::Randomness(SettingsNow().seed);
  emulation::host = &host;
  on_machine = true;
  CatchSignals();
  size_t idle = 0;
  for (std::unique_lock lock(state.mutex);;) {
    state.more.wait(lock, [&] { return !state.ready.empty(); });
    const size_t at = host.random.Below(state.ready.size());
    const std::shared_ptr<Work> work = state.ready[at];
    Shut(false);
    const int device = work->task.device;
    const bool kernel = work->task.launch.kernel != nullptr;
    Outcome outcome{-state.lost[device], true};
    if (outcome.status == 0) {
      const unsigned threads = work->task.launch.threads;
      const uint64_t capacity = uint64_t{kThreadsPerMultiprocessor} * static_cast<uint64_t>(SettingsNow().multiprocessors);
      const uint64_t occupied = kernel ? Occupied(state, device) : 0;
      const uint64_t room = occupied < capacity ? (capacity - occupied) / threads : 0;
      const bool fresh = !std::exchange(work->begun, true);
      lock.unlock();
      const int planted = fresh && work->task.what[0] ? LostBy(device) : 0;
      outcome = planted ? Outcome{-planted, true} : kernel ? StepKernel(*work, room) : StepTask(*work);
      lock.lock();
    } else if (work->running) {
      work->running->grid.Abandon();
    }
    if (outcome.status < 0 && state.lost[device] == 0) state.lost[device] = -outcome.status;
    if (outcome.status != 0) {
      for (auto& each : state.ready) {
        if (each != work) continue;
        std::swap(each, state.ready.back());
        state.ready.pop_back();
        break;
      }
      Complete(state, work, outcome.status < 0 ? -outcome.status : kSuccess);
    }
    idle = outcome.moved ? 0 : idle + 1;
    if (idle <= 4 * state.ready.size()) continue;
    // Only those are left that wait for other processes, for the host, or for work that it has yet to give.
    if (idle > kPatience) {
      state.more.wait_for(lock, std::chrono::microseconds(50));
      continue;
    }
    lock.unlock();
    sched_yield();
    lock.lock();
  }
}

}  // namespace

std::mutex& Lock() { return TheState().mutex; }

MarkPointer Submit(Task task, const std::vector<MarkPointer>& after) {
  State& state = TheState();
  if (!state.started) {
    state.started = true;
    std::thread(Live).detach();
  }
  auto work = std::make_shared<Work>();
  work->task = std::move(task);
  state.all.insert(work.get());
  for (const MarkPointer& mark : after) {
    if (!mark || mark->done) continue;
    mark->waiting.push_back(work);
    work->blockers++;
  }
  MarkPointer mark = work->mark;
  if (work->blockers == 0) {
    state.ready.push_back(std::move(work));
    state.more.notify_one();
  }
  return mark;
}

int WaitFor(std::unique_lock<std::mutex>& lock, const MarkPointer& mark) {
  if (!mark) return kSuccess;
  TheState().ended.wait(lock, [&] { return mark->done; });
  ShutIfIdle();
  return mark->result;
}

void ShutIfIdle() {
  static uint64_t last = 0;
  const uint64_t now = Nanoseconds();
  if (!TheState().ready.empty() || now - last < uint64_t{SettingsNow().shut} * 1'000'000) return;
  Shut(true);
  last = now;
}

int LostTo(int device) { return TheState().lost[device]; }

void Lose(int device, int code) {
  if (LostTo(device) == 0) TheState().lost[device] = code;
}

void Restore(int device) { TheState().lost[device] = 0; }

void WaitForAll(std::unique_lock<std::mutex>& lock, int device) {
  State& state = TheState();
  state.ended.wait(lock, [&] {
    for (const Work* work : state.all) {
      if (work->task.device == device) return false;
    }
    return true;
  });
}

void EachPointer(const KernelLaunch& launch, const std::function<void(const void*)>& visit) {
  if (!launch.kernel) return;
  for (size_t i = 0; i + sizeof(void*) <= launch.kernel->argument_bytes; i += sizeof(void*)) {
    const void* pointer;
    std::memcpy(&pointer, launch.arguments.get() + i, sizeof pointer);
    if (pointer) visit(pointer);
  }
}

const char* UserOf(const void* from, const void* to) {
  for (const Work* work : TheState().all) {
    bool used = false;
    for (const Range& range : work->task.uses) {
      used = used || (range.at < to && static_cast<const std::byte*>(range.at) + range.bytes > from);
    }
    EachPointer(work->task.launch, [&](const void* pointer) { used = used || (pointer >= from && pointer < to); });
    if (used) return work->task.what;
  }
  return nullptr;
}

bool OnMachine() { return on_machine; }

uint64_t Nanoseconds() { return emulation::Now(); }

}  // namespace cuda_double
