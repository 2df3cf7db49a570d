/** Which mechanism stops an access to a page that is not here. */
import { makeError } from './errors.js';
import { GuardKind, native } from './native.js';
import type { CoordinatorSettings } from './calls.js';

/**
 * @returns what `guard` means on this machine: userfaultfd, if it is asked for or works here
 * @throws GuardUnavailableError if it, or `systemCalls`, is asked for and does not work here
 */
export function chooseGuard({ guard, systemCalls }: Pick<CoordinatorSettings, 'guard' | 'systemCalls'>): GuardKind {
  if (guard === 'mprotect') return GuardKind.Mprotect;
  const lacks = native.userfaultfdLacks(systemCalls);
  if (lacks === null) return systemCalls ? GuardKind.WithSystemCalls : GuardKind.Userfaultfd;
  if (guard === 'auto' && !systemCalls) return GuardKind.Mprotect;
  const fields = { guard, syscall: lacks.syscall, errno: lacks.errno };
  const what = `${lacks.syscall}: ${lacks.message}`;
  if (systemCalls && native.userfaultfdLacks() === null) {
    throw makeError('ERR_FAULTLINE_GUARD_UNAVAILABLE', `systemCalls does not work here: ${what}. It needs Linux 6.6 or later, and a privilege: CAP_SYS_PTRACE, access to /dev/userfaultfd, or vm.unprivileged_userfaultfd = 1`, fields);
  }
  throw makeError('ERR_FAULTLINE_GUARD_UNAVAILABLE', `guard 'userfaultfd' does not work here: ${what}. It needs Linux 6.4 or later with userfaultfd, which a container's seccomp profile may forbid; 'auto' takes mprotect then`, fields);
}
