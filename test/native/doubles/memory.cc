// The emulated devices' memory. All functions take a lock of their own.
#include "memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <map>
#include <mutex>
#include <random>
#include <vector>

#include "settings.h"

namespace cuda_double {
namespace {

constexpr size_t kPage = 4096;
constexpr size_t kAlign = 256;
constexpr uint32_t kMagic = 0x72616e6b;
/** Addresses, and bytes of a file with holes, that a process can ever allocate of a kind: as many as the system gives. */
constexpr size_t kMostBytes = size_t{1} << 40, kFewestBytes = size_t{1} << 33;
/** A NaN as float32, float16 and bfloat16, but not all bits set. */
constexpr uint32_t kPoison = 0x7fc17fc1;
constexpr size_t kMostPoison = 8 << 20;
constexpr std::byte kSlack{0xc5};

/** Of much memory only the ends, since all of it would have to be there. */
void Poison(std::byte* data, size_t bytes) {
  for (size_t i = 0; i + 4 <= bytes; i += 4) {
    if (i == kMostPoison && bytes > 2 * kMostPoison) i = (bytes - kMostPoison) / 4 * 4;
    std::memcpy(data + i, &kPoison, 4);
  }
}

struct Shape {
  uint32_t magic;
  int32_t process;
  int32_t file;
  int32_t device;
  uint64_t inode;
  uint64_t at, page_bytes, skipped, bytes;
};
static_assert(sizeof(Shape) <= sizeof(IpcHandle));

/** Addresses that are given out one after another, each with its place in the file. */
struct Arena {
  std::byte* memory = nullptr;
  size_t next = 0;
  bool Holds(const void* at) const { return memory && at >= memory && at < memory + next; }
};

struct Memory {
  std::mutex mutex;
  int file = -1;
  uint64_t inode = 0;
  /** Of devices, and of the host, which lies behind it in the file. */
  Arena device, pinned;
  size_t arena_bytes = 0;
  uint64_t ids = 0;
  /** Memory of devices cannot be touched now. */
  bool shut = false;
  std::map<const std::byte*, Allocation*> all;
  std::vector<uint64_t> used = std::vector<uint64_t>(64);

  bool Open() {
    if (device.memory) return true;
    file = memfd_create("libcuda-double", MFD_CLOEXEC);
    struct stat about;
    if (file < 0 || fstat(file, &about) != 0) return false;
    inode = about.st_ino;
    for (arena_bytes = kMostBytes; arena_bytes >= kFewestBytes; arena_bytes /= 8) {
      if (ftruncate(file, static_cast<off_t>(2 * arena_bytes)) != 0) continue;
      void* const memory = mmap(nullptr, 2 * arena_bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE, file, 0);
      if (memory == MAP_FAILED) continue;
      device.memory = static_cast<std::byte*>(memory);
      pinned.memory = device.memory + arena_bytes;
      return true;
    }
    return false;
  }

  void Shut(bool now) {
    if (now == shut) return;
    shut = now;
    if (now && device.next) mprotect(device.memory, device.next, PROT_NONE);
    for (const auto& [at, a] : all) {
      if (a->kind == Kind::kPinned || a->kind == Kind::kRegistered || a->kind == Kind::kMulticast) continue;
      if (now && (a->kind == Kind::kDevice || a->kind == Kind::kVirtual)) continue;
      mprotect(a->pages, a->page_bytes, now ? PROT_NONE : PROT_READ | PROT_WRITE);
    }
  }

  Allocation* Find(const void* at) {
    auto it = all.upper_bound(static_cast<const std::byte*>(at));
    if (it == all.begin()) return nullptr;
    Allocation* const found = std::prev(it)->second;
    return at < found->end() ? found : nullptr;
  }

  void GiveBack(const Allocation& a) {
    mprotect(a.pages, a.page_bytes, PROT_NONE);
    if (fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, a.pages - device.memory, static_cast<off_t>(a.page_bytes)) != 0) {
      Report("memory cannot be given back");
    }
  }

