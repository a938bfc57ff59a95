// Memory of the emulated devices: in one file without a name, so that other processes can map what a handle describes. Memory of the program that is
// registered is known here, and otherwise the program's.
//
// No address is given twice. What lies behind an allocation, and what was freed, cannot be touched; the slack that alignment leaves is
// looked at when memory is freed. New memory is filled with NaN of every float type.
#pragma once
#include <cstddef>
#include <cstdint>

#include "types.h"

namespace cuda_double {

enum class Kind { kDevice, kPinned, kImported, kRegistered, kVirtual, kMulticast };

struct Allocation {
  std::byte* data;
  size_t bytes;
  Kind kind;
  int device;
  /** What is mapped for it; of registered memory null. */
  std::byte* pages;
  size_t page_bytes;
  uint64_t id;
  /** Of imported memory: how often it was opened, and the handle. */
  int uses;
  IpcHandle handle;
  /** Of what is mapped: a bit for each device that may use it. */
  uint64_t access = 0;
  const std::byte* end() const { return data + bytes; }
};

/** `device` is the owner's; of pinned memory, -1. Null where none is left. */
Allocation* Allocate(Kind kind, int device, size_t bytes);
/** Null where some of it is known already. */
Allocation* Register(void* at, size_t bytes);
/** Addresses of devices, where nothing is yet; null where none are left. */
std::byte* Reserve(size_t bytes);
/** What lies before the bytes in a file of memory that has no addresses of its own. */
constexpr size_t kHeadBytes = 4096;
/** What lies at such addresses from now on: memory in such a file, or a multicast, where nothing lies. Null where the system refuses it. */
Allocation* Map(Kind kind, int device, std::byte* at, size_t bytes, int file);
/** New memory in such a file. */
void PoisonFile(int file, size_t bytes);
/** Counts bytes of a device that lie nowhere yet; false where there are not so many. */
bool Claim(int device, size_t bytes);
void Unclaim(int device, size_t bytes);
/** Takes it back; reports bytes next to it that were written. */
void Free(Allocation* allocation);
/** The allocation that holds an address; null for none. */
Allocation* Find(const void* at);
/** Whether the address was one of the devices' and is none now. */
bool WasFreed(const void* at);
/** Bytes of a device that are allocated. */
uint64_t BytesUsed(int device);
/** Frees what is left of a device's memory. */
void FreeAllOf(int device);

/**
 * Whether nobody may touch the memory of devices, as the host never may. It is open while the machine has work, and after every call that
 * changes what is allocated; shut, now and then, when the host has waited and nothing is left to be done.
 */
void Shut(bool now);

void Describe(const Allocation& allocation, IpcHandle* handle);
/** Maps another process's memory. */
Result Import(const IpcHandle& handle, Allocation** allocation);

}  // namespace cuda_double
