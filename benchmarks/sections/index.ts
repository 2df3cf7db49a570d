/** All sections, in the order in which they are run and shown. */
import type { Section } from '../bench.js';
import { section as read } from './read.js';
import { section as trap } from './trap.js';

export const sections: readonly Section[] = [trap, read];
