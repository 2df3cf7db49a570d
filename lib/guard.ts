/** Which mechanism stops an access to a page that is not here. */
import { makeError } from './errors.js';
import { GuardKind, native } from './native.js';
import type { CoordinatorSettings } from './calls.js';

/**
 * @returns what `wanted` means on this machine: userfaultfd, if it is asked for or works here
 * @throws GuardUnavailableError if it is asked for and does not
 */
export function chooseGuard(wanted: CoordinatorSettings['guard']): GuardKind {
  if (wanted === 'mprotect') return GuardKind.Mprotect;
  const lacks = native.userfaultfdLacks();
  if (lacks === null) return GuardKind.Userfaultfd;
  if (wanted === 'auto') return GuardKind.Mprotect;
  throw makeError('ERR_FAULTLINE_GUARD_UNAVAILABLE', `guard 'userfaultfd' does not work here: ${lacks.syscall}: ${lacks.message}. It needs Linux 6.4 or later with userfaultfd, which a container's seccomp profile may forbid; 'auto' takes mprotect then`, { guard: wanted, syscall: lacks.syscall, errno: lacks.errno });
}
