/** Bytes that are no message of this protocol: they are dropped and counted, and whoever sent them is told. */
export class MalformedError extends Error {
  override readonly name = 'MalformedError';
}
