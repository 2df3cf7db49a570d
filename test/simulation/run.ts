import { loadSimulation } from './addon.js';
import { Choices } from './choices.js';
import { simulate } from './world.js';
const native = loadSimulation();
const [from, count] = process.argv.slice(2).map(Number);
const begin = Date.now();
let bad = 0, events = 0, messages = 0, accesses = 0;
for (let seed = from; seed < from + count; seed++) {
  const out = simulate(native, new Choices(seed), count === 1);
  events += out.events; messages += out.messages; accesses += out.accesses;
  if (out.violation) { bad++; if (bad < 40) console.log(seed, out.violation.invariant, out.violation.message.slice(0, count > 100 ? 250 : 2500)); if (count === 1) console.log(JSON.stringify(out.plan), '\n' + out.trace.join('\n')); }
}
console.log({ bad, seconds: (Date.now() - begin) / 1000, perMinute: Math.round(count / (Date.now() - begin) * 60000), events: events / count, messages: messages / count, accesses: accesses / count });
