// How NCCL's double puts its work in stream order: on the streams of the driver's double where that is loaded, else on threads of its own.
#pragma once
#include <dlfcn.h>

#include <atomic>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

namespace nccl_double {

/** The driver that the program has loaded. */
class Driver {
 public:
  static Driver& Get() {
    static Driver* const driver = new Driver();
    return *driver;
  }

  bool loaded() const { return enqueue_ != nullptr; }

  /** The calling thread's device; without a driver `none`. @throws std::runtime_error where the thread has made none its own. */
  int Device(int none) const {
    if (!loaded()) return none;
    int device = -1;
    if (get_device_(&device) != 0) throw std::runtime_error("no device is current on this thread");
    return device;
  }

  /** The calling thread's context, for `Enqueue`; null without a driver. */
  void* Context() const {
    void* context = nullptr;
    if (loaded()) get_current_(&context);
    return context;
  }

  /** Memory of the thread's device; null where there is none. */
  void* Allocate(size_t bytes) const {
    if (!loaded()) return std::aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    unsigned long long at = 0;
    return allocate_(&at, bytes) == 0 ? reinterpret_cast<void*>(at) : nullptr;
  }

  void Free(void* memory) const {
    if (!loaded()) std::free(memory);
    else free_(reinterpret_cast<unsigned long long>(memory));
  }

  /** Says loudly what the program has done wrong. */
  void Report(const std::string& what) const {
    if (loaded()) report_(what.c_str());
    else std::fprintf(stderr, "NCCL's double: %s\n", what.c_str());
  }

  /**
   * Runs `work` behind all that the stream, which is of `context`, has been given. Where the stream is captured, each launch does so, and `graphs`
   * counts the call until the graph and all that is made of it are gone.
   */
  void Enqueue(void* context, void* stream, std::function<void()> work, const std::shared_ptr<std::atomic<int>>& graphs) {
    if (loaded()) {
      // The driver's double has one thread for everything, which cannot wait for other ranks: a thread of this work's own does.
      auto* const job = new std::shared_ptr<Job>(new Job{std::move(work), graphs});
      const auto step = [](void* given) {
        const auto job = *static_cast<std::shared_ptr<Job>*>(given);
        if (!std::exchange(job->begun, true)) std::thread([job] { job->work(), job->done = true; }).detach();
        if (!job->done) return 0;
        job->begun = job->done = false;  // a graph does it again
        return 1;
      };
      const auto drop = [](void* given) {
        const std::unique_ptr<std::shared_ptr<Job>> job(static_cast<std::shared_ptr<Job>*>(given));
        if ((*job)->captured) --*(*job)->graphs;
      };
      void* const before = Context();
      set_current_(context);
      int captured = 0;
      is_capturing_(stream, &captured);
      if (((*job)->captured = captured != 0)) ++*graphs;
      const int result = enqueue_(stream, "a collective of NCCL's double", step, drop, job);
      set_current_(before);
      if (result != 0) throw std::runtime_error("the driver's double takes no work for this stream: " + std::to_string(result));
      return;
    }
    const std::lock_guard lock(mutex_);
    auto& own = streams_[stream];
    if (!own) own = new Own();
    own->Add(std::move(work));
  }

 private:
  struct Own {
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::function<void()>> work;

    Own() {
      std::thread([this] {
        for (;;) {
          std::unique_lock lock(mutex);
          changed.wait(lock, [this] { return !work.empty(); });
          const auto next = std::move(work.front());
          work.pop_front();
          lock.unlock();
          next();
        }
      }).detach();
    }

    void Add(std::function<void()> next) {
      const std::lock_guard lock(mutex);
      work.push_back(std::move(next));
      changed.notify_one();
    }
  };

  Driver() {
    const char* const named = std::getenv("RANKMESH_CUDA_PATH");
    void* const handle = dlopen(named && *named ? named : "libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (!handle) return;
    enqueue_ = reinterpret_cast<EnqueueStep>(dlsym(handle, "rankmesh_double_enqueue"));
    get_current_ = reinterpret_cast<int (*)(void**)>(dlsym(handle, "cuCtxGetCurrent"));
    set_current_ = reinterpret_cast<int (*)(void*)>(dlsym(handle, "cuCtxSetCurrent"));
    get_device_ = reinterpret_cast<int (*)(int*)>(dlsym(handle, "cuCtxGetDevice"));
    allocate_ = reinterpret_cast<int (*)(unsigned long long*, size_t)>(dlsym(handle, "cuMemAlloc_v2"));
    is_capturing_ = reinterpret_cast<int (*)(void*, int*)>(dlsym(handle, "cuStreamIsCapturing"));
    report_ = reinterpret_cast<void (*)(const char*)>(dlsym(handle, "rankmesh_double_report"));
    free_ = reinterpret_cast<int (*)(unsigned long long)>(dlsym(handle, "cuMemFree_v2"));
  }

  struct Job {
    std::function<void()> work;
    std::shared_ptr<std::atomic<int>> graphs;
    bool captured = false;
    bool begun = false;
    std::atomic<bool> done = false;
  };

  /** See test/native/doubles/enqueue.h. */
  using EnqueueStep = int (*)(void* stream, const char* what, int (*step)(void*), void (*drop)(void*), void* given);
  EnqueueStep enqueue_ = nullptr;
  int (*get_current_)(void**) = nullptr;
  int (*set_current_)(void*) = nullptr;
  int (*get_device_)(int*) = nullptr;
  int (*allocate_)(unsigned long long*, size_t) = nullptr;
  int (*free_)(unsigned long long) = nullptr;
  int (*is_capturing_)(void*, int*) = nullptr;
  void (*report_)(const char*) = nullptr;
  std::mutex mutex_;
  std::map<void*, Own*> streams_;
};

}  // namespace nccl_double
