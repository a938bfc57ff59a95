// Checks of the double: memory without addresses, multicasts, and what must not be done with them.
#pragma once
#include "check.h"

namespace check {

using namespace cuda_double;

/** A multicast of both devices, memory of theirs, and the addresses of all that. */
struct Team {
  static constexpr size_t kBytes = 1 << 20;
  unsigned long long multicast = 0, memory[2] = {};
  DevicePointer to_all[2] = {}, own[2] = {};

  static DevicePointer Mapped(unsigned long long handle, int device) {
    DevicePointer at;
    GOOD(cuMemAddressReserve(&at, kBytes, 0, 0, 0));
    GOOD(cuMemMap(at, kBytes, 0, handle, 0));
    const MemoryAccess access{{1, device}, 3};
    GOOD(cuMemSetAccess(at, kBytes, &access, 1));
    return at;
  }
  static void Unmapped(DevicePointer at) {
    GOOD(cuMemUnmap(at, kBytes));
    GOOD(cuMemAddressFree(at, kBytes));
  }

  void Make() {
    const MulticastProperties properties{2, kBytes, 1, 0};
    GOOD(cuMulticastCreate(&multicast, &properties));
    for (int d = 0; d < 2; d++) {
      MemoryProperties of{1, 1, {1, d}, nullptr, {}};
      GIVES(kInvalidValue, cuMemCreate(&memory[d], kBytes + 4096, &of, 0));
      GOOD(cuMemCreate(&memory[d], kBytes, &of, 0));
      own[d] = Mapped(memory[d], d);
    }
    GOOD(cuMulticastAddDevice(multicast, 0));
    GIVES(kInvalidValue, cuMulticastAddDevice(multicast, 0));
    GOOD(cuMulticastAddDevice(multicast, 1));
    for (int d = 0; d < 2; d++) {
      GOOD(cuMulticastBindMem(multicast, 0, memory[d], 0, kBytes, 0));
      GIVES(kInvalidValue, cuMulticastBindMem(multicast, 0, memory[d], 0, kBytes, 0));
      to_all[d] = Mapped(multicast, d);
    }
  }
};

struct ToAllArgs {
  DevicePointer to;
  uint64_t count;
};

/** A store reaches both, by either device; all that there was goes. */
inline void Multicasts() {
  int supported = 0;
  Begin();
  GOOD(cuDeviceGetAttribute(&supported, 132, 0));
  TRUE(supported == 1);
  Team team;
  team.Make();
  for (int d = 0; d < 2; d++) {
    GOOD(cuCtxSetCurrent(contexts[d]));
    void* const stream = NewStream();
    GOOD(Launch("double_to_all", 2, 64, stream, ToAllArgs{team.to_all[d] + 16u * 100 * static_cast<unsigned>(d), 100}));
    GOOD(cuStreamSynchronize(stream));
    GOOD(cuStreamDestroy_v2(stream));
  }
  for (int d = 0; d < 2; d++) {
    GOOD(cuCtxSetCurrent(contexts[d]));
    void* const stream = NewStream();
    const auto words = Words(team.own[d], 800, stream);
    for (unsigned i = 0; i < 800; i++) TRUE(words[i] == i / 4 % 100);
    GOOD(cuStreamDestroy_v2(stream));
  }
  for (int d = 0; d < 2; d++) {
    Team::Unmapped(team.to_all[d]);
    GOOD(cuMulticastUnbind(team.multicast, d, 0, Team::kBytes));
    Team::Unmapped(team.own[d]);
    GOOD(cuMemRelease(team.memory[d]));
  }
  GOOD(cuMemRelease(team.multicast));
  Plant("multicast 0");
  const MulticastProperties properties{2, Team::kBytes, 1, 0};
  GIVES(kNotSupported, cuMulticastCreate(&team.multicast, &properties));
}

/** Stores once some memory is not bound any more, and reads, lose the device. */
inline void NoMulticast(const std::string& what) {
  Begin();
  Team team;
  team.Make();
  void* const stream = NewStream();
  if (what == "unbound") {
    GOOD(cuMulticastUnbind(team.multicast, 1, 0, Team::kBytes));
    GOOD(Launch("double_to_all", 1, 64, stream, ToAllArgs{team.to_all[0], 10}));
  } else {
    GOOD(LaunchAdd(team.to_all[0], 10, 1, stream));
  }
  GIVES(kIllegalAddress, cuStreamSynchronize(stream));
}

}  // namespace check
