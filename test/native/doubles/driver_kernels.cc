// The double's kernels: found by name among those that were compiled with it, checked and launched.
#include <cstdlib>
#include <cstring>

#include "driver.h"
#include "kernels.h"

using namespace cuda_double;

namespace {

/** A function or kernel: on this double they are the same. */
struct Function {
  const Kernel* kernel;
  /** Dynamic shared memory that a launch may ask for. */
  unsigned shared_bytes = 48 << 10;
};
struct Library {
  std::unordered_set<Function*> functions;
};

std::unordered_set<Library*>& Libraries() {
  static auto* const all = new std::unordered_set<Library*>;
  return *all;
}
std::unordered_set<Function*>& Functions() {
  static auto* const all = new std::unordered_set<Function*>;
  return *all;
}

constexpr char kImage[] = "rankmesh double";
constexpr unsigned kMostShared = 227 << 10;
constexpr size_t kMostArguments = 4096;

int Load(void** handle, const void* image) {
  if (!image || std::strncmp(static_cast<const char*>(image), kImage, sizeof kImage - 1) != 0) return kInvalidImage;
  auto* const library = new Library;
  Libraries().insert(library);
  CountUp(kLibraries);
  *handle = library;
  return kSuccess;
}

int Unload(void* handle) {
  auto* const library = static_cast<Library*>(handle);
  if (!Libraries().erase(library)) return kInvalidHandle;
  for (Function* function : library->functions) {
    Functions().erase(function);
    delete function;
  }
  delete library;
  CountUp(kLibraries, -1);
  return kSuccess;
}

int Get(void** handle, void* library_handle, const char* name) {
  auto* const library = static_cast<Library*>(library_handle);
  if (!Libraries().count(library)) return kInvalidHandle;
  const Kernel* const kernel = FindKernel(name);
  if (!kernel) return kNotFound;
  auto* const function = new Function{kernel};
  library->functions.insert(function);
  Functions().insert(function);
  *handle = function;
  return kSuccess;
}

Function* Known(void* handle) {
  auto* const function = static_cast<Function*>(handle);
  return Functions().count(function) ? function : nullptr;
}

int BlocksOf(const Function& function, int threads, size_t shared_bytes) {
  if (threads <= 0 || threads > function.kernel->threads) return 0;
  const size_t by_threads = 2048 / ((static_cast<size_t>(threads) + 31) / 32 * 32), by_memory = (228 << 10) / (shared_bytes + (1 << 10));
  return static_cast<int>(std::min({by_threads, by_memory, size_t{32}}));
}

int Launch(Call& call, Function* function, const LaunchConfig& config, void** parameters, void** extra, bool together) {
  Stream* const stream = call.StreamOf(config.stream);
  if (!stream) return call.error;
  if (!function || stream->device != call.device->index) return kInvalidHandle;
  const Kernel& kernel = *function->kernel;
  const uint64_t threads = uint64_t{config.block_x} * config.block_y * config.block_z;
  if (config.grid_x == 0 || config.grid_y == 0 || config.grid_z == 0 || threads == 0 || threads > 1024) return kInvalidValue;
  if (config.grid_x > 2147483647u || config.grid_y > 65535 || config.grid_z > 65535) return kInvalidValue;
  if (config.block_y != 1 || config.block_z != 1) {
    Report("kernel %s: blocks of more than one dimension are not emulated", kernel.name);
    return kNotSupported;
  }
  if (threads > static_cast<uint64_t>(kernel.threads)) return kLaunchOutOfResources;
  if (config.shared_bytes > function->shared_bytes) return kInvalidValue;
  const uint64_t blocks = uint64_t{config.grid_x} * config.grid_y * config.grid_z;
  const auto together_most = static_cast<uint64_t>(BlocksOf(*function, static_cast<int>(threads), config.shared_bytes)) *
                             static_cast<uint64_t>(SettingsNow().multiprocessors);
  if (together && blocks > together_most) return kCooperativeTooLarge;

  const void* arguments = parameters ? parameters[0] : nullptr;
  if (!parameters && extra) {
    for (size_t i = 0; extra[i]; i += 2) {
      if (extra[i] == reinterpret_cast<void*>(1)) arguments = extra[i + 1];
      else if (extra[i] == reinterpret_cast<void*>(2) && *static_cast<size_t*>(extra[i + 1]) != kernel.argument_bytes) {
        Report("kernel %s takes %zu bytes of arguments, not %zu", kernel.name, kernel.argument_bytes, *static_cast<size_t*>(extra[i + 1]));
        return kInvalidValue;
      }
    }
  }
  if (!arguments || kernel.argument_bytes > kMostArguments) return kInvalidValue;
  Task task;
  task.what = kernel.name;
  task.launch = {&kernel, {config.grid_x, config.grid_y, config.grid_z}, static_cast<unsigned>(threads), config.shared_bytes, nullptr};
  task.launch.arguments.reset(static_cast<std::byte*>(std::aligned_alloc(64, (kernel.argument_bytes + 63) / 64 * 64)), std::free);
  std::memcpy(task.launch.arguments.get(), arguments, kernel.argument_bytes);
  int error = kSuccess;
  EachPointer(task.launch, [&](const void* pointer) {
    const Allocation* const allocation = Find(pointer);
    if (allocation && allocation->kind == Kind::kMulticast) RefreshMulticast(*allocation);
    if (!allocation || Reaches(*call.device, *allocation)) return;
    Report("kernel %s on device %d is given memory of device %d, without peer access", kernel.name, call.device->index, allocation->device);
    Lose(call.device->index, error = kIllegalAddress);
  });
  return error != kSuccess ? error : call.Add(stream, std::move(task));
}

}  // namespace