  void Free(Allocation* a) {
    Shut(false);
    all.erase(a->data);
    if (a->kind == Kind::kRegistered) {
      CountUp(kRegistered, -1);
      delete a;
      return;
    }
    if (a->kind == Kind::kImported) {
      munmap(a->pages, a->page_bytes + kPage);
      CountUp(kImports, -1);
      delete a;
      return;
    }
    if (a->kind == Kind::kVirtual || a->kind == Kind::kMulticast) {
      if (a->kind == Kind::kVirtual) {
        // Nothing is there any more; the addresses remain this process's.
        mmap(a->pages, a->page_bytes, PROT_NONE, MAP_SHARED | MAP_NORESERVE | MAP_FIXED, file, a->pages - device.memory);
      }
      delete a;
      return;
    }
    const auto is_slack = [](std::byte byte) { return byte == kSlack; };
    if (!std::all_of(a->pages, a->data, is_slack) || !std::all_of(a->data + a->bytes, a->pages + a->page_bytes, is_slack)) {
      Report("bytes next to %zu bytes of memory at %p were written", a->bytes, static_cast<void*>(a->data));
    }
    GiveBack(*a);
    if (a->kind == Kind::kDevice) {
      used[a->device] -= a->bytes;
      CountUp(kAllocations, -1);
      CountUp(kBytes, -static_cast<int64_t>(a->bytes));
    } else {
      CountUp(kHostAllocations, -1);
    }
    delete a;
  }
};

Memory& TheMemory() {
  static Memory* const memory = new Memory;
  return *memory;
}

}  // namespace

Allocation* Allocate(Kind kind, int device, size_t bytes) {
  const uint64_t most = SettingsNow().memory;
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  if (!memory.Open()) return nullptr;
  if (kind == Kind::kDevice && (bytes > most || memory.used[device] > most - bytes)) return nullptr;
  const size_t aligned = (bytes + kAlign - 1) / kAlign * kAlign, page_bytes = (aligned + kPage - 1) / kPage * kPage;
  Arena& arena = kind == Kind::kDevice ? memory.device : memory.pinned;
  if (page_bytes + kPage > memory.arena_bytes - arena.next) return nullptr;
  memory.Shut(false);
  std::byte* const pages = arena.memory + arena.next;
  if (mprotect(pages, page_bytes, PROT_READ | PROT_WRITE) != 0) return nullptr;
  arena.next += page_bytes + kPage;
  std::byte* const data = pages + page_bytes - aligned;
  std::fill(pages, data, kSlack);
  std::fill(data + bytes, pages + page_bytes, kSlack);
  Poison(data, bytes);
  auto* const allocation = new Allocation{data, bytes, kind, device, pages, page_bytes, ++memory.ids, 0, {}};
  memory.all[data] = allocation;
  if (kind == Kind::kDevice) {
    memory.used[device] += bytes;
    CountUp(kAllocations);
    CountUp(kBytes, static_cast<int64_t>(bytes));
  } else {
    CountUp(kHostAllocations);
  }
  return allocation;
}

Allocation* Register(void* at, size_t bytes) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  auto* const data = static_cast<std::byte*>(at);
  for (const auto& [known, allocation] : memory.all) {
    if (known < data + bytes && data < allocation->end()) return nullptr;
  }
  auto* const allocation = new Allocation{data, bytes, Kind::kRegistered, -1, nullptr, 0, ++memory.ids, 0, {}};
  memory.all[data] = allocation;
  CountUp(kRegistered);
  return allocation;
}

std::byte* Reserve(size_t bytes) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  if (!memory.Open() || bytes + kPage > memory.arena_bytes - memory.device.next) return nullptr;
  memory.Shut(false);
  std::byte* const at = memory.device.memory + memory.device.next;
  memory.device.next += bytes + kPage;
  return at;
}

