// place [-c CPU] [-t] [-d] COMMAND...: runs a command on one processor (-c), without the kernel's large pages (-t), until
// the process that started it is gone (-d).
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "meter.h"

int main(int argc, char** argv) {
  int option;
  while ((option = getopt(argc, argv, "+c:td")) != -1) {
    if (option == 'c') {
      cpu_set_t set;
      CPU_ZERO(&set);
      CPU_SET(atoi(optarg), &set);
      if (sched_setaffinity(0, sizeof set, &set) != 0) fail("sched_setaffinity");
    } else if (option == 't') {
      if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0) != 0) fail("prctl(PR_SET_THP_DISABLE)");
    } else if (option == 'd') {
      if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0) fail("prctl(PR_SET_PDEATHSIG)");
    } else {
      return 2;
    }
  }
  if (optind >= argc) return 2;
  execvp(argv[optind], argv + optind);
  fail(argv[optind]);
  return 1;
}
