// Judgements on their way. Each is kept in sessionStorage under its key from before the first attempt until the server has
// acknowledged it, so neither a lost connection nor a reload nor a restarted server loses one or counts one twice.
import { call, insist, session, SignedOut } from "./api.js";

const SHELF = "polyphony.outbox";

function read() {
  try {
    return JSON.parse(sessionStorage.getItem(SHELF)) ?? [];
  } catch {
    return []; // no storage in this browser, or not ours: what follows is kept in memory alone
  }
}

export class Outbox {
  #entries = read();
  #waiting = new Map();
  #draining = false;

  /** `complain` hears of refused entries that nobody waits for, `signedOut` that the session is over. */
  constructor({ complain, signedOut }) {
    Object.assign(this, { complain, signedOut });
  }

  /** How many entries of this rater are not yet acknowledged. */
  get numPending() {
    return this.#entries.filter((entry) => entry.rater === session.rater).length;
  }

  /** Sends `body` (with its `key`) to `path`, after all that came before. Resolves with the answer, rejects if refused. */
  add(path, body) {
    this.#entries.push({ path, body, rater: session.rater });
    this.#save();
    const answer = new Promise((resolve, reject) => this.#waiting.set(body.key, { resolve, reject }));
    this.drain();
    return answer;
  }

  /** Delivers what is waiting, in order; after a log-in this takes up where it stopped. */
  async drain() {
    if (this.#draining) return;
    this.#draining = true;
    try {
      let entry;
      while ((entry = this.#entries.find(({ rater }) => rater === session.rater))) {
        const isOver = await this.#deliver(entry);
        if (isOver) break;
      }
    } finally {
      this.#draining = false;
    }
  }

  /** Delivers one entry; true if the session is over and the rest has to wait. */
  async #deliver(entry) {
    const { path, body, rater } = entry;
    const waiter = this.#waiting.get(body.key);
    try {
      const answer = await insist(() => {
        if (session.rater !== rater) throw new SignedOut();
        return call("POST", path, body);
      });
      this.#remove(entry);
      waiter?.resolve(answer);
    } catch (error) {
      if (error instanceof SignedOut) {
        if (session.rater !== rater) return false; // somebody else logged in meanwhile: this one waits for its rater
        this.signedOut();
        return true;
      }
      this.#remove(entry);
      if (waiter) waiter.reject(error);
      else this.complain(error);
    }
    return false;
  }

  #remove(entry) {
    this.#entries = this.#entries.filter((other) => other !== entry);
    this.#waiting.delete(entry.body.key);
    this.#save();
  }

  #save() {
    try {
      sessionStorage.setItem(SHELF, JSON.stringify(this.#entries));
    } catch {
      // Full or forbidden: the entries live on in memory.
    }
  }
}
