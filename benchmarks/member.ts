/** One of the processes that are measured. It does what the benchmark's process says; it ends when that one is gone. */
import path from 'node:path';
import type { FromMember, ToMember } from './party.js';
import { State, type Actions } from './state.js';

const state = new State();

process.on('message', (message: ToMember) => {
  const [module, name] = message.call.split('#');
  const answer = (response: FromMember): void => void process.send?.(response);
  void (async () => {
    const { actions } = require(path.join(__dirname, `${module}.js`)) as { actions: Actions };
    return await actions[name](state, message.args as never);
  })().then(
    (value) => answer({ id: message.id, value }),
    (error: unknown) => answer({ id: message.id, error: error instanceof Error ? error.stack ?? error.message : String(error) }),
  );
});

process.once('disconnect', () => process.exit(0));
