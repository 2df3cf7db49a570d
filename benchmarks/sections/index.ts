/** All sections, in the order in which they are run and shown. */
import type { Section } from '../bench.js';
import { section as access } from './access.js';
import { section as budget } from './budget.js';
import { section as chase } from './chase.js';
import { section as growth } from './growth.js';
import { section as local } from './local.js';
import { section as mappings } from './mappings.js';
import { section as messages } from './messages.js';
import { section as pagesize } from './pagesize.js';
import { section as pingpong } from './pingpong.js';
import { section as prefetch } from './prefetch.js';
import { section as read } from './read.js';
import { section as scan } from './scan.js';
import { section as stages } from './stages.js';
import { section as sync } from './sync.js';
import { section as trap } from './trap.js';
import { section as write } from './write.js';

export const sections: readonly Section[] = [trap, local, access, read, write, pingpong, scan, chase, prefetch, sync, growth, budget, pagesize, messages, mappings, stages];
