// One item on the screen: the prompt with its media, the completions as cards, and the means to judge them.
import { pairAnswer, ratingAnswer } from "./answers.js";
import { byId, element } from "./dom.js";
import { Clock, record } from "./events.js";
import { Media } from "./media.js";
import { Notes } from "./notes.js";
import { rankingAnswer } from "./ranking.js";
import { Thumbs } from "./thumbs.js";
import { say } from "./words.js";

const LEAST_S = 0.05; // less is no event: a page tells its leaving twice

const ANSWERS = { pair: pairAnswer, ranking: rankingAnswer, rating: ratingAnswer };

function turn({ role, parts }, alone, media) {
  const nodes = parts.map((part) => {
    if (part.medium) return media.add(part.medium);
    return element("div", { className: "said", dir: "auto" }, part.text);
  });
  const who = alone ? [] : [element("p", { className: "label", word: `role.${role}` })];
  return element("div", { className: "turn", data: { role } }, ...who, element("div", { className: "parts" }, ...nodes));
}

function completionCard({ text }, place) {
  const n = place + 1;
  const body = element("div", { className: "text", dir: "auto", role: "region", label: ["answer.text", { n }] });
  if (text) body.textContent = text;
  else body.append(element("em", { word: "answer.empty" }));
  return element(
    "article", { id: `completion-${place}`, className: "completion", tabIndex: 0, data: { place }, "aria-labelledby": `completion-title-${place}` },
    element("h2", { id: `completion-title-${place}`, word: ["answer.n", { n }] }),
    body, element("div", { className: "answer" }), element("div", { className: "beside" }),
  );
}

/** Text that is longer than its box can be scrolled by keyboard too. */
function scrollable(card) {
  const body = card.querySelector(".text");
  new ResizeObserver(() => {
    const long = body.scrollHeight > body.clientHeight + 1;
    body.classList.toggle("long", long);
    if (long) body.tabIndex = 0;
    else body.removeAttribute("tabindex");
  }).observe(body);
}

/** A presentation on the page. `criteria` and `mayReward` come from who is logged in; `submit()` sends the answer. */
export class Item {
  #told_s = 0;

  constructor(presentation, { criteria, mayReward, submit, changed }) {
    const { id, task, messages, completions } = presentation;
    const tell = (kind, value, place) => record(kind, id, value, place);
    this.id = id;
    this.clock = new Clock();
    this.media = new Media({ opened: () => tell("opened", 1), played: (seconds) => tell("played", seconds) });
    this.messages = messages.map((message) => turn(message, messages.length === 1, this.media));
    this.cards = completions.map(completionCard);
    this.cards.forEach((card, place) => {
      card.querySelector(".text").addEventListener("copy", () => tell("copied", 1, place));
      scrollable(card);
    });
    this.answer = ANSWERS[task]({ cards: this.cards, criteria, submit, changed });
    this.notes = new Notes(this.cards, completions, { mayReward, changed });
    this.thumbs = new Thumbs(this.cards, (value, place) => tell("thumb", value, place));
  }

  /** Puts the item on the page and starts its clock; it counts as shown once it is on the screen. */
  show() {
    byId("messages").replaceChildren(...this.messages);
    byId("completions").replaceChildren(...this.cards);
    byId("completions").dataset.task = this.answer.kind;
    byId("completions").dataset.num = this.cards.length;
    byId("item").dataset.presentation = this.id;
    byId("answer-actions").replaceChildren(...this.answer.actions);
    say(byId("question"), this.answer.question);
    say(byId("hint"), this.answer.hint);
    this.clock = new Clock();
    requestAnimationFrame(() => record("shown", this.id));
  }

  /** The place of the card that has the focus, or -1. */
  get focusedPlace() {
    return this.cards.indexOf(document.activeElement?.closest(".completion"));
  }

  /** Moves the focus to the card before (-1) or after (1), in the order on the page. */
  moveFocus(way) {
    const order = [...byId("completions").children];
    const at = order.indexOf(document.activeElement?.closest(".completion"));
    const next = at < 0 ? 0 : Math.min(order.length - 1, Math.max(0, at + way));
    order[next].focus();
  }

  draft = () => ({ answer: this.answer.draft(), notes: this.notes.draft() });

  restore({ answer, notes, sent }) {
    this.notes.restore(notes, sent ?? []);
    if (answer) this.answer.restore(answer);
  }

  /** Tells the seconds spent here since the last time. */
  report() {
    const { seconds } = this.clock;
    if (seconds - this.#told_s >= LEAST_S) {
      record("dwelt", this.id, seconds - this.#told_s);
      this.#told_s = seconds;
    }
    this.media.report();
  }

  /** The item leaves the screen. */
  leave() {
    this.media.pause();
    this.report();
  }
}
