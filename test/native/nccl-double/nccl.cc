// A double of libnccl.so.2 over host memory, for tests: its functions as NCCL declares them, with faults to order. RANKMESH_NCCL_DOUBLE_VERSION is
// the version that it claims to be (23007): newer functions refuse then. Built with RANKMESH_NCCL_OLDEST they are absent.
#include <sys/random.h>

#include <thread>
#include <utility>

#include "communicator.h"

using nccl_double::Communicator;
using nccl_double::Driver;
using nccl_double::Operation;
using namespace nccl_double;

namespace {

struct UniqueId {
  char bytes[128];
};

/** As far as the double looks at it. */
struct Config {
  size_t size;
  unsigned magic, version;
  int blocking;
};

using Shared = std::shared_ptr<Communicator>;

struct Registry {
  std::mutex mutex;
  std::map<Communicator*, Shared> live;
};

Registry& All() {
  static Registry* const all = new Registry();
  return *all;
}

int ClaimedVersion() {
#ifdef RANKMESH_NCCL_OLDEST
  return 21003;
#else
  const char* const claimed = std::getenv("RANKMESH_NCCL_DOUBLE_VERSION");
  return claimed && *claimed ? std::stoi(claimed) : 23007;
#endif
}

int Refuse(int code, const std::string& why) {
  Communicator::Say(why);
  return code;
}

#define SINCE(release, name) \
  if (ClaimedVersion() < release) return Refuse(kInternalError, name " was called, which this version does not have")

/** The communicator behind a handle, ready for a call of `function`, unless something else is returned. */
struct Entry {
  Entry(Communicator* handle, const char* function) {
    {
      const std::lock_guard lock(All().mutex);
      const auto found = All().live.find(handle);
      if (found != All().live.end()) comm = found->second;
    }
    if (!comm) code = Refuse(kInvalidArgument, std::string(function) + ": no communicator, or one that was destroyed");
    else if (comm->async == kInProgress) code = Refuse(kInvalidArgument, std::string(function) + ": the previous operation is in progress");
    else if (comm->async != kSuccess) code = comm->async;
    else Plant(function);
  }

  void Plant(const char* function) {
    planted = comm->Planted(function);
    if (planted.empty() || planted == "stuck" || planted.rfind("async", 0) == 0) return;
    code = Refuse(std::stoi(planted), std::string("planted at ") + function + " of rank " + std::to_string(comm->rank));
  }

