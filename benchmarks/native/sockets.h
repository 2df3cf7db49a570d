// Stream sockets by kind: "unix" (abstract names) or "tcp" (a port of 127.0.0.1; 0: any).
#pragma once

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stddef.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "meter.h"

union any_address {
  struct sockaddr any;
  struct sockaddr_in tcp;
  struct sockaddr_un unix_name;
};

static inline int make_socket(const char* kind, const char* where, union any_address* address, socklen_t* length) {
  memset(address, 0, sizeof *address);
  int fd;
  if (strcmp(kind, "tcp") == 0) {
    address->tcp.sin_family = AF_INET;
    address->tcp.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address->tcp.sin_port = htons((uint16_t)atoi(where));
    *length = sizeof address->tcp;
    fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  } else {
    address->unix_name.sun_family = AF_UNIX;
    // The first byte of an abstract name is zero.
    strncpy(address->unix_name.sun_path + 1, where, sizeof address->unix_name.sun_path - 2);
    *length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(where));
    fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  }
  if (fd < 0) fail("socket");
  return fd;
}

static inline void no_delay(const char* kind, int fd) {
  const int one = 1;
  if (strcmp(kind, "tcp") == 0 && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) != 0) fail("TCP_NODELAY");
}

// Prints "ready PORT", and waits for the one client.
static inline int serve_one(const char* kind, const char* where) {
  union any_address address;
  socklen_t length;
  const int listener = make_socket(kind, where, &address, &length);
  if (bind(listener, &address.any, length) != 0) fail("bind");
  if (listen(listener, 1) != 0) fail("listen");
  length = sizeof address;
  if (getsockname(listener, &address.any, &length) != 0) fail("getsockname");
  printf("ready %d\n", strcmp(kind, "tcp") == 0 ? ntohs(address.tcp.sin_port) : 0);
  fflush(stdout);
  const int fd = accept(listener, NULL, NULL);
  if (fd < 0) fail("accept");
  close(listener);
  no_delay(kind, fd);
  return fd;
}

static inline int connect_to(const char* kind, const char* where) {
  union any_address address;
  socklen_t length;
  const int fd = make_socket(kind, where, &address, &length);
  if (connect(fd, &address.any, length) != 0) fail("connect");
  no_delay(kind, fd);
  return fd;
}

static inline void send_all(int fd, const char* bytes, size_t length) {
  while (length > 0) {
    const ssize_t sent = send(fd, bytes, length, MSG_NOSIGNAL);
    if (sent < 0 && errno == EINTR) continue;
    if (sent <= 0) fail("send");
    bytes += sent;
    length -= (size_t)sent;
  }
}

// Looks for so many µs before it sleeps. 0: the other end is gone.
static inline int receive_all(int fd, char* bytes, size_t length, uint64_t poll_us) {
  const uint64_t until = poll_us > 0 ? now_ns() + poll_us * 1000 : 0;
  int polls = poll_us > 0;
  while (length > 0) {
    const ssize_t got = recv(fd, bytes, length, polls ? MSG_DONTWAIT : 0);
    if (got == 0) return 0;
    if (got < 0 && errno == EINTR) continue;
    if (got < 0 && errno == EAGAIN && polls) {
      polls = now_ns() < until;
      continue;
    }
    if (got < 0) fail("recv");
    bytes += got;
    length -= (size_t)got;
  }
  return 1;
}
