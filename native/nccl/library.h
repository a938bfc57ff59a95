// libnccl.so.2 by dlopen: its types and functions as declared here, which of them the version at hand has, and errors with its own text.
#pragma once
#include <climits>
#include <cstddef>
#include <stdexcept>
#include <string>

namespace rankmesh::nccl {

using Comm = struct OpaqueComm*;
using Window = struct OpaqueWindow*;
/** The driver's CUstream. */
using Stream = void*;

struct UniqueId {
  char bytes[128];
};

enum Result : int {
  kSuccess = 0,
  kUnhandledCudaError = 1,
  kSystemError = 2,
  kInternalError = 3,
  kInvalidArgument = 4,
  kInvalidUsage = 5,
  kRemoteError = 6,
  kInProgress = 7,
  kTimeout = 8,
};

enum DataType : int {
  kInt8 = 0,
  kUint8 = 1,
  kInt32 = 2,
  kUint32 = 3,
  kInt64 = 4,
  kUint64 = 5,
  kFloat16 = 6,
  kFloat32 = 7,
  kFloat64 = 8,
  kBfloat16 = 9,
  kDataTypes = 10,
};

/** Bytes of an element, by DataType. */
constexpr size_t kTypeBytes[kDataTypes] = {1, 1, 4, 4, 8, 8, 2, 4, 8, 2};

/** Numbers above are reductions that CreateScaledSum made. */
enum Reduction : int { kSum = 0, kProd = 1, kMax = 2, kMin = 3, kAvg = 4 };

constexpr int kNoColor = -1;
constexpr int kSymmetricWindow = 1;
constexpr int kHostScalar = 1;

/** A release as NCCL numbers it. */
constexpr int Version(int major, int minor, int patch) {
  return major <= 2 && minor <= 8 ? major * 1000 + minor * 100 + patch : major * 10000 + minor * 100 + patch;
}

/** How a release is written: 2.27.3. */
std::string VersionText(int version);

/** As of 2.30.7. The library takes what it knows of it, by `size` and `version`, so an older one takes it too. */
struct Config {
  size_t size = sizeof(Config);
  unsigned magic = 0xcafebeef;
  unsigned version = Version(2, 30, 7);
  int blocking = INT_MIN;
  int cga_cluster_size = INT_MIN;
  int min_ctas = INT_MIN;
  int max_ctas = INT_MIN;
  const char* net_name = nullptr;
  int split_share = INT_MIN;
  int traffic_class = INT_MIN;
  const char* comm_name = nullptr;
  int collnet_enable = INT_MIN;
  int cta_policy = INT_MIN;
  int shrink_share = INT_MIN;
  int nvls_ctas = INT_MIN;
  int channels_per_net_peer = INT_MIN;
  int nvlink_centric_sched = INT_MIN;
  int graph_usage_mode = INT_MIN;
  int rma_contexts = INT_MIN;
  int max_p2p_peers = INT_MIN;
  int graph_stream_ordering = INT_MIN;
};
static_assert(sizeof(Config) == 96 && offsetof(Config, net_name) == 32 && offsetof(Config, comm_name) == 48 && offsetof(Config, max_p2p_peers) == 88);

/** What a call of NCCL came to, with the function and NCCL's own words. */
struct Error : std::runtime_error {
  Error(Result code, const std::string& what, int rank) : std::runtime_error(what), code(code), rank(rank) {}
  Result code;
  /** Of the communicator's ranks; -1 where it concerns none. */
  int rank;
};

/**
 * Every function that is used: its name without `nccl`, the release it came with, its arguments. Those that came with 2.7.3 or before are
 * needed; of the others a function is null where the library has none, and so is it where its version is older than the release.
 */
#define RANKMESH_NCCL_FUNCTIONS(F)                                                                                                         \
  F(GetUniqueId, 2, 0, 0, (UniqueId*))                                                                                                     \
  F(CommInitRank, 2, 0, 0, (Comm*, int, UniqueId, int))                                                                                    \
  F(CommDestroy, 2, 0, 0, (Comm))                                                                                                          \
  F(AllReduce, 2, 0, 0, (const void*, void*, size_t, DataType, int, Comm, Stream))                                                         \
  F(Reduce, 2, 0, 0, (const void*, void*, size_t, DataType, int, int, Comm, Stream))                                                       \
  F(Broadcast, 2, 0, 0, (const void*, void*, size_t, DataType, int, Comm, Stream))                                                         \
  F(AllGather, 2, 0, 0, (const void*, void*, size_t, DataType, Comm, Stream))                                                              \
  F(ReduceScatter, 2, 0, 0, (const void*, void*, size_t, DataType, int, Comm, Stream))                                                     \
  F(GroupStart, 2, 0, 0, ())                                                                                                               \
  F(GroupEnd, 2, 0, 0, ())                                                                                                                 \
  F(CommAbort, 2, 4, 2, (Comm))                                                                                                            \
  F(CommGetAsyncError, 2, 4, 2, (Comm, Result*))                                                                                           \
  F(Send, 2, 7, 3, (const void*, size_t, DataType, int, Comm, Stream))                                                                     \
  F(Recv, 2, 7, 3, (void*, size_t, DataType, int, Comm, Stream))                                                                           \
  F(RedOpCreatePreMulSum, 2, 11, 4, (int*, void*, DataType, int, Comm))                                                                    \
  F(RedOpDestroy, 2, 11, 4, (int, Comm))                                                                                                   \
  F(CommInitRankConfig, 2, 14, 3, (Comm*, int, UniqueId, int, Config*))                                                                    \
  F(CommFinalize, 2, 14, 3, (Comm))                                                                                                        \
  F(CommSplit, 2, 18, 1, (Comm, int, int, Comm*, Config*))                                                                                 \
  F(MemAlloc, 2, 19, 1, (void**, size_t))                                                                                                  \
  F(MemFree, 2, 19, 1, (void*))                                                                                                            \
  F(CommRegister, 2, 19, 1, (Comm, void*, size_t, void**))                                                                                 \
  F(CommDeregister, 2, 19, 1, (Comm, void*))                                                                                               \
  F(CommWindowRegister, 2, 27, 3, (Comm, void*, size_t, Window*, int))                                                                     \
  F(CommWindowDeregister, 2, 27, 3, (Comm, Window))                                                                                        \
  F(AlltoAll, 2, 28, 3, (const void*, void*, size_t, DataType, Comm, Stream))                                                              \
  F(Gather, 2, 28, 3, (const void*, void*, size_t, DataType, int, Comm, Stream))                                                           \
  F(Scatter, 2, 28, 3, (const void*, void*, size_t, DataType, int, Comm, Stream))

/** A function that a version may lack. */
template <typename Pointer>
struct Function {
  const char* name;
  int since;
  Pointer pointer = nullptr;

