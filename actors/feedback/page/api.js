// Talking to the server: one call, what can go wrong with it, and trying again while the trouble may pass.

/** The server said no. `status` is that of HTTP; the message can be shown. */
export class Refusal extends Error {
  constructor(status, detail, retryAfterS = null) {
    super(detail);
    Object.assign(this, { status, retryAfterS });
  }
}

/** The session is over, or belongs to somebody else by now: log in again. */
export class SignedOut extends Error {}

/** No answer came: the network or the server is away. */
export class Unreachable extends Error {}

/** Who is logged in here. The session itself lies in a cookie that scripts cannot read. */
export const session = { rater: null, role: null, csrf: null };

const PATIENCE_MS = 20_000;
const LONGEST_WAIT_S = 30;

function headersFor(method) {
  if (method === "GET") return {};
  return { "Content-Type": "application/json", ...(session.csrf ? { "X-CSRF-Token": session.csrf } : {}) };
}

async function refusal(response) {
  let detail = `${response.status} ${response.statusText}`;
  try {
    const body = await response.json();
    if (typeof body.detail === "string") detail = body.detail;
  } catch {
    // A proxy's error page is no JSON; the status says enough.
  }
  const wait = Number.parseFloat(response.headers.get("Retry-After"));
  return new Refusal(response.status, detail, Number.isFinite(wait) ? wait : null);
}

async function send(method, path, body, keepalive) {
  let response;
  try {
    response = await fetch(path, {
      method,
      keepalive,
      credentials: "same-origin",
      headers: headersFor(method),
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: keepalive ? undefined : AbortSignal.timeout(PATIENCE_MS),
    });
    if (response.ok) return response.status === 204 ? null : await response.json();
  } catch (error) {
    throw new Unreachable(String(error));
  }
  throw await refusal(response);
}

/** Takes over a new CSRF value, unless another rater logged in in another tab: then nothing is sent in that name. */
async function refreshCsrf() {
  const me = await send("GET", "/api/me");
  if (me.rater !== session.rater) throw new SignedOut();
  if (me.csrf === session.csrf) return false;
  session.csrf = me.csrf;
  return true;
}

/** One request; returns the JSON of the answer. Throws SignedOut, Refusal or Unreachable. */
export async function call(method, path, body, { keepalive = false } = {}) {
  try {
    return await send(method, path, body, keepalive);
  } catch (error) {
    if (error.status === 401 && path !== "/api/login") throw new SignedOut(error.message);
    if (error.status !== 403 || !session.rater || method === "GET" || keepalive) throw error;
    try {
      if (!(await refreshCsrf())) throw error;
    } catch (again) {
      throw again.status === 401 ? new SignedOut(again.message) : again;
    }
    return send(method, path, body, keepalive);
  }
}

const mayPass = (error) => error instanceof Unreachable || error.status >= 500 || [408, 429].includes(error.status);

const sleepers = new Set();
const troubles = new Map();
let tellTrouble = () => {};

/** Calls `listener` with the latest passing trouble, and with null once all is well again. */
export function onTrouble(listener) {
  tellTrouble = listener;
}

/** Ends all waits between attempts now. */
export function hurry() {
  for (const wake of sleepers) wake();
}

function waitFor(seconds) {
  return new Promise((resolve) => {
    const wake = () => {
      clearTimeout(timer);
      sleepers.delete(wake);
      resolve();
    };
    const timer = setTimeout(wake, seconds * 1000);
    sleepers.add(wake);
  });
}

/** Repeats `attempt` with growing waits for as long as what fails may pass by itself; other errors are thrown. */
export async function insist(attempt) {
  const token = Symbol("attempts");
  try {
    for (let tries = 0; ; tries += 1) {
      try {
        return await attempt();
      } catch (error) {
        if (!mayPass(error)) throw error;
        troubles.set(token, error);
        tellTrouble(error);
        // A third of the wait is drawn at random, so that many pages do not come back in one moment.
        const wait = Math.min(LONGEST_WAIT_S, 2 ** tries) * (1 - Math.random() / 3);
        await waitFor(error.retryAfterS ?? wait);
      }
    }
  } finally {
    if (troubles.delete(token)) tellTrouble([...troubles.values()].at(-1) ?? null);
  }
}

/** A random key (UUID version 4). crypto.randomUUID is missing where the page came over plain HTTP. */
export function makeKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const digits = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  return digits.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}
