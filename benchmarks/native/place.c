// place [-c CPU] [-t] COMMAND...: runs a command on one processor (-c), and without the kernel's large pages (-t).
#define _GNU_SOURCE
#include <sched.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "meter.h"

int main(int argc, char** argv) {
  int option;
  while ((option = getopt(argc, argv, "+c:t")) != -1) {
    if (option == 'c') {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(atoi(optarg), &set);
      if (sched_setaffinity(0, sizeof set, &set) != 0) fail("sched_setaffinity");
    } else if (option == 't') {
      if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0) fail("prctl(PR_SET_THP_DISABLE)");
    } else {
      return 2;
    }
  }
  if (optind >= argc) return 2;
  execvp(argv[optind], argv + optind);
  fail(argv[optind]);
  return 1;
}