  Shared comm;
  std::string planted;
  int code = kSuccess;
};

/** What a group has gathered, by communicator, in the order in which they came. */
struct Part {
  Shared comm;
  void *context, *stream;
  std::vector<Operation> operations;
  std::string planted;
};

thread_local int depth = 0;
thread_local std::vector<Part> parts;

int Enqueue(const Part& part) {
  try {
    Driver::Get().Enqueue(part.context, part.stream, [part] { part.comm->Run(part.operations, part.planted); }, part.comm->captured);
    return kSuccess;
  } catch (const std::exception& error) {
    return Refuse(kUnhandledCudaError, error.what());
  }
}

/** `work` gives a result, at once, or in a while where the communicator does not block. */
template <typename Work>
int Begin(const Shared& comm, Work work) {
  if (comm->blocking) return work();
  int expected = kSuccess;
  if (!comm->async.compare_exchange_strong(expected, kInProgress)) return expected;
  std::thread([comm, work] {
    std::this_thread::sleep_for(std::chrono::microseconds(200));
    const int result = work();
    int under_way = kInProgress;
    comm->async.compare_exchange_strong(under_way, result);
  }).detach();
  return kInProgress;
}

int EndGroup() {
  int result = kSuccess;
  for (auto& part : std::exchange(parts, {})) {
    Entry entry(part.comm.get(), "ncclGroupEnd");
    if (entry.code == kSuccess) entry.code = Begin(part.comm, [part] { return Enqueue(part); });
    else if (entry.comm) entry.comm->async = entry.code;
    if (result == kSuccess || result == kInProgress) result = entry.code == kSuccess ? result : entry.code;
  }
  return result;
}

int Add(Communicator* handle, const char* function, void* stream, const Operation& operation) {
  const Entry entry(handle, function);
  if (entry.code != kSuccess) return entry.code;
  const auto& [kind, from, to, count, type, reduction, root] = operation;
  if (type < 0 || type >= kTypes) return Refuse(kInvalidArgument, std::string(function) + ": no such type");
  if (root < 0 || root >= entry.comm->size) return Refuse(kInvalidArgument, std::string(function) + ": no such rank");
  if (reduction < 0 || reduction >= kReductions + static_cast<int>(entry.comm->scales.size())) return Refuse(kInvalidArgument, std::string(function) + ": no such reduction");
  auto part = std::find_if(parts.begin(), parts.end(), [&](const Part& known) { return known.comm == entry.comm; });
  if (part == parts.end()) part = parts.insert(part, {entry.comm, Driver::Get().Context(), stream, {}, ""});
  if (part->stream != stream) return Refuse(kInvalidUsage, std::string(function) + ": two streams of one communicator in a group");
  part->operations.push_back(operation);
  if (!entry.planted.empty()) part->planted = entry.planted;
  return depth > 0 ? kSuccess : EndGroup();
}

int Join(const Shared& comm) {
  try {
    const int device = Driver::Get().Device(comm->rank);
    return Begin(comm, [comm, device]() -> int {
      try {
        comm->meeting.Join(device);
        const bool several = ClaimedVersion() >= 23003 && std::getenv("NCCL_MULTI_RANK_GPU_ENABLE");
        for (int rank = 0; rank < comm->size && !several; rank++) {
          if (rank != comm->rank && comm->meeting.device(rank) == device) return Refuse(kInvalidUsage, "Duplicate GPU detected : rank " + std::to_string(comm->rank) + " and rank " + std::to_string(rank));
        }
        return kSuccess;
      } catch (const Aborted&) {
        return kInternalError;
      }
    });
  } catch (const std::exception& error) {
    return Refuse(kUnhandledCudaError, error.what());
  }
}

Shared NewCommunicator(const std::string& name, int rank, int size, bool blocking) {
  const auto comm = std::make_shared<Communicator>(name, rank, size, blocking);
  const std::lock_guard lock(All().mutex);
  All().live[comm.get()] = comm;
  return comm;
}

int Init(Communicator** handle, int size, const UniqueId& id, int rank, bool blocking, const char* function) {
  if (size < 1 || size > kMostRanks || rank < 0 || rank >= size) return Refuse(kInvalidArgument, std::string(function) + ": no such rank");
  if (std::memcmp(id.bytes, "/nccl-double-", 13) != 0) return Refuse(kInvalidArgument, std::string(function) + ": no unique id");
  try {
    const auto comm = NewCommunicator(id.bytes, rank, size, blocking);
    *handle = comm.get();
    const Entry entry(comm.get(), function);
    return entry.code != kSuccess ? entry.code : Join(comm);
  } catch (const std::exception& error) {
    return Refuse(kSystemError, error.what());
  }
}

bool Drop(Communicator* handle) {
  const std::lock_guard lock(All().mutex);
  return All().live.erase(handle) > 0;
}

}  // namespace

