// What a test wants of the double: how many devices of which size, and faults. Given as text, by a variable or by a file that may change.
//
// RANKMESH_CUDA_DOUBLE holds settings divided by `;`. RANKMESH_CUDA_DOUBLE_CONTROL names a file of 8192 bytes that processes share: a word
// that changes when the text behind it has (its length, then settings), and, from byte 4096 on, 64-bit counters of what there is (`Count`).
#pragma once
#include <atomic>
#include <cstdint>

namespace cuda_double {

struct Settings {
  /** `devices N` */
  int devices = 2;
  /** `memory BYTES`, of each device. */
  uint64_t memory = uint64_t{4} << 30;
  /** `version V`, as cuDriverGetVersion gives it. */
  int version = 13000;
  /** `capability 90` */
  int capability = 90;
  /** `multiprocessors N`: each holds 2048 threads. */
  int multiprocessors = 4;
  /** `seed N`: of the order in which streams, blocks and warps take turns. */
  uint32_t seed = 1;
  /** `peers 0`: no device reaches the memory of another. */
  bool peers = true;
  /** `multicast 1`: devices have multicasts. */
  bool multicast = false;
  /** `uuid N`: of the first device, the others' follow; devices of the same number are the same device for all processes. */
  int uuid = 0;
  /** `fabric 1`: handles of memory and of multicasts may be a fabric's; 2: devices say so, and the driver refuses it. */
  int fabric = 0;
  /** `shut MILLISECONDS` from one time that devices' memory is shut to the host to the next, which takes long where there is much. */
  uint32_t shut = 40;
};
const Settings& SettingsNow();

/** Nanoseconds that kernels of a device wait before they start: `delay DEVICE MICROSECONDS`. */
uint64_t DelayOf(int device);

/** Counts a call of a function and gives the error that it is to return: `fail FUNCTION NTH CODE`, 1 for the next call. */
int Entered(const char* function);

/** Counts a piece of work of a device and gives the error that it is to end with: `lose DEVICE NTH CODE`. */
int LostBy(int device);

enum Count {
  kAllocations,
  kBytes,
  kHostAllocations,
  kStreams,
  kEvents,
  kGraphs,
  kLibraries,
  kImports,
  kRegistered,
  /** Handles of memory and of multicasts, addresses, what is mapped there, and what is bound. */
  kVirtual,
  kMulticastStores,
  kKernels,
  kCopies,
  kReports,
  kCounts
};
void CountUp(Count what, int64_t by = 1);

/** Says loudly what is wrong with the program, on stderr, and counts it. */
void Report(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace cuda_double
