// Affinities of threads, where the system has them.
#include "processors.h"

#ifdef __linux__
#include <pthread.h>
#include <sched.h>
#endif

namespace rankmesh::cpu {

#ifdef __linux__

void Pin(int core) {
  cpu_set_t allowed;
  if (core < 0 || sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
    if (!CPU_ISSET(cpu, &allowed) || core-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    return;
  }
}

int Processor() { return sched_getcpu(); }

void MoveAway(const std::atomic<int>* const* taken, size_t count) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
  cpu_set_t free = allowed;
  for (size_t i = 0; i < count; i++)
    if (const int cpu = *taken[i]; cpu >= 0) CPU_CLR(cpu, &free);
  if (CPU_COUNT(&free) == 0 || pthread_setaffinity_np(pthread_self(), sizeof free, &free) != 0) return;
  // It is there now, and may be moved again.
  pthread_setaffinity_np(pthread_self(), sizeof allowed, &allowed);
}

#else

void Pin(int) {}
int Processor() { return -1; }
void MoveAway(const std::atomic<int>* const*, size_t) {}

#endif

}  // namespace rankmesh::cpu
