/** The command line. */
import { Command, InvalidArgumentError, Option } from 'commander';
import { placements, type PlacementName } from './placement.js';

export interface Settings {
  sections: string[];
  placements: PlacementName[];
  /** Of each kind of fault in each placement. */
  samples: number;
  warmUp: number;
  quick: boolean;
  guard?: 'mprotect' | 'userfaultfd' | 'auto';
  json?: string;
  /** Folder. */
  plots?: string;
  compare?: string;
  list: boolean;
}

const SAMPLES = 2000;
/** Enough for the compilers of both processes to have done their work, where a fault does not wake the coordinators. */
const WARM_UP = 1000;
/** Until V8 has compiled what a fault, a lock or a barrier runs through in two coordinators, which takes longer than for any of the references. */
export const COORDINATORS_WARM_UP = 6000;
const QUICK_SAMPLES = 100;
const QUICK_WARM_UP = 50;
const MOST_SAMPLES = 20_000;

/** Faults before those that count, where `least` are needed. */
export const warmUpOf = ({ quick, warmUp }: Settings, least: number): number => (quick ? warmUp : Math.max(warmUp, least));

function whole(least: number) {
  return (text: string): number => {
    const value = Number(text);
    if (text.trim() === '' || !Number.isInteger(value) || value < least || value > MOST_SAMPLES) throw new InvalidArgumentError(`a whole number from ${least} to ${MOST_SAMPLES}`);
    return value;
  };
}

/** A list with commas, also given several times. */
function several<T extends string>(known: readonly T[]) {
  return (text: string, before: T[] | undefined): T[] => {
    const list = text.split(',').map((name) => name.trim()).filter((name) => name !== '');
    if (list.length === 0) throw new InvalidArgumentError('a name, or several with commas');
    for (const name of list) {
      if (name !== 'all' && !known.includes(name as T)) throw new InvalidArgumentError(`there is ${known.join(', ')} and all, but no '${name}'`);
    }
    return known.filter((name) => list.includes('all') || list.includes(name) || before?.includes(name));
  };
}

/** @throws CommanderError for arguments that make no sense, and for --help */
export function parseSettings(args: readonly string[], sections: readonly string[], command = new Command()): Settings {
  const names = placements.map(({ name }) => name);
  command
    .name('faultline bench')
    .description('What a remote page fault costs, and where the time goes, beside other ways to fetch a page')
    .addOption(new Option('-s, --section <names>', 'what to measure: see --list').argParser(several(sections)))
    .addOption(new Option('-p, --placement <names>', `where the processes run: ${names.join(', ')}`).argParser(several(names)))
    .option('-n, --samples <n>', `faults of each kind in each placement (default: ${SAMPLES})`, whole(10))
    .option('--warm-up <n>', `faults before those that count (default: ${WARM_UP})`, whole(0))
    .addOption(new Option('-g, --guard <name>', 'what stops accesses: see docs/guards.md (default: FAULTLINE_GUARD, else auto)').choices(['mprotect', 'userfaultfd', 'auto']))
    .option('--quick', 'a few samples of everything: whether it works, not what it costs', false)
    .option('--json <file>', 'also write all figures there')
    .option('--plots <folder>', 'also draw them, as SVG files')
    .option('--compare <file>', 'compare with a JSON file of an earlier run')
    .option('--list', 'list the sections', false)
    .allowExcessArguments(false)
    .exitOverride();
  command.parse(args, { from: 'user' });
  const given = command.opts<{ section?: string[]; placement?: PlacementName[]; samples?: number; warmUp?: number; quick: boolean; guard?: Settings['guard']; json?: string; plots?: string; compare?: string; list: boolean }>();
  const { section, placement, samples, warmUp, ...rest } = given;
  return {
    ...rest,
    sections: section ?? [...sections],
    placements: placement ?? names,
    samples: samples ?? (given.quick ? QUICK_SAMPLES : SAMPLES),
    warmUp: warmUp ?? (given.quick ? QUICK_WARM_UP : WARM_UP),
  };
}