  explicit operator bool() const { return pointer != nullptr; }
};

class Library {
 public:
  /**
   * The library that RANKMESH_NCCL_PATH names, or else the system's, or that of a Python package. Loaded once, and never unloaded.
   * @throws std::runtime_error: what was tried and why each failed.
   */
  static const Library& Open();

  /** The file. */
  std::string path;
  int version = 0;

#define RANKMESH_NCCL_DECLARE(name, major, minor, patch, arguments) \
  Function<Result(*) arguments> name{"nccl" #name, Version(major, minor, patch)};
  RANKMESH_NCCL_FUNCTIONS(RANKMESH_NCCL_DECLARE)
#undef RANKMESH_NCCL_DECLARE

  /** @throws Error with NCCL's text for any result but success and, of a communicator that does not block, in progress. */
  void Check(Result result, const char* function, int rank) const;

  /** @throws Error where this version lacks the function: which one has it. */
  template <typename Pointer>
  Pointer Need(const Function<Pointer>& function) const {
    if (!function.pointer) Lacks(function.name, function.since);
    return function.pointer;
  }

  /** Calls it and checks the result. */
  template <typename Pointer, typename... Arguments>
  Result Call(const Function<Pointer>& function, int rank, Arguments... arguments) const {
    const Result result = Need(function)(arguments...);
    Check(result, function.name, rank);
    return result;
  }

 private:
  [[noreturn]] void Lacks(const char* function, int since) const;
  void Load(const std::string& name);

  const char* (*error_string_)(Result) = nullptr;
  const char* (*last_error_)(Comm) = nullptr;
};

}  // namespace rankmesh::nccl