extern "C" {

/** For programs without a driver: has a stream of the double's own run something in its order. */
void RankmeshDoubleEnqueue(void* stream, void (*work)(void*), void* given) {
  Driver::Get().Enqueue(nullptr, stream, [=] { work(given); }, nullptr);
}

int ncclGetVersion(int* version) {
  *version = ClaimedVersion();
  return kSuccess;
}

const char* ncclGetErrorString(int code) {
  constexpr const char* kNames[] = {"no error",       "unhandled cuda error", "unhandled system error", "internal error",
                                    "invalid argument", "invalid usage",        "remote process exited or there was a network error", "NCCL operation in progress"};
  return code >= 0 && code < 8 ? kNames[code] : "unknown result code";
}

int ncclGetUniqueId(UniqueId* id) {
  uint64_t random = 0;
  if (getrandom(&random, sizeof random, 0) != sizeof random) return kSystemError;
  *id = {};
  std::snprintf(id->bytes, sizeof id->bytes, "/nccl-double-%016llx", static_cast<unsigned long long>(random));
  return kSuccess;
}

int ncclCommInitRank(Communicator** comm, int size, UniqueId id, int rank) { return Init(comm, size, id, rank, true, "ncclCommInitRank"); }

int ncclCommGetAsyncError(Communicator* handle, int* code) {
  const std::lock_guard lock(All().mutex);
  if (!All().live.count(handle)) return Refuse(kInvalidArgument, "ncclCommGetAsyncError: no communicator, or one that was destroyed");
  *code = handle->async;
  return kSuccess;
}

int ncclCommAbort(Communicator* handle) {
  Shared comm;
  {
    const std::lock_guard lock(All().mutex);
    const auto found = All().live.find(handle);
    if (found == All().live.end()) return Refuse(kInvalidArgument, "ncclCommAbort: no communicator, or one that was destroyed");
    comm = found->second;
  }
  comm->meeting.Abort();
  while (comm->outstanding > 0) std::this_thread::sleep_for(std::chrono::microseconds(100));
  if (!comm->Released("ncclCommAbort")) return Refuse(kInternalError, "ncclCommAbort: graphs hold it");
  return Drop(handle) ? kSuccess : kInternalError;
}

int ncclCommDestroy(Communicator* handle) {
  const Entry entry(handle, "ncclCommDestroy");
  if (entry.code != kSuccess) return entry.code;
  entry.comm->meeting.Until([&] { return entry.comm->outstanding == 0; });
  if (!entry.comm->Released("ncclCommDestroy")) return Refuse(kInternalError, "ncclCommDestroy: graphs hold it");
  return Drop(handle) ? kSuccess : kInternalError;
}

int ncclGroupStart() {
  depth++;
  return kSuccess;
}

int ncclGroupEnd() {
  if (depth == 0) return Refuse(kInvalidUsage, "ncclGroupEnd without ncclGroupStart");
  return --depth > 0 ? kSuccess : EndGroup();
}

using Bytes = const void*;
inline const std::byte* From(const void* at) { return static_cast<const std::byte*>(at); }
inline std::byte* To(void* at) { return static_cast<std::byte*>(at); }

int ncclAllReduce(Bytes from, void* to, size_t count, int type, int op, Communicator* comm, void* stream) {
  return Add(comm, "ncclAllReduce", stream, {kAllReduce, From(from), To(to), count, type, op, 0});
}
int ncclReduce(Bytes from, void* to, size_t count, int type, int op, int root, Communicator* comm, void* stream) {
  return Add(comm, "ncclReduce", stream, {kReduce, From(from), To(to), count, type, op, root});
}
int ncclBroadcast(Bytes from, void* to, size_t count, int type, int root, Communicator* comm, void* stream) {
  return Add(comm, "ncclBroadcast", stream, {kBroadcast, From(from), To(to), count, type, 0, root});
}
int ncclAllGather(Bytes from, void* to, size_t count, int type, Communicator* comm, void* stream) {
  return Add(comm, "ncclAllGather", stream, {kAllGather, From(from), To(to), count, type, 0, 0});
}
int ncclReduceScatter(Bytes from, void* to, size_t count, int type, int op, Communicator* comm, void* stream) {
  return Add(comm, "ncclReduceScatter", stream, {kReduceScatter, From(from), To(to), count, type, op, 0});
}
int ncclSend(Bytes from, size_t count, int type, int peer, Communicator* comm, void* stream) {
  return Add(comm, "ncclSend", stream, {kSend, From(from), nullptr, count, type, 0, peer});
}
int ncclRecv(void* to, size_t count, int type, int peer, Communicator* comm, void* stream) {
  return Add(comm, "ncclRecv", stream, {kReceive, nullptr, To(to), count, type, 0, peer});
}

#ifndef RANKMESH_NCCL_OLDEST

const char* ncclGetLastError(Communicator*) {
  thread_local std::string said;
  said = Communicator::Said();
  return said.c_str();
}

int ncclRedOpCreatePreMulSum(int* op, void* scalar, int type, int residence, Communicator* handle) {
  SINCE(21104, "ncclRedOpCreatePreMulSum");
  const Entry entry(handle, "ncclRedOpCreatePreMulSum");
  if (entry.code != kSuccess) return entry.code;
  if (residence != 1) return Refuse(kInvalidArgument, "ncclRedOpCreatePreMulSum: the double reads scalars of the host");
  const auto* const at = static_cast<const std::byte*>(scalar);
  *op = kReductions + static_cast<int>(entry.comm->scales.size());
  entry.comm->scales.push_back(IsFloat(type) ? LoadFloat(type, at) : static_cast<double>(static_cast<int64_t>(LoadWhole(type, at))));
  return kSuccess;
}

int ncclRedOpDestroy(int op, Communicator* handle) {
  SINCE(21104, "ncclRedOpDestroy");
  const Entry entry(handle, "ncclRedOpDestroy");
  if (entry.code != kSuccess) return entry.code;
  return op >= kReductions && op < kReductions + static_cast<int>(entry.comm->scales.size()) ? kSuccess : Refuse(kInvalidArgument, "ncclRedOpDestroy: no such reduction");
}

int ncclCommInitRankConfig(Communicator** comm, int size, UniqueId id, int rank, const Config* config) {
  SINCE(21403, "ncclCommInitRankConfig");
  if (config->magic != 0xcafebeef) return Refuse(kInvalidArgument, "ncclCommInitRankConfig: the config has no magic number");
  return Init(comm, size, id, rank, config->blocking != 0, "ncclCommInitRankConfig");
}

int ncclCommFinalize(Communicator* handle) {
  SINCE(21403, "ncclCommFinalize");
  const Entry entry(handle, "ncclCommFinalize");
  if (entry.code != kSuccess) return entry.code;
  return Begin(entry.comm, [comm = entry.comm]() -> int {
    try {
      comm->meeting.Until([&] { return comm->outstanding == 0; });
      return comm->Released("ncclCommFinalize") ? kSuccess : kInternalError;
    } catch (const Aborted&) {
      return kInternalError;
    }
  });
}

int ncclCommSplit(Communicator* handle, int color, int key, Communicator** made, const Config* config) {
  SINCE(21801, "ncclCommSplit");
  const Entry entry(handle, "ncclCommSplit");
  if (entry.code != kSuccess) return entry.code;
  *made = nullptr;
  const Shared parent = entry.comm;
  const bool blocking = config ? config->blocking != 0 : parent->blocking;
  int device = 0;
  try {
    device = Driver::Get().Device(parent->rank);
  } catch (const std::exception& error) {
    return Refuse(kUnhandledCudaError, error.what());
  }
  return Begin(parent, [=]() -> int {
    try {
      const std::pair<int, int> mine{color, key};
      std::vector<std::pair<int, int>> order;
      parent->meeting.Round(&mine, sizeof mine, [&](int rank, const std::byte* data, size_t) {
        std::pair<int, int> theirs;
        std::memcpy(static_cast<void*>(&theirs), data, sizeof theirs);
        if (theirs.first == color) order.emplace_back(theirs.second, rank);
      });
      const std::string name = parent->name + "." + std::to_string(parent->splits++) + "." + std::to_string(color);
      if (color < 0) return kSuccess;
      std::sort(order.begin(), order.end());
      const auto me = std::find(order.begin(), order.end(), std::pair(key, parent->rank)) - order.begin();
      const auto child = NewCommunicator(name, static_cast<int>(me), static_cast<int>(order.size()), blocking);
      child->meeting.Join(device);
      *made = child.get();
      return kSuccess;
    } catch (const Aborted&) {
      return kInternalError;
    }
  });
}

int ncclMemAlloc(void** memory, size_t bytes) {
  SINCE(21901, "ncclMemAlloc");
  *memory = Driver::Get().Allocate(bytes);
  return *memory ? kSuccess : Refuse(kUnhandledCudaError, "ncclMemAlloc: out of memory");
}

int ncclMemFree(void* memory) {
  SINCE(21901, "ncclMemFree");
  Driver::Get().Free(memory);
  return kSuccess;
}

int ncclCommRegister(Communicator* handle, void* memory, size_t bytes, void** registration) {
  SINCE(21901, "ncclCommRegister");
  const Entry entry(handle, "ncclCommRegister");
  if (entry.code != kSuccess) return entry.code;
  if (!memory || bytes == 0) return Refuse(kInvalidArgument, "ncclCommRegister: no memory");
  entry.comm->registrations.push_back(memory);
  *registration = new std::pair<void*, size_t>(memory, bytes);
  return kSuccess;
}

int ncclCommDeregister(Communicator* handle, void* registration) {
  SINCE(21901, "ncclCommDeregister");
  const Entry entry(handle, "ncclCommDeregister");
  if (entry.code != kSuccess) return entry.code;
  auto* const known = static_cast<std::pair<void*, size_t>*>(registration);
  auto& all = entry.comm->registrations;
  const auto at = std::find(all.begin(), all.end(), known->first);
  if (at == all.end()) return Refuse(kInvalidArgument, "ncclCommDeregister: not registered");
  all.erase(at);
  delete known;
  return kSuccess;
}

int ncclCommWindowRegister(Communicator* handle, void* memory, size_t bytes, void** window, int flags) {
  SINCE(22703, "ncclCommWindowRegister");
  if (flags != 1 || reinterpret_cast<uintptr_t>(memory) % 4096 != 0) return Refuse(kInvalidArgument, "ncclCommWindowRegister: not a page, or other flags");
  return ncclCommRegister(handle, memory, bytes, window);
}

int ncclCommWindowDeregister(Communicator* handle, void* window) {
  SINCE(22703, "ncclCommWindowDeregister");
  return ncclCommDeregister(handle, window);
}

int ncclAlltoAll(Bytes from, void* to, size_t count, int type, Communicator* comm, void* stream) {
  SINCE(22803, "ncclAlltoAll");
  return Add(comm, "ncclAlltoAll", stream, {kAllToAll, From(from), To(to), count, type, 0, 0});
}
int ncclGather(Bytes from, void* to, size_t count, int type, int root, Communicator* comm, void* stream) {
  SINCE(22803, "ncclGather");
  return Add(comm, "ncclGather", stream, {kGather, From(from), To(to), count, type, 0, root});
}
int ncclScatter(Bytes from, void* to, size_t count, int type, int root, Communicator* comm, void* stream) {
  SINCE(22803, "ncclScatter");
  return Add(comm, "ncclScatter", stream, {kScatter, From(from), To(to), count, type, 0, root});
}

#endif

}  // extern "C"
