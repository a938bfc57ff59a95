// Finds and loads the library; whatever is wrong with it is told with every place that was tried.
#include "library.h"

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <mutex>
#include <vector>

#ifdef __linux__
#include <dlfcn.h>
#endif

namespace rankmesh::nccl {
namespace {

namespace fs = std::filesystem;

/** Versions before this one lack functions without which there is no use for it. */
constexpr int kOldest = Version(2, 7, 3);

/** Where pip puts the library: of an active environment, then of the user, then of the system. */
std::vector<std::string> PipPlaces() {
  std::vector<fs::path> roots;
  const auto variable = [](const char* name) { return std::getenv(name); };
  for (const char* const name : {"VIRTUAL_ENV", "CONDA_PREFIX"})
    if (const char* const root = variable(name)) roots.push_back(fs::path(root) / "lib");
  if (const char* const home = variable("HOME")) roots.push_back(fs::path(home) / ".local/lib");
  roots.push_back("/usr/local/lib");
  roots.push_back("/usr/lib");
  std::vector<std::string> found;
  for (const auto& root : roots) {
    std::error_code none;
    for (const auto& python : fs::directory_iterator(root, none)) {
      if (python.path().filename().string().rfind("python3", 0) != 0) continue;
      for (const char* const packages : {"site-packages", "dist-packages"}) {
        const auto file = python.path() / packages / "nvidia/nccl/lib/libnccl.so.2";
        if (fs::exists(file, none)) found.push_back(file.string());
      }
    }
  }
  return found;
}

}  // namespace

std::string VersionText(int version) {
  const int scale = version < 10000 ? 1000 : 10000;
  return std::to_string(version / scale) + "." + std::to_string(version % scale / 100) + "." + std::to_string(version % 100);
}

const Library& Library::Open() {
  static std::mutex mutex;
  static const Library* opened = nullptr;
  const std::lock_guard lock(mutex);
  if (opened) return *opened;
  std::vector<std::string> names;
  if (const char* const named = std::getenv("RANKMESH_NCCL_PATH"); named && *named) {
    names = {named};
  } else {
    names = PipPlaces();
    names.insert(names.begin(), "libnccl.so.2");
  }
  std::string why;
  for (const auto& name : names) {
    auto library = std::make_unique<Library>();
    try {
      library->Load(name);
      return *(opened = library.release());
    } catch (const std::runtime_error& error) {
      why += (why.empty() ? "" : "; ") + std::string(error.what());
    }
  }
  throw std::runtime_error(why + "; install NCCL 2 (Debian: libnccl2, pip: nvidia-nccl-cu12) or name it in RANKMESH_NCCL_PATH");
}

void Library::Load(const std::string& name) {
#ifdef __linux__
  void* const handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (!handle) {
    const char* const why = dlerror();
    throw std::runtime_error(why ? why : name + ": cannot be loaded");
  }
  path = name;
  const auto symbol = [&](const char* function) { return dlsym(handle, function); };
#else
  throw std::runtime_error(name + ": NCCL is a library of Linux");
  const auto symbol = [](const char*) -> void* { return nullptr; };
#endif
  const auto get_version = reinterpret_cast<Result (*)(int*)>(symbol("ncclGetVersion"));
  error_string_ = reinterpret_cast<const char* (*)(Result)>(symbol("ncclGetErrorString"));
  if (!get_version || !error_string_) throw std::runtime_error(name + ": not NCCL, it has no ncclGetVersion or no ncclGetErrorString");
  Check(get_version(&version), "ncclGetVersion", -1);
  if (version < kOldest) throw std::runtime_error(name + ": NCCL " + VersionText(version) + " is older than " + VersionText(kOldest));
  last_error_ = reinterpret_cast<const char* (*)(Comm)>(symbol("ncclGetLastError"));
#define RANKMESH_NCCL_LOAD(function, major, minor, patch, arguments)                                                                     \
  if (version >= function.since) function.pointer = reinterpret_cast<Result(*) arguments>(symbol(function.name));                         \
  if (!function && function.since <= kOldest) throw std::runtime_error(name + ": NCCL " + VersionText(version) + " without " + function.name);
  RANKMESH_NCCL_FUNCTIONS(RANKMESH_NCCL_LOAD)
#undef RANKMESH_NCCL_LOAD
}

void Library::Check(Result result, const char* function, int rank) const {
  if (result == kSuccess || result == kInProgress) return;
  std::string what = std::string(function) + (rank >= 0 ? " of rank " + std::to_string(rank) : "") + ": ";
  what += error_string_(result);
  what += " (code " + std::to_string(result) + ")";
  const char* const last = last_error_ ? last_error_(nullptr) : nullptr;
  if (last && *last) what += ": " + std::string(last);
  throw Error(result, what + "; NCCL_DEBUG=WARN has NCCL say more", rank);
}

void Library::Lacks(const char* function, int since) const {
  throw Error(kInvalidUsage, "NCCL " + VersionText(version) + " has no " + function + ", which came with " + VersionText(since) + "; install a newer one", -1);
}

}  // namespace rankmesh::nccl
