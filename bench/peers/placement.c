// Where the system has put two processors, as JSON: nanoseconds for a cache line to go from one to the other, GB/s that one and both read.
// cc -O3 -march=native -pthread placement.c -o placement
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define HOPS 20000
#define FLOATS ((size_t)48 << 20)

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void pin(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu, &set);
  sched_setaffinity(0, sizeof set, &set);
}

static _Alignas(256) atomic_int ping;
static _Alignas(256) atomic_int pong;
static _Alignas(256) atomic_int ready;
static float *data;
static volatile float sink;

static void *answer(void *unused) {
  pin(1);
  for (int i = 1; i <= HOPS; i++) {
    while (atomic_load_explicit(&ping, memory_order_acquire) < i) __builtin_ia32_pause();
    atomic_store_explicit(&pong, i, memory_order_release);
  }
  return unused;
}

static void read_all(const float *from) {
  typedef float vec __attribute__((vector_size(64)));
  vec sum[8] = {0};
  for (size_t i = 0; i < FLOATS / 2; i += 128)
    for (int j = 0; j < 8; j++) sum[j] += *(const vec *)(from + i + 16 * j);
  for (int j = 1; j < 8; j++) sum[0] += sum[j];
  sink = sum[0][0];
}

static void *reader(void *unused) {
  pin(1);
  while (!atomic_load(&ready)) __builtin_ia32_pause();
  for (int i = 0; i < 4; i++) read_all(data + FLOATS / 2);
  return unused;
}

int main(void) {
  pthread_t thread;
  data = mmap(0, FLOATS * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  madvise(data, FLOATS * 4, MADV_HUGEPAGE);
  memset(data, 0, FLOATS * 4);
  pin(0);
  pthread_create(&thread, 0, answer, 0);
  double start = now();
  for (int i = 1; i <= HOPS; i++) {
    atomic_store_explicit(&ping, i, memory_order_release);
    while (atomic_load_explicit(&pong, memory_order_acquire) < i) __builtin_ia32_pause();
  }
  double hop = (now() - start) / HOPS / 2 * 1e9;
  pthread_join(thread, 0);
  start = now();
  for (int i = 0; i < 4; i++) read_all(data);
  double one = 4.0 * FLOATS * 2 / (now() - start) / 1e9;
  pthread_create(&thread, 0, reader, 0);
  start = now();
  atomic_store(&ready, 1);
  for (int i = 0; i < 4; i++) read_all(data);
  pthread_join(thread, 0);
  double two = 8.0 * FLOATS * 2 / (now() - start) / 1e9;
  printf("{\"hop\": %.0f, \"oneThread\": %.1f, \"twoThreads\": %.1f}\n", hop, one, two);
  return 0;
}
