// What the machine allows: copy bandwidth of one thread and of two, and how long a flag takes from core to core. Prints JSON.
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
  for (int i = 0; i < 2; i++) memset(memory[i] = malloc(BYTES), 1, BYTES);
  double start = now();
  copier(memory[0]);
  const double one = TIMES * (double)BYTES / (now() - start) / 1e9;
  pthread_t thread;
  start = now();
  pthread_create(&thread, NULL, copier, memory[1]);
  copier(memory[0]);
  pthread_join(thread, NULL);
  const double two = 2 * TIMES * (double)BYTES / (now() - start) / 1e9;
  pthread_create(&thread, NULL, answerer, NULL);
  start = now();
  for (int i = 1; i <= ROUNDS; i++) {
    atomic_store_explicit(&flags.ping, i, memory_order_release);
    while (atomic_load_explicit(&flags.pong, memory_order_acquire) < i) continue;
  }
  const double hop = (now() - start) / ROUNDS / 2 * 1e9;
  pthread_join(thread, NULL);
  printf("{\"oneThread\":%.1f,\"twoThreads\":%.1f,\"hop\":%.0f}\n", one, two, hop);
  return 0;
}
