// What the machine allows: copy and read bandwidth of one thread and of two, and how long a flag takes from core to core. Prints JSON.
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { BYTES = 256 << 20, ROUNDS = 200000, TIMES = 5 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec * 1e-9;
}

static void* copier(void* memory) {
  char* from = memory;
  for (int i = 0; i < TIMES; i++) memcpy(from + BYTES / 2, from, BYTES / 2);
  return NULL;
}

typedef long long Words __attribute__((vector_size(32)));
static volatile long long sink;

static void* reader(void* memory) {
  Words sums[4] = {0};
  for (int i = 0; i < TIMES; i++)
    for (const Words* at = memory; at < (const Words*)((char*)memory + BYTES); at += 4)
      for (int j = 0; j < 4; j++) sums[j] ^= at[j];
  const Words all = sums[0] ^ sums[1] ^ sums[2] ^ sums[3];
  sink = all[0] ^ all[1] ^ all[2] ^ all[3];
  return NULL;
}

/** GB/s of `work` that goes through `bytes`, by one thread and by two at once. */
static void measure(void* (*work)(void*), char* memory[2], double bytes, double* one, double* two) {
  double start = now();
  work(memory[0]);
  *one = bytes / (now() - start) / 1e9;
  pthread_t thread;
  start = now();
  pthread_create(&thread, NULL, work, memory[1]);
  work(memory[0]);
  pthread_join(thread, NULL);
  *two = 2 * bytes / (now() - start) / 1e9;
}

static struct {
  _Alignas(256) atomic_int ping;
  _Alignas(256) atomic_int pong;
} flags;

static void* answerer(void* unused) {
  for (int i = 1; i <= ROUNDS; i++) {
    while (atomic_load_explicit(&flags.ping, memory_order_acquire) < i) continue;
    atomic_store_explicit(&flags.pong, i, memory_order_release);
  }
  return unused;
}

int main(void) {
  char* memory[2];
  for (int i = 0; i < 2; i++) memset(memory[i] = aligned_alloc(64, BYTES), 1, BYTES);
  double copied[2], read[2];
  measure(copier, memory, TIMES * (double)BYTES, &copied[0], &copied[1]);
  measure(reader, memory, TIMES * (double)BYTES, &read[0], &read[1]);
  pthread_t thread;
  pthread_create(&thread, NULL, answerer, NULL);
  const double start = now();
  for (int i = 1; i <= ROUNDS; i++) {
    atomic_store_explicit(&flags.ping, i, memory_order_release);
    while (atomic_load_explicit(&flags.pong, memory_order_acquire) < i) continue;
  }
  const double hop = (now() - start) / ROUNDS / 2 * 1e9;
  pthread_join(thread, NULL);
  printf("{\"oneThread\":%.1f,\"twoThreads\":%.1f,\"read\":[%.1f,%.1f],\"hop\":%.0f}\n", copied[0], copied[1], read[0], read[1], hop);
  return 0;
}
