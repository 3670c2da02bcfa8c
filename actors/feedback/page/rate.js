// Rating: fetch an item, show it, send the answer, fetch the next; and skip, undo and pause.
import { Incomplete } from "./answers.js";
import { call, insist, makeKey, Refusal, session, SignedOut } from "./api.js";
import { announce, byId, showOnly } from "./dom.js";
import { draftOf, keep } from "./drafts.js";
import { flush } from "./events.js";
import { Item } from "./item.js";
import { say } from "./words.js";

const LOOK_AGAIN_S = [4, 8, 15, 30];
const MOST_LEFT = 200; // the server counts no further; there may be more.
const GONE = [404, 409, 410]; // the item was closed or withdrawn meanwhile

// `visit` grows whenever the rater changes: what was started for the one before is then dropped.
const room = {
  item: null, panel: null, criteria: [], busy: false, paused: false, isOpen: false, isLookedAt: false,
  visit: 0, looks: 0, timer: null, outbox: null, signedOut: null,
};

export const hasItem = () => room.item !== null;

/** Tells the room, once, how to deliver judgements and whom to tell that the session is over. */
export function furnish({ outbox, signedOut }) {
  Object.assign(room, { outbox, signedOut });
}

/** A rater comes in. */
export function enter({ criteria, ...progress }) {
  leave();
  Object.assign(room, { criteria, isOpen: true });
  showProgress(progress);
}

/** The view is looked at, or another one is: only then the clock runs and items are fetched. */
export function look(isLookedAt) {
  room.isLookedAt = isLookedAt;
  hold("view", !isLookedAt);
  show(room.panel);
  if (!isLookedAt) clearTimeout(room.timer);
  else if (room.isOpen && !room.item && !room.busy) advance();
}

/** The rater goes: nothing stays on the page. */
export function leave() {
  room.visit += 1;
  clearTimeout(room.timer);
  room.item?.leave();
  Object.assign(room, { item: null, paused: false, isOpen: false });
  setBusy(false);
  show(null);
}

function showProgress({ num_judged: judged, num_left: left }) {
  const box = byId("progress-box");
  Object.assign(box.dataset, { judged, left });
  Object.assign(byId("progress"), { max: Math.max(1, judged + left), value: judged });
  say(byId("progress-text"), "progress.text", { judged, left: left < MOST_LEFT ? left : `${left}+` });
  for (const id of ["undo", "nothing-undo"]) byId(id).disabled = judged === 0;
}

function show(panel) {
  room.panel = panel;
  showOnly(["item", "paused", "nothing"].map(byId), panel && byId(panel));
  byId("actions").hidden = panel !== "item" || !room.isLookedAt;
  byId("pause").hidden = !["item", "paused"].includes(panel) || !room.isLookedAt;
}

function setBusy(busy) {
  room.busy = busy;
  byId("actions").setAttribute("aria-busy", String(busy));
}

/** A complaint that can be shown; a lost session goes to the log-in. */
function complain(error) {
  if (error instanceof SignedOut) room.signedOut();
  else if (error instanceof Incomplete) announce(error.message, error.values);
  else if (error instanceof Refusal) announce("said", { text: error.message });
  else throw error;
}

/** Fetches the next item and shows it; with none to do it looks again after a while. */
export async function advance() {
  const { visit } = room;
  clearTimeout(room.timer);
  setBusy(true);
  try {
    const { presentation, ...progress } = await insist(() => call("GET", "/api/next"));
    if (visit !== room.visit) return;
    showProgress(progress);
    present(presentation);
  } catch (error) {
    if (visit !== room.visit) return;
    complain(error);
    if (error instanceof Refusal) wait();
  } finally {
    if (visit === room.visit) setBusy(false);
  }
}

function present(presentation) {
  room.item?.leave();
  room.item = null;
  if (!presentation) return lookAgain();
  room.looks = 0;
  const item = new Item(presentation, {
    criteria: room.criteria,
    mayReward: ["expert", "admin"].includes(session.role),
    submit: () => answer(),
    changed: () => keep(item.id, item.draft()),
  });
  room.item = item;
  item.show();
  const draft = draftOf(item.id);
  if (draft) item.restore(draft);
  if (document.hidden) item.clock.hold("hidden");
  if (!room.isLookedAt) item.clock.hold("view");
  room.paused = false;
  show("item");
  window.scrollTo({ top: 0 });
  byId("question").focus({ preventScroll: true });
}

function lookAgain() {
  const wasThere = !byId("nothing").hidden;
  show("nothing");
  if (!wasThere) byId("nothing-title").focus();
  wait();
}

function wait() {
  clearTimeout(room.timer);
  const wait_s = LOOK_AGAIN_S[Math.min(room.looks, LOOK_AGAIN_S.length - 1)];
  room.looks += 1;
  if (room.isLookedAt) room.timer = setTimeout(advance, wait_s * 1000);
}

