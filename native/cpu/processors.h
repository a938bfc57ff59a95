// Which processors the threads of queues run on. The system wakes a thread near the one that wakes it, so that all of them come to share one; and
// of threads that give way to each other none is moved, since each has just run. So they keep apart themselves.
#pragma once
#include <atomic>
#include <cstddef>

namespace rankmesh::cpu {

/** Keeps this thread on the processor that comes at `core` among those it may run on; nothing for a negative one. */
void Pin(int core);

/** The processor that this thread is on, or -1 where the system does not say. */
int Processor();

/** Moves this thread to a processor that it may run on and that `taken` says nobody has; stays where there is none. Costs some microseconds. */
void MoveAway(const std::atomic<int>* const* taken, size_t count);

}  // namespace rankmesh::cpu
