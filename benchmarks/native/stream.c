// stream server unix|tcp WHERE / stream client unix|tcp WHERE BYTES: how fast bytes can come into memory that is new.
// A sample: one request, BYTES received into a fresh memfd through one mapping, all of them read through another.
#define _GNU_SOURCE
#include <sys/mman.h>

#include "sockets.h"

#define CHUNK (256u << 10)
#define LARGEST (1u << 30)

static int fd;
static uint64_t bytes;
static volatile uint64_t result;

static char* map_all(int memory, int protection) {
  char* at = mmap(NULL, bytes, protection, MAP_SHARED, memory, 0);
  if (at == MAP_FAILED) fail("mmap");
  return at;
}

static void take(uint64_t* samples, long count) {
  for (long i = 0; i < count; i++) {
    const int memory = memfd_create("stream", MFD_CLOEXEC);
    if (memory < 0 || ftruncate(memory, (off_t)bytes) != 0) fail("memfd_create");
    char* into = map_all(memory, PROT_READ | PROT_WRITE);
    const char* view = map_all(memory, PROT_READ);
    const uint64_t start = now_ns();
    send_all(fd, (const char*)&bytes, sizeof bytes);
    uint64_t sum = 0;
    for (uint64_t done = 0; done < bytes;) {
      const uint64_t length = bytes - done < CHUNK ? bytes - done : CHUNK;
      if (!receive_all(fd, into + done, length, 0)) {
        fprintf(stderr, "the server has gone\n");
        exit(1);
      }
      const uint64_t* words = (const uint64_t*)(view + done);
      for (uint64_t word = 0; word < length / 8; word++) sum += words[word];
      done += length;
    }
    samples[i] = now_ns() - start;
    result = sum;
    munmap(into, bytes);
    munmap((void*)view, bytes);
    close(memory);
  }
}

int main(int argc, char** argv) {
  if (argc < 4) return 2;
  if (strcmp(argv[1], "client") == 0) {
    if (argc != 5) return 2;
    bytes = strtoull(argv[4], NULL, 10);
    fd = connect_to(argv[2], argv[3]);
    return run_meter(take);
  }
  fd = serve_one(argv[2], argv[3]);
  // What is sent has been in the caches no more than a region has.
  char* memory = NULL;
  uint64_t have = 0;
  uint64_t wanted = 0;
  while (receive_all(fd, (char*)&wanted, sizeof wanted, 0)) {
    if (wanted > LARGEST) return 2;
    if (wanted > have) {
      memory = realloc(memory, wanted);
      if (memory == NULL) fail("realloc");
      memset(memory, 7, wanted);
      have = wanted;
    }
    for (uint64_t done = 0; done < wanted; done += CHUNK) send_all(fd, memory + done, wanted - done < CHUNK ? wanted - done : CHUNK);
  }
  return 0;
}