/** Sends the notes and then the answer; `skip` sends that instead of the answer on the page. */
export async function answer(skip = null) {
  const { item, visit } = room;
  if (!item || room.busy || room.paused) return;
  let judgements;
  try {
    const settles = skip ?? { kind: item.answer.kind, content: item.answer.content() };
    judgements = [...item.notes.unsent(), settles];
  } catch (error) {
    complain(error);
    return;
  }
  setBusy(true);
  item.clock.hold("answered");
  announce("saving");
  const draft = item.draft();
  const latency_s = item.clock.seconds;
  const sent = judgements.map((judgement) => room.outbox.add("/api/judgements", { key: makeKey(), presentation: item.id, ...judgement, latency_s }));
  const outcomes = await Promise.allSettled(sent);
  if (visit !== room.visit) return;
  settle(item, draft, outcomes);
}

function settle(item, draft, outcomes) {
  setBusy(false);
  const refused = outcomes.find(({ status }) => status === "rejected")?.reason;
  const last = outcomes.at(-1);
  if (last.status === "fulfilled") {
    showProgress(last.value);
    keep(item.id, { ...draft, sent: draft.notes });
    done(item);
    if (refused) complain(refused);
    else announce("saved");
    advance();
  } else if (GONE.includes(last.reason.status)) {
    announce("gone", { text: last.reason.message });
    done(item);
    advance();
  } else {
    item.clock.release("answered");
    complain(last.reason);
  }
}

/** The item is settled. It stays to be seen until the next one comes, but nothing can be said of it any more. */
function done(item) {
  item.leave();
  room.item = null;
}

/** Takes back the last judgement and shows its item again. */
export async function undo() {
  const { visit } = room;
  if (room.busy || room.paused || byId("undo").disabled) return;
  setBusy(true);
  try {
    const { presentation, ...progress } = await room.outbox.add("/api/undo", { key: makeKey() });
    if (visit !== room.visit) return;
    showProgress(progress);
    clearTimeout(room.timer);
    if (presentation) present(presentation);
    else if (!room.item) lookAgain();
    announce(presentation ? "undone" : "undo.none");
  } catch (error) {
    complain(error);
  } finally {
    if (visit === room.visit) setBusy(false);
  }
}

/** Hides the item and stops its clock, or brings it back. */
export function pause(wanted = !room.paused) {
  if (!room.item || room.busy || wanted === room.paused) return;
  room.paused = wanted;
  if (wanted) {
    room.item.clock.hold("pause");
    room.item.media.pause();
    show("paused");
    byId("paused-title").focus();
  } else {
    room.item.clock.release("pause");
    show("item");
    announce("resumed");
    byId("question").focus({ preventScroll: true });
  }
}

/** Stops the clock for a reason beside the rater's own pause, such as a hidden tab; `held` false lets it run again. */
export function hold(reason, held) {
  if (held) room.item?.clock.hold(reason);
  else room.item?.clock.release(reason);
  if (held) room.item?.media.pause();
}

/** The page may be gone in a moment: tell what was seen and heard. */
export function part() {
  room.item?.report();
  flush({ leaving: true });
}

function openSkip() {
  if (room.busy || room.paused || !room.item) return;
  byId("skip-reason").value = "";
  byId("skip-dialog").showModal();
}

/** A key on the rating view; true if it meant something. */
export function press(key) {
  if (key === " " || key === "Escape") {
    pause();
    return room.item !== null;
  }
  if (room.paused || room.busy) return false;
  if (key === "u") return undo(), true;
  const { item } = room;
  if (!item) return false;
  const place = item.focusedPlace;
  if (item.answer.press(key, item.cards[place] ?? null) || item.notes.press(key, place) || item.thumbs.press(key, place)) return true;
  const actions = {
    Enter: () => item.answer.kind !== "pair" && answer(), s: openSkip, z: () => item.media.zoom(), p: () => item.media.toggle(),
    ArrowLeft: () => item.moveFocus(-1), ArrowRight: () => item.moveFocus(1),
  };
  if (!Object.hasOwn(actions, key)) return false;
  actions[key]();
  return true;
}

/** Wires the buttons that are always there. */
export function startRating() {
  byId("pause").addEventListener("click", () => pause());
  byId("resume").addEventListener("click", () => pause(false));
  byId("undo").addEventListener("click", undo);
  byId("nothing-undo").addEventListener("click", undo);
  byId("skip").addEventListener("click", openSkip);
  byId("skip-cancel").addEventListener("click", () => byId("skip-dialog").close());
  byId("skip-form").addEventListener("submit", () => {
    answer({ kind: "skip", content: { reason: byId("skip-reason").value.trim() } });
  });
}
