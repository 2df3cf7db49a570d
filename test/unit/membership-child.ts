/** A process with one session, for membership.test.ts: told what to do by messages, and gone when its parent is. */
import { openEmbedded } from '../../lib/coordinator/membership/embedded.js';
import type { Session } from '../../lib/coordinator/membership/session.js';

const [, , cluster, name, silence] = process.argv;
const tell = (message: object): void => void process.send!(message);
let session: Session | undefined;

process.on('disconnect', () => process.exit(0));
process.on('message', ({ id, op, args }: { id: number; op: string; args: unknown }) => {
  const run = async (): Promise<unknown> => {
    if (op === 'leave') {
      await session!.leave(() => Promise.resolve(), 5000);
      return session!.close();
    }
    if (op === 'state') return session!.state;
    return session!.call(op, args);
  };
  run().then((value) => tell({ id, value }), (error: NodeJS.ErrnoException) => tell({ id, error: error.code ?? error.message }));
});

openEmbedded({ cluster, name, insecure: false, silence: Number(silence), joinTimeout: 10_000, setLease: () => undefined }, {
  state: (state) => tell({ event: 'state', state }),
  message: (envelope) => tell({ event: 'message', from: envelope.from }),
  tell: () => undefined,
  over: (error) => {
    tell({ event: 'over', code: (error as NodeJS.ErrnoException).code });
    void session?.close();
  },
  renewed: () => tell({ event: 'renewed' }),
}).then((opened) => {
  session = opened;
  tell({ event: 'open', self: opened.self, clusterId: opened.state.clusterId });
}, (error: NodeJS.ErrnoException) => tell({ event: 'failed', code: error.code, message: error.message }));
