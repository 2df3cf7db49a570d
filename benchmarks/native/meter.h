// How these programs talk with the benchmark: they print "ready", then for each line with a number on stdin they take so
// many samples and print them, ns, on one line. The end of stdin ends them.
#pragma once

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define MOST_SAMPLES 100000

static inline uint64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static inline void fail(const char* what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(1);
}

// What this kernel or this user can't do is no error: the benchmark leaves it out and says why.
static inline void left_out(const char* what) {
  fprintf(stderr, "%s: %s\n", what, strerror(errno));
  exit(3);
}

static inline int run_meter(void (*take)(uint64_t* samples, long count)) {
  static uint64_t samples[MOST_SAMPLES];
  char line[64];
  printf("ready\n");
  fflush(stdout);
  while (fgets(line, sizeof line, stdin) != NULL) {
    const long count = strtol(line, NULL, 10);
    if (count < 1 || count > MOST_SAMPLES) {
      fprintf(stderr, "not a number of samples: %s", line);
      return 2;
    }
    take(samples, count);
    for (long i = 0; i < count; i++) printf("%llu%c", (unsigned long long)samples[i], i + 1 < count ? ' ' : '\n');
    fflush(stdout);
  }
  return 0;
}

// An order without a pattern, the same in every run.
static inline void shuffle(uint32_t* list, uint32_t count) {
  uint32_t seed = 12345;
  for (uint32_t i = 0; i < count; i++) list[i] = i;
  for (uint32_t i = count - 1; i > 0; i--) {
    seed = seed * 1664525u + 1013904223u;
    const uint32_t j = (uint32_t)(((uint64_t)seed * (i + 1)) >> 32);
    const uint32_t other = list[i];
    list[i] = list[j];
    list[j] = other;
  }
}
