/** What a member and its threads do with a function that was sent to them. */
import type { State, Thrown } from './members.js';

type Evaluated = (state: State, args: unknown) => unknown;

const known = new Map<string, Evaluated>();

/** The same source gives the same function, so that code which is run often gets optimised as it would in a program. */
export async function evaluate(source: string, state: State, args: unknown): Promise<any> { // eslint-disable-line @typescript-eslint/no-explicit-any
  let step = known.get(source);
  if (!step) known.set(source, step = (0, eval)(`(${source})`) as Evaluated);
  return await step(state, args);
}

export function thrown(error: unknown): Thrown {
  if (!(error instanceof Error)) return { name: 'Thrown', message: String(error), stack: '', fields: { thrown: plain(error) } };
  const fields: Record<string, unknown> = {};
  for (const [key, value] of Object.entries(error)) fields[key] = plain(value);
  if ('code' in error) fields.code = plain(error.code);
  return { name: error.name, message: error.message, stack: String(error.stack), fields };
}

/** What can't be copied is better seen as text than not at all. */
function plain(value: unknown): unknown {
  try {
    return structuredClone(value);
  } catch {
    return String(value);
  }
}

/** `using` is compiled to calls of helpers that the compiler puts at the top of a file, where sent functions can't see them. */
export function offerHelpers(): void {
  Object.assign(globalThis, {
    __addDisposableResource(env: { stack: Disposal[]; error: unknown; hasError: boolean }, value: any, async: boolean): unknown { // eslint-disable-line @typescript-eslint/no-explicit-any
      if (value === null || value === undefined) {
        if (async) env.stack.push({ async, dispose: undefined });
        return value;
      }
      const dispose = (async ? value[Symbol.asyncDispose] : undefined) ?? value[Symbol.dispose];
      if (typeof dispose !== 'function') throw new TypeError('Object not disposable.');
      env.stack.push({ async, dispose: () => dispose.call(value) });
      return value;
    },
    __disposeResources(env: { stack: Disposal[]; error: unknown; hasError: boolean }): Promise<void> | undefined {
      const fail = (error: unknown): void => {
        env.error = env.hasError ? Object.assign(new Error('An error was suppressed during disposal.'), { error, suppressed: env.error }) : error;
        env.hasError = true;
      };
      const next = (): Promise<void> | undefined => {
        for (let entry = env.stack.pop(); entry; entry = env.stack.pop()) {
          try {
            const result = entry.dispose?.();
            if (entry.async) return Promise.resolve(result).catch(fail).then(next);
          } catch (error) {
            fail(error);
          }
        }
        if (env.hasError) throw env.error;
        return undefined;
      };
      return next();
    },
  });
}

interface Disposal { async: boolean; dispose: (() => unknown) | undefined }
