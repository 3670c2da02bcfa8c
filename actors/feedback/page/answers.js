// Answering a pair and answering by ratings. An answer has: `kind`, `question` and `hint` (words), `actions` (buttons),
// `press(key, card)` (true if the key meant something), `content()` (what is posted, or a thrown Incomplete),
// `draft()` and `restore(draft)`. Ranking has a file of its own.
import { button, element } from "./dom.js";
import { say } from "./words.js";

/** Something is still missing before this can be sent: a word with its values. */
export class Incomplete extends Error {
  constructor(word, values) {
    super(word);
    this.values = values;
  }
}

const POINTS = [1, 2, 3, 4, 5];

/** One of two completions is better, or neither is. Every choice is submitted at once. */
export function pairAnswer({ submit }) {
  let chosen = null;
  const choose = (place) => {
    chosen = place;
    submit();
  };
  const better = (place) => button({ id: `choose-${place}`, className: "choose", word: ["pair.choose", { n: place + 1 }], key: String(place + 1), onclick: () => choose(place) });
  const tie = button({ id: "tie", className: "choose", word: "pair.tie", key: "0", onclick: () => choose(null) });
  const meanings = { 1: 0, 2: 1, 0: null, t: null };
  return {
    kind: "pair", question: "pair.question", hint: "pair.hint", actions: [better(0), tie, better(1)],
    press(key) {
      if (!Object.hasOwn(meanings, key)) return false;
      choose(meanings[key]);
      return true;
    },
    content: () => ({ chosen }),
    draft: () => null,
    restore: () => {},
  };
}

function scale(place, criterion) {
  const points = POINTS.map((value) => {
    const input = element("input", { type: "radio", name: `rating-${place}-${criterion}`, value: String(value), label: ["rating.point", { value }] });
    return element("label", { className: "point" }, input, element("span", { "aria-hidden": "true" }, String(value)));
  });
  return element(
    "fieldset", { className: "scale", data: { place, criterion } },
    element("legend", { word: `criterion.${criterion}` }), element("div", { className: "points" }, ...points),
  );
}

const checked = (group) => group.querySelector("input:checked");

/** Each completion gets 1 to 5 by each criterion; one criterion each is enough. */
export function ratingAnswer({ cards, criteria, submit, changed }) {
  const groups = cards.flatMap((card, place) => {
    const own = criteria.map(({ name }) => scale(place, name));
    card.querySelector(".answer").append(...own);
    return own;
  });
  const count = element("span", { className: "count" });
  const send = button({ id: "submit", className: "primary", word: "submit", key: "Enter", onclick: () => submit() });
  let warned = false;

  const refresh = () => {
    say(count, "rating.count", { done: groups.filter(checked).length, of: groups.length });
    warned = false;
  };
  for (const group of groups) group.addEventListener("change", () => { refresh(); changed(); });
  refresh();

  const ratingsOf = (place) => Object.fromEntries(
    groups.filter((group) => Number(group.dataset.place) === place && checked(group)).map((group) => [group.dataset.criterion, Number(checked(group).value)]),
  );
  const all = () => cards.map((_, place) => ratingsOf(place));

  return {
    kind: "rating", question: "rating.question", hint: "rating.hint", actions: [count, send],
    /** A digit sets the focused criterion, else the first open one (of the focused card), and the next one gets the focus. */
    press(key, card) {
      if (!POINTS.includes(Number(key))) return false;
      const within = card ? groups.filter((group) => card.contains(group)) : groups;
      const group = document.activeElement.closest(".scale") ?? within.find((one) => !checked(one)) ?? groups.find((one) => !checked(one));
      if (!group) return false;
      group.querySelector(`input[value="${key}"]`).checked = true;
      const next = groups[groups.indexOf(group) + 1] ?? group;
      (checked(next) ?? next.querySelector("input")).focus();
      refresh();
      changed();
      return true;
    },
    content() {
      const ratings = all();
      const empty = ratings.findIndex((rating) => !Object.keys(rating).length);
      if (empty >= 0) throw new Incomplete("rating.incomplete", { n: empty + 1 });
      const missing = groups.filter((group) => !checked(group)).length;
      if (missing && !warned) {
        warned = true;
        throw new Incomplete("rating.open", { missing });
      }
      return { ratings };
    },
    draft: all,
    restore(ratings) {
      for (const group of groups) {
        const value = ratings[group.dataset.place]?.[group.dataset.criterion];
        if (value) group.querySelector(`input[value="${value}"]`).checked = true;
      }
      refresh();
    },
  };
}
