// socket server|client unix|tcp WHERE POLL REQUEST ANSWER: a round trip of REQUEST bytes there and ANSWER bytes back, each
// side looking for POLL µs before it sleeps (0: it sleeps at once).
#define _GNU_SOURCE
#include "sockets.h"

static int fd;
static uint64_t poll_us;
static size_t request_bytes, answer_bytes;
static char* buffer;

static void take(uint64_t* samples, long count) {
  for (long i = 0; i < count; i++) {
    const uint64_t start = now_ns();
    send_all(fd, buffer, request_bytes);
    if (!receive_all(fd, buffer, answer_bytes, poll_us)) {
      fprintf(stderr, "the server has gone\n");
      exit(1);
    }
    samples[i] = now_ns() - start;
  }
}

int main(int argc, char** argv) {
  if (argc != 7) return 2;
  poll_us = strtoul(argv[4], NULL, 10);
  request_bytes = strtoul(argv[5], NULL, 10);
  answer_bytes = strtoul(argv[6], NULL, 10);
  buffer = calloc(1, request_bytes + answer_bytes);
  if (buffer == NULL) fail("calloc");
  if (strcmp(argv[1], "client") == 0) {
    fd = connect_to(argv[2], argv[3]);
    return run_meter(take);
  }
  fd = serve_one(argv[2], argv[3]);
  while (receive_all(fd, buffer, request_bytes, poll_us)) send_all(fd, buffer, answer_bytes);
  return 0;
}