Allocation* Map(Kind kind, int device, std::byte* at, size_t bytes, int file) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  memory.Shut(false);
  if (kind == Kind::kVirtual && mmap(at, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, kHeadBytes) == MAP_FAILED) return nullptr;
  return memory.all[at] = new Allocation{at, bytes, kind, device, at, bytes, ++memory.ids, 0, {}};
}

void PoisonFile(int file, size_t bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, kHeadBytes);
  if (data == MAP_FAILED) return;
  Poison(static_cast<std::byte*>(data), bytes);
  munmap(data, bytes);
}

bool Claim(int device, size_t bytes) {
  const uint64_t most = SettingsNow().memory;
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  if (bytes > most || memory.used[device] > most - bytes) return false;
  memory.used[device] += bytes;
  CountUp(kAllocations);
  CountUp(kBytes, static_cast<int64_t>(bytes));
  return true;
}

void Unclaim(int device, size_t bytes) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  memory.used[device] -= bytes;
  CountUp(kAllocations, -1);
  CountUp(kBytes, -static_cast<int64_t>(bytes));
}

void Free(Allocation* allocation) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  memory.Free(allocation);
}

Allocation* Find(const void* at) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  return memory.Find(at);
}

bool WasFreed(const void* at) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  return (memory.device.Holds(at) || memory.pinned.Holds(at)) && !memory.Find(at);
}

uint64_t BytesUsed(int device) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  return memory.used[device];
}

void FreeAllOf(int device) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  std::vector<Allocation*> of;
  for (const auto& [at, allocation] : memory.all) {
    if (allocation->kind == Kind::kDevice && allocation->device == device) of.push_back(allocation);
  }
  for (Allocation* allocation : of) memory.Free(allocation);
}

void Shut(bool now) {
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  memory.Shut(now);
}

void Describe(const Allocation& a, IpcHandle* handle) {
  Memory& memory = TheMemory();
  const Shape shape{kMagic,
                    getpid(),
                    memory.file,
                    a.device,
                    memory.inode,
                    static_cast<uint64_t>(a.pages - memory.device.memory),
                    a.page_bytes,
                    static_cast<uint64_t>(a.data - a.pages),
                    a.bytes};
  *handle = {};
  std::memcpy(handle, &shape, sizeof shape);
}

Result Import(const IpcHandle& handle, Allocation** allocation) {
  Shape shape;
  std::memcpy(&shape, &handle, sizeof shape);
  if (shape.magic != kMagic) return kInvalidValue;
  if (shape.process == getpid()) return kInvalidContext;  // as a real driver says it
  Memory& memory = TheMemory();
  const std::lock_guard lock(memory.mutex);
  memory.Shut(false);
  for (const auto& [at, known] : memory.all) {
    if (known->kind != Kind::kImported || std::memcmp(&known->handle, &handle, sizeof handle) != 0) continue;
    known->uses++;
    *allocation = known;
    return kSuccess;
  }
  char name[64];
  std::snprintf(name, sizeof name, "/proc/%d/fd/%d", shape.process, shape.file);
  const int file = open(name, O_RDWR | O_CLOEXEC);
  struct stat about;
  if (file < 0 || fstat(file, &about) != 0 || about.st_ino != shape.inode) {
    if (file >= 0) close(file);
    return kInvalidHandle;  // the process has ended, or is another one
  }
  void* const room = mmap(nullptr, shape.page_bytes + kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  void* const mapped = room == MAP_FAILED ? MAP_FAILED
                                          : mmap(room, shape.page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file,
                                                 static_cast<off_t>(shape.at));
  close(file);
  if (mapped == MAP_FAILED) return kOutOfMemory;
  auto* const pages = static_cast<std::byte*>(mapped);
  *allocation = new Allocation{pages + shape.skipped, shape.bytes,      Kind::kImported, shape.device, pages,
                               shape.page_bytes,      ++memory.ids, 1,               handle};
  memory.all[(*allocation)->data] = *allocation;
  CountUp(kImports);
  return kSuccess;
}

}  // namespace cuda_double
