// What can be said beside an answer, completion by completion: what it should have said, that it is harmful, a number as
// its reward. Notes stay on the page, where they can be changed, and are sent with the answer, just before it.
import { Incomplete } from "./answers.js";
import { announce, button, element } from "./dom.js";

const MOST_CHARACTERS = 20_000; // more would be refused

function field(place, { id, word, control }, changed) {
  control.addEventListener("input", changed);
  const box = element("div", { className: "note-field", hidden: true, id: `${id}-box-${place}` }, element("label", { word: [word, { n: place + 1 }], htmlFor: control.id }), control);
  return box;
}

/** The notes of one card. `text` is what the completion says, to start a correction from. */
class CardNotes {
  harmful = false;

  constructor(card, place, { text, mayReward, changed }) {
    Object.assign(this, { place, changed });
    this.correction = element("textarea", { id: `correction-${place}`, rows: 5, dir: "auto", maxLength: MOST_CHARACTERS });
    this.reward = element("input", { id: `reward-${place}`, type: "number", step: "any", inputMode: "decimal" });
    this.original = text;
    this.boxes = {
      correct: field(place, { id: "correction", word: "correct.label", control: this.correction }, () => this.refresh()),
      reward: field(place, { id: "reward", word: "reward.label", control: this.reward }, () => this.refresh()),
    };
    const opener = (action, key) => button({ word: action, key, className: "quiet note-button", data: { action }, "aria-expanded": "false", "aria-controls": this.boxes[action].id, onclick: () => this.open(action) });
    this.buttons = {
      correct: opener("correct", "C"),
      harmful: button({ word: "harmful", key: "F", className: "quiet note-button", data: { action: "harmful" }, "aria-pressed": "false", onclick: () => this.flag() }),
      ...(mayReward ? { reward: opener("reward", "R") } : {}),
    };
    for (const [action, box] of Object.entries(this.boxes)) {
      box.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        this.open(action, false);
        card.focus();
      });
    }
    const shown = Object.entries(this.boxes).filter(([action]) => this.buttons[action]).map(([, box]) => box);
    card.querySelector(".beside").append(element("div", { className: "note-buttons" }, ...Object.values(this.buttons)), ...shown);
  }

  /** Opens or closes a field; what is in it stays. */
  open(action, wanted = this.boxes[action].hidden) {
    const control = { correct: this.correction, reward: this.reward }[action];
    this.boxes[action].hidden = !wanted;
    this.buttons[action].setAttribute("aria-expanded", String(wanted));
    if (!wanted) return;
    if (action === "correct" && !control.value) control.value = this.original;
    control.focus();
    if (action === "correct") control.setSelectionRange(0, 0);
    control.scrollIntoView({ block: "nearest" });
  }

  flag(wanted = !this.harmful) {
    this.harmful = wanted;
    this.refresh();
    announce(wanted ? "harmful.on" : "harmful.off", { n: this.place + 1 });
  }

  refresh() {
    const { correct, reward, harmful } = this.values();
    this.buttons.harmful.setAttribute("aria-pressed", String(Boolean(harmful)));
    this.buttons.correct.classList.toggle("noted", correct !== undefined);
    this.buttons.reward?.classList.toggle("noted", reward !== undefined);
    this.changed();
  }

  /** What is noted, as {correct, harmful, reward}, each only if there is something. */
  values() {
    const text = this.correction.value.trim();
    return {
      ...(text && text !== this.original.trim() ? { correct: text } : {}),
      ...(this.harmful ? { harmful: true } : {}),
      ...(this.reward.value === "" ? {} : { reward: Number(this.reward.value) }),
    };
  }

  restore({ correct, harmful, reward }, sent) {
    this.harmful = Boolean(harmful);
    this.correction.value = correct ?? "";
    this.reward.value = reward ?? "";
    this.buttons.harmful.disabled = Boolean(sent.harmful); // it cannot be taken back once it is sent
    this.refresh();
  }
}

const JUDGEMENTS = {
  correct: (place, text) => ({ kind: "correction", content: { place, text } }),
  harmful: (place) => ({ kind: "harmful", content: { place } }),
  reward: (place, value) => ({ kind: "reward", content: { place, value } }),
};

/** The notes on all cards of an item. */
export class Notes {
  #sent = [];

  constructor(cards, completions, { mayReward, changed }) {
    this.cards = cards.map((card, place) => new CardNotes(card, place, { text: completions[place].text, mayReward, changed }));
  }

  /** A key beside an answer: C, F or R on the focused card. True if it meant something. */
  press(key, place) {
    const action = { c: "correct", f: "harmful", r: "reward" }[key];
    if (!action || !this.cards[0].buttons[action]) return false;
    if (place < 0) {
      announce("focus.first", { key: key.toUpperCase() });
      return true;
    }
    if (action === "harmful") this.cards[place].buttons.harmful.click();
    else this.cards[place].open(action);
    return true;
  }

  draft = () => this.cards.map((card) => card.values());

  /** Judgements {kind, content} that are new since the last time they were sent; throws Incomplete for a bad number. */
  unsent() {
    const bad = this.cards.findIndex(({ reward }) => reward.validity.badInput);
    if (bad >= 0) throw new Incomplete("reward.invalid", { n: bad + 1 });
    return this.draft().flatMap((values, place) => Object.entries(values)
      .filter(([action, value]) => this.#sent[place]?.[action] !== value)
      .map(([action, value]) => JUDGEMENTS[action](place, value)));
  }

  restore(draft, sent) {
    this.#sent = sent;
    this.cards.forEach((card, place) => card.restore(draft[place] ?? {}, sent[place] ?? {}));
  }
}
