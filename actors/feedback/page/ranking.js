// Putting completions in order. The order is a list of tiers (those in one tier are tied), then those not ranked yet.
// Pure functions move places about; the cards follow them.
import { Incomplete } from "./answers.js";
import { announce, button, element } from "./dom.js";
import { say } from "./words.js";

const TIE_SHARE = 0.3; // the middle part of a card on which a dropped card is tied

const without = (tiers, place) => tiers.map((tier) => tier.filter((other) => other !== place)).filter((tier) => tier.length);
const tierOf = (tiers, place) => tiers.findIndex((tier) => tier.includes(place));

/** The place as the next rank; a ranked one loses its rank. */
export function toggle(tiers, place) {
  return tierOf(tiers, place) < 0 ? [...tiers, [place]] : without(tiers, place);
}

/** One step up (-1) or down (1): out of a tie, or past the tier beside it. One that is not ranked becomes the last rank. */
export function step(tiers, place, way) {
  const at = tierOf(tiers, place);
  if (at < 0) return way < 0 ? [...tiers, [place]] : tiers;
  const left = without(tiers, place);
  if (tiers[at].length > 1) return left.toSpliced(way < 0 ? at : at + 1, 0, [place]);
  return left.toSpliced(Math.min(left.length, Math.max(0, at + way)), 0, [place]);
}

/** Ties the place with the tier before it (one that is not ranked: with the last), or ends its tie. */
export function tie(tiers, place) {
  const at = tierOf(tiers, place);
  if (at >= 0 && tiers[at].length > 1) return step(tiers, place, 1);
  const target = at < 0 ? tiers.length - 1 : at - 1;
  if (target < 0) return tiers;
  return without(tiers.map((tier, index) => (index === target ? [...tier, place] : tier.filter((other) => other !== place))), null);
}

/** Drops the place before, after or onto (a tie) another; where that has no rank, the place becomes the last rank. */
export function drop(tiers, place, other, where) {
  const left = without(tiers, place);
  const at = tierOf(left, other);
  if (at < 0) return [...left, [place]];
  if (where === "tie") return left.map((tier, index) => (index === at ? [...tier, place] : tier));
  return left.toSpliced(where === "before" ? at : at + 1, 0, [place]);
}

/** Rank of each of `num` places, 1 for the best; null where there is none. */
export function ranksOf(tiers, num) {
  return Array.from({ length: num }, (_, place) => (tierOf(tiers, place) < 0 ? null : tierOf(tiers, place) + 1));
}

function controls(place, { up, down, tied, handle }) {
  const n = place + 1;
  const small = (text, word, onclick) => element("button", { type: "button", className: "small", label: [word, { n }], onclick }, text);
  return element(
    "div", { className: "rank-controls" },
    element("span", { className: "handle", "aria-hidden": "true", onpointerdown: handle }, "⠿"),
    element("span", { className: "rank" }),
    small("↑", "ranking.up", up), small("↓", "ranking.down", down), small("=", "ranking.tie", tied),
  );
}

/** Where a pointer over a card would drop: along the line in which the cards stand. */
function dropAt(card, cards, { clientX, clientY }) {
  const box = card.getBoundingClientRect();
  const beside = cards.some((other) => other !== card && Math.abs(other.getBoundingClientRect().top - box.top) < 4);
  const share = beside ? (clientX - box.left) / box.width : (clientY - box.top) / box.height;
  if (Math.abs(share - 0.5) < TIE_SHARE / 2) return "tie";
  return share < 0.5 ? "before" : "after";
}

/** Carries a card with the pointer (mouse, pen or finger) and calls `done(other, where)` when it is let go on another. */
function drag(event, card, cards, done) {
  event.preventDefault();
  const { pointerId, clientX, clientY } = event;
  const handle = event.currentTarget;
  let target = null;
  handle.setPointerCapture(pointerId);
  card.classList.add("dragged");
  const mark = (over, where) => {
    for (const other of cards) other.dataset.drop = other === over ? where : "";
    target = over ? [over, where] : null;
  };
  const move = (moved) => {
    card.style.transform = `translate(${moved.clientX - clientX}px, ${moved.clientY - clientY}px)`;
    const over = document.elementsFromPoint(moved.clientX, moved.clientY).map((node) => node.closest(".completion")).find((one) => one && one !== card);
    mark(over, over && dropAt(over, cards, moved));
  };
  const end = ({ type }) => {
    const dropped = target;
    handle.removeEventListener("pointermove", move);
    card.classList.remove("dragged");
    card.style.transform = "";
    mark(null);
    if (type === "pointerup" && dropped) done(...dropped);
  };
  handle.addEventListener("pointermove", move);
  handle.addEventListener("pointerup", end, { once: true });
  handle.addEventListener("pointercancel", end, { once: true });
}

/** Completions from best to worst, ties allowed. */
export function rankingAnswer({ cards, submit, changed }) {
  let tiers = [];
  const count = element("span", { className: "count" });
  const clear = button({ id: "clear", className: "quiet", word: "ranking.clear", onclick: () => put([]) });
  const send = button({ id: "submit", className: "primary", word: "submit", key: "Enter", onclick: () => submit() });
  const list = () => cards[0].parentElement;

  function refresh() {
    const ranks = ranksOf(tiers, cards.length);
    cards.forEach((card, place) => {
      const rank = ranks[place];
      card.dataset.rank = rank ?? "";
      const tied = rank && tiers[rank - 1].length > 1;
      say(card.querySelector(".rank"), rank ? (tied ? "ranking.tied" : "ranking.rank") : "ranking.none", { rank });
    });
    say(count, "ranking.count", { done: tiers.flat().length, of: cards.length });
  }

  function put(next, place = null) {
    const focused = document.activeElement;
    tiers = next;
    const rest = cards.map((_, at) => at).filter((at) => tierOf(tiers, at) < 0);
    list()?.append(...[...tiers.flat(), ...rest].map((at) => cards[at]));
    if (list()?.contains(focused)) focused.focus(); // moving a node takes its focus away
    refresh();
    changed();
    if (place === null) return;
    const at = tierOf(tiers, place);
    announce(at < 0 ? "ranking.removed" : "ranking.moved", { n: place + 1, rank: at + 1, of: cards.length });
  }

  cards.forEach((card, place) => {
    card.querySelector(".answer").before(controls(place, {
      up: () => put(step(tiers, place, -1), place),
      down: () => put(step(tiers, place, 1), place),
      tied: () => put(tie(tiers, place), place),
      handle: (event) => drag(event, card, cards, (other, where) => put(drop(tiers, place, cards.indexOf(other), where), place)),
    }));
  });
  refresh();

  return {
    kind: "ranking", question: "ranking.question", hint: "ranking.hint", actions: [count, clear, send],
    press(key, card) {
      const place = cards.indexOf(card);
      const digit = /^[1-9]$/.test(key) ? Number(key) - 1 : -1;
      if (digit >= 0 && digit < cards.length) put(toggle(tiers, digit), digit);
      else if (place >= 0 && (key === "ArrowUp" || key === "ArrowDown")) put(step(tiers, place, key === "ArrowUp" ? -1 : 1), place);
      else if (place >= 0 && ["t", "=", "0"].includes(key)) put(tie(tiers, place), place);
      else return false;
      return true;
    },
    content() {
      const ranks = ranksOf(tiers, cards.length);
      const missing = ranks.filter((rank) => rank === null).length;
      if (missing) throw new Incomplete("ranking.incomplete", { missing });
      return { ranks };
    },
    draft: () => tiers,
    restore: (draft) => put(draft),
  };
}
