/** Simulated time: what is due, in the order of its time; at equal times in the order of its making. */
interface Event { time: number; order: number; owner: number; run: () => void }

export class Events {
  /** µs. */
  now = 1_000_000;
  private heap: Event[] = [];
  private order = 0;

  /** owner: the member that it happens at, 0 for nobody's. */
  at(time: number, owner: number, run: () => void): void {
    const event = { time, order: ++this.order, owner, run };
    const { heap } = this;
    let index = heap.length;
    heap.push(event);
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!before(event, heap[parent])) break;
      heap[index] = heap[parent];
      index = parent;
    }
    heap[index] = event;
  }

  after(delay: number, owner: number, run: () => void): void {
    this.at(this.now + delay, owner, run);
  }

  take(): Event | undefined {
    const { heap } = this;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || first === last) return first;
    let index = 0;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && before(heap[child + 1], heap[child])) child++;
      if (!before(heap[child], last)) break;
      heap[index] = heap[child];
      index = child;
    }
    heap[index] = last;
    return first;
  }
}

function before(a: Event, b: Event): boolean {
  return a.time < b.time || (a.time === b.time && a.order < b.order);
}
