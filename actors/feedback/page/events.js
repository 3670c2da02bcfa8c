// What is done on the page, in batches, and the clock that leaves pauses out.
import { call, makeKey, session, SignedOut } from "./api.js";

const BATCH = 100; // a keepalive request may carry 64 KiB
const MOST_KEPT = 1000;
const EVERY_MS = 5000;

/** Seconds that pass while nothing holds it: a pause, a hidden tab, a lost session. */
export class Clock {
  #holds = new Set();
  #ran_s = 0;
  #since = performance.now();

  get seconds() {
    return this.#ran_s + (this.#holds.size ? 0 : (performance.now() - this.#since) / 1000);
  }

  hold(reason) {
    this.#ran_s = this.seconds;
    this.#holds.add(reason);
  }

  release(reason) {
    if (this.#holds.delete(reason) && !this.#holds.size) this.#since = performance.now();
  }
}

let waiting = [];
let timer = null;

/** Notes an event. Seconds are those since the last event of the kind: the sum is what counts. */
export function record(kind, presentation, value = 1, place = null) {
  waiting.push({ rater: session.rater, event: { key: makeKey(), presentation, kind, place, value } });
  waiting = waiting.slice(-MOST_KEPT);
  timer ??= setTimeout(flush, EVERY_MS);
}

/** Sends what waits. `leaving`: the page may be gone before the answer is here. What fails is sent again with the next. */
export async function flush({ leaving = false } = {}) {
  clearTimeout(timer);
  timer = null;
  const batch = waiting.filter(({ rater }) => rater === session.rater).slice(0, BATCH);
  if (!batch.length) return;
  waiting = waiting.filter((item) => !batch.includes(item));
  try {
    const events = batch.map(({ event }) => event);
    await call("POST", "/api/events", { events }, { keepalive: leaving });
  } catch (error) {
    // A refused batch would be refused again; the others come once more, with the same keys.
    if (error.status === undefined || error.status >= 429) waiting = [...batch, ...waiting];
    if (error instanceof SignedOut) return;
  }
  if (waiting.length) timer ??= setTimeout(flush, EVERY_MS);
}
