/** The guard alone, in C: the trap, the handler, one protection change, and the way back. */
import type { Meter, Section } from '../bench.js';

export const section: Section = {
  name: 'trap',
  title: 'Bare trap, in C, without Node',
  about: 'SIGSEGV with mprotect, and userfaultfd with SIGBUS; beside the floors: memcpy, the kernel\'s own page faults',
  only: 'one',
  async run(bench) {
    const meter = async (key: string, what: string, name: string, args: (string | number)[], bytes?: number): Promise<Meter | undefined> => {
      const started = await bench.unlessLeftOut(what, () => bench.program(0, name, args));
      return started && { key, what, reference: true, processes: 1, ...(bytes === undefined ? {} : { bytes }), take: (count) => started.program.take(count) };
    };
    await bench.measure([
      await meter('segv-read', 'SIGSEGV + mprotect, read', 'trap', ['segv', 'read']),
      await meter('segv-write', 'SIGSEGV + mprotect, write', 'trap', ['segv', 'write']),
      await meter('uffd-read', 'userfaultfd + SIGBUS, read', 'trap', ['uffd', 'read']),
      await meter('uffd-write', 'userfaultfd + SIGBUS, write', 'trap', ['uffd', 'write']),
      await meter('mprotect', 'one mprotect of a page', 'floors', ['mprotect']),
      await meter('map', "the kernel's fault that maps a page", 'floors', ['map']),
      await meter('zero', "the kernel's fault that makes a page", 'floors', ['zero']),
      await meter('copy-page', 'memcpy of 4 KiB', 'floors', ['copy', 4096], 4096),
    ], { samples: Math.min(bench.settings.samples, 1000), warmUp: Math.min(bench.settings.warmUp, 100) });
    await bench.measure([
      await meter('copy-large', 'memcpy of 16 MiB', 'floors', ['copy', 16 << 20], 16 << 20),
      await meter('copy-fresh', 'memcpy of 16 MiB into new memfd pages', 'floors', ['copy-fresh', 16 << 20], 16 << 20),
    ], { samples: bench.settings.quick ? 10 : 50, warmUp: 5, block: 5 });
  },
};
