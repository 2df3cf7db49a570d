// socket server|client unix|tcp WHERE POLL REQUEST ANSWER [PAGE]: a round trip of REQUEST bytes there and ANSWER bytes back,
// each side looking for POLL µs before it sleeps (0: it sleeps at once). With PAGE the answer is followed by so many bytes,
// which the server sends from one page of a large memory after the other, and the client receives into new pages of a
// memfd: what a fault cannot avoid.
#define _GNU_SOURCE
#include <sys/mman.h>

#include "sockets.h"

#define PAGES 4096u

static int fd;
static uint64_t poll_us;
static size_t request_bytes, answer_bytes, page_bytes;
static char* buffer;
static char* pages;
static uint32_t order[PAGES];
static uint32_t next_page = 0;

static char* page(int is_client) {
  if (next_page == PAGES) {
    next_page = 0;
    if (is_client && madvise(pages, PAGES * page_bytes, MADV_REMOVE) != 0) fail("madvise");
  }
  return pages + order[next_page++] * page_bytes;
}

static void take(uint64_t* samples, long count) {
  for (long i = 0; i < count; i++) {
    char* into = page_bytes > 0 ? page(1) : NULL;
    const uint64_t start = now_ns();
    send_all(fd, buffer, request_bytes);
    if (!receive_all(fd, buffer, answer_bytes, poll_us) || (into != NULL && !receive_all(fd, into, page_bytes, poll_us))) {
      fprintf(stderr, "the server has gone\n");
      exit(1);
    }
    samples[i] = now_ns() - start;
  }
}

static void answer(void) {
  if (page_bytes == 0) return send_all(fd, buffer, answer_bytes);
  struct iovec parts[] = {{buffer, answer_bytes}, {page(0), page_bytes}};
  const struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
  // A stream socket that blocks takes all of so little.
  if (sendmsg(fd, &message, MSG_NOSIGNAL) != (ssize_t)(answer_bytes + page_bytes)) fail("sendmsg");
}

int main(int argc, char** argv) {
  if (argc != 7 && argc != 8) return 2;
  poll_us = strtoul(argv[4], NULL, 10);
  request_bytes = strtoul(argv[5], NULL, 10);
  answer_bytes = strtoul(argv[6], NULL, 10);
  page_bytes = argc == 8 ? strtoul(argv[7], NULL, 10) : 0;
  const int is_client = strcmp(argv[1], "client") == 0;
  buffer = calloc(1, request_bytes + answer_bytes);
  if (buffer == NULL) fail("calloc");
  if (page_bytes > 0) {
    const int memory = memfd_create("socket", MFD_CLOEXEC);
    if (memory < 0 || ftruncate(memory, (off_t)(PAGES * page_bytes)) != 0) fail("memfd_create");
    pages = mmap(NULL, PAGES * page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (pages == MAP_FAILED) fail("mmap");
    if (!is_client) memset(pages, 7, PAGES * page_bytes);
    shuffle(order, PAGES);
  }
  if (is_client) {
    fd = connect_to(argv[2], argv[3]);
    return run_meter(take);
  }
  fd = serve_one(argv[2], argv[3]);
  while (receive_all(fd, buffer, request_bytes, poll_us)) answer();
  return 0;
}
