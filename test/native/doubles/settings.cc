// Settings and faults, read when a call finds that they have changed.
#include "settings.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

namespace cuda_double {
namespace {

struct Fault {
  std::string function;
  int device;
  uint64_t nth;
  int code;
};

struct Control {
  std::atomic<uint32_t> generation;
  std::atomic<uint32_t> length;
  char text[4096 - 8];
  std::atomic<int64_t> counts[kCounts];
};

struct State {
  std::mutex mutex;
  Settings settings;
  std::vector<Fault> faults;
  std::vector<uint64_t> delays;
  std::atomic<uint32_t> generation = 0;
  Control* control = nullptr;

  State() {
    if (const char* text = std::getenv("RANKMESH_CUDA_DOUBLE")) Apply(text);
    const char* const name = std::getenv("RANKMESH_CUDA_DOUBLE_CONTROL");
    if (!name || !*name) return;
    const int file = open(name, O_RDWR | O_CLOEXEC);
    void* const memory = file < 0 ? MAP_FAILED : mmap(nullptr, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (file >= 0) close(file);
    if (memory == MAP_FAILED) std::fprintf(stderr, "libcuda double: the file %s cannot be used\n", name);
    else control = static_cast<Control*>(memory);
  }

  void Apply(const std::string& text) {
    std::string line;
    for (std::stringstream lines(text); std::getline(lines, line, ';');) {
      std::stringstream words(line);
      std::string what, of;
      if (!(words >> what)) continue;
      uint64_t first = 0, second = 0;
      bool good = true;
      if (what == "fail") {
        good = static_cast<bool>(words >> of >> first >> second);
        faults.push_back({of, -1, first, static_cast<int>(second)});
      } else if (what == "lose" || what == "delay") {
        size_t device = 0;
        good = static_cast<bool>(words >> device >> first) && device < 64;
        if (what == "lose") {
          good = good && words >> second;
          faults.push_back({"", static_cast<int>(device), first, static_cast<int>(second)});
        } else if (good) {
          delays.resize(std::max(delays.size(), device + 1));
          delays[device] = first * 1000;
        }
      } else if (what == "forget") {
        faults.clear();
        delays.clear();
      } else {
        good = static_cast<bool>(words >> first);
        if (what == "devices") settings.devices = static_cast<int>(first);
        else if (what == "memory") settings.memory = first;
        else if (what == "version") settings.version = static_cast<int>(first);
        else if (what == "capability") settings.capability = static_cast<int>(first);
        else if (what == "multiprocessors") settings.multiprocessors = static_cast<int>(first);
        else if (what == "seed") settings.seed = static_cast<uint32_t>(first);
        else if (what == "peers") settings.peers = first != 0;
        else if (what == "multicast") settings.multicast = first != 0;
        else if (what == "uuid") settings.uuid = static_cast<int>(first);
        else if (what == "fabric") settings.fabric = static_cast<int>(first);
        else if (what == "shut") settings.shut = static_cast<uint32_t>(first);
        else good = false;
      }
      if (!good) std::fprintf(stderr, "libcuda double: no setting: %s\n", line.c_str());
    }
  }

  /** With the mutex held. */
  void Refresh() {
    if (!control) return;
    const uint32_t now = control->generation.load(std::memory_order_acquire);
    if (now == generation) return;
    generation = now;
    Apply(std::string(control->text, std::min<size_t>(control->length, sizeof control->text)));
  }
};

State& TheState() {
  static State* const state = new State;  // used by threads that outlive static objects
  return *state;
}

/** The code of the fault that comes now. */
template <typename F>
int Taken(State& state, F matches) {
  int code = 0;
  for (size_t i = 0; i < state.faults.size();) {
    Fault& fault = state.faults[i];
    if (matches(fault) && --fault.nth == 0) {
      code = fault.code;
      state.faults.erase(state.faults.begin() + static_cast<ptrdiff_t>(i));
    } else {
      i++;
    }
  }
  return code;
}

/** `cuMemAlloc` is meant by both names that it has. */
bool Same(const std::string& given, const char* function) {
  return std::strncmp(function, given.c_str(), given.size()) == 0 &&
         (function[given.size()] == '\0' || std::strncmp(function + given.size(), "_v", 2) == 0);
}

}  // namespace

const Settings& SettingsNow() {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.Refresh();
  return state.settings;
}

uint64_t DelayOf(int device) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.Refresh();
  return static_cast<size_t>(device) < state.delays.size() ? state.delays[device] : 0;
}

int Entered(const char* function) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.Refresh();
  return Taken(state, [&](const Fault& fault) { return fault.device < 0 && Same(fault.function, function); });
}

int LostBy(int device) {
  State& state = TheState();
  const std::lock_guard lock(state.mutex);
  state.Refresh();
  return Taken(state, [&](const Fault& fault) { return fault.device == device; });
}

void CountUp(Count what, int64_t by) {
  State& state = TheState();
  if (state.control) state.control->counts[what].fetch_add(by, std::memory_order_relaxed);
}

void Report(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::string text(512, '\0');
  text.resize(std::min<size_t>(static_cast<size_t>(std::vsnprintf(text.data(), text.size(), format, arguments)), text.size() - 1));
  va_end(arguments);
  std::fprintf(stderr, "libcuda double: %s\n", text.c_str());
  CountUp(kReports);
}

}  // namespace cuda_double