namespace cuda_double {
const Kernel* FindKernel(const char* name) {
  for (const KernelList* list : {&kOwnKernels, &kOpsKernels, &kPeerKernels, &kPeerCodesKernels}) {
    for (const Kernel& kernel : *list) {
      if (std::strcmp(kernel.name, name) == 0) return &kernel;
    }
  }
  return nullptr;
}
}  // namespace cuda_double

DRIVER_API cuModuleLoadData(void** module, const void* image) {
  CALL(cuModuleLoadData, kContext);
  return Load(module, image);
}

DRIVER_API cuModuleUnload(void* module) {
  CALL(cuModuleUnload, kContext);
  return Unload(module);
}

DRIVER_API cuModuleGetFunction(void** function, void* module, const char* name) {
  CALL(cuModuleGetFunction, kContext);
  return Get(function, module, name);
}

DRIVER_API cuLibraryLoadData(void** library, const void* code, void*, void**, unsigned, void*, void**, unsigned) {
  CALL(cuLibraryLoadData, kInit);
  return Load(library, code);
}

DRIVER_API cuLibraryUnload(void* library) {
  CALL(cuLibraryUnload, kInit);
  return Unload(library);
}

DRIVER_API cuLibraryGetKernel(void** kernel, void* library, const char* name) {
  CALL(cuLibraryGetKernel, kInit);
  return Get(kernel, library, name);
}

DRIVER_API cuKernelGetFunction(void** function, void* kernel) {
  CALL(cuKernelGetFunction, kContext);
  *function = kernel;
  return Known(kernel) ? kSuccess : kInvalidHandle;
}

DRIVER_API cuFuncSetAttribute(void* handle, int attribute, int value) {
  CALL(cuFuncSetAttribute, kContext);
  Function* const function = Known(handle);
  if (!function) return kInvalidHandle;
  if (attribute != 8) return kSuccess;  // what only makes a difference of speed
  if (value < 0 || static_cast<unsigned>(value) > kMostShared) return kInvalidValue;
  function->shared_bytes = static_cast<unsigned>(value);
  return kSuccess;
}

DRIVER_API cuFuncGetAttribute(int* value, int attribute, void* handle) {
  CALL(cuFuncGetAttribute, kContext);
  if (!Known(handle)) return kInvalidHandle;
  if (attribute != 5) {  // what it was compiled for
    Report("attribute %d of a function is not emulated", attribute);
    return kInvalidValue;
  }
  *value = SettingsNow().capability;
  return kSuccess;
}

DRIVER_API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void* handle, int threads, size_t shared_bytes) {
  CALL(cuOccupancyMaxActiveBlocksPerMultiprocessor, kContext);
  const Function* const function = Known(handle);
  if (!function) return kInvalidHandle;
  *blocks = BlocksOf(*function, threads, shared_bytes);
  return kSuccess;
}

DRIVER_API cuLaunchKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                          unsigned block_z, unsigned shared_bytes, void* stream, void** parameters, void** extra) {
  CALL(cuLaunchKernel, kContext);
  const LaunchConfig config{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, nullptr, 0};
  return Launch(call, Known(function), config, parameters, extra, false);
}

DRIVER_API cuLaunchCooperativeKernel(void* function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                                     unsigned block_z, unsigned shared_bytes, void* stream, void** parameters) {
  CALL(cuLaunchCooperativeKernel, kContext);
  const LaunchConfig config{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes, stream, nullptr, 0};
  return Launch(call, Known(function), config, parameters, nullptr, true);
}

DRIVER_API cuLaunchKernelEx(const LaunchConfig* config, void* function, void** parameters, void** extra) {
  CALL(cuLaunchKernelEx, kContext);
  return Launch(call, Known(function), *config, parameters, extra, false);
}
