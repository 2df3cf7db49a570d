/** A worker thread of a member: runs the functions that member.ts hands on. It loads the package only if it is told to. */
import { createRequire } from 'node:module';
import { parentPort, workerData } from 'node:worker_threads';
import { evaluate, offerHelpers, thrown } from './evaluate.js';
import type { Reply, State } from './members.js';

const { given, load } = workerData as { given: object; load: boolean };
const requireHere = createRequire(__filename);
const importModule = (specifier: string): Promise<unknown> => import(specifier);

const state = {
  ...given,
  regions: {},
  require: requireHere,
  import: importModule,
  tell: (name: string, value?: unknown) => parentPort!.postMessage({ told: name, value } satisfies Reply),
} as unknown as State;
offerHelpers();
if (load) {
  const { join, attempt } = state.faultline = requireHere('faultline') as State['faultline'];
  Object.assign(state, { join, attempt });
}

parentPort!.on('message', async ({ id, run, args }: { id: number; run: string; args: unknown }) => {
  try {
    parentPort!.postMessage({ id, value: await evaluate(run, state, args) } satisfies Reply);
  } catch (error) {
    parentPort!.postMessage({ id, thrown: thrown(error) } satisfies Reply);
  }
});
parentPort!.postMessage('ready');
