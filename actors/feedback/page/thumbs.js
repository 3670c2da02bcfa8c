// A thumb up or down for a completion, beside what is asked: told as an event at once, and changed or taken back at will.
import { announce, button, element } from "./dom.js";

const KEYS = { "+": 1, "-": -1 };

/** The thumbs of all cards of an item. `tell(value, place)` hears 1, -1, or 0 where a thumb is taken back. */
export class Thumbs {
  #given = [];

  constructor(cards, tell) {
    this.tell = tell;
    this.buttons = cards.map((card, place) => {
      const own = Object.entries(KEYS).map(([key, value]) => {
        const name = value > 0 ? "up" : "down";
        return button({ word: `thumb.${name}`, key, className: "quiet thumb-button", data: { thumb: name }, "aria-pressed": "false", onclick: () => this.give(place, value) });
      });
      card.querySelector(".note-buttons").append(element("span", { className: "thumbs" }, ...own));
      return own;
    });
  }

  give(place, value) {
    const now = this.#given[place] === value ? 0 : value;
    this.#given[place] = now;
    this.buttons[place].forEach((one, index) => one.setAttribute("aria-pressed", String(Object.values(KEYS)[index] === now)));
    this.tell(now, place);
    announce(now > 0 ? "thumb.is_up" : now < 0 ? "thumb.is_down" : "thumb.gone", { n: place + 1 });
  }

  /** A key beside an answer: + or - on the focused card. True if it meant something. */
  press(key, place) {
    if (!Object.hasOwn(KEYS, key)) return false;
    if (place < 0) announce("focus.first", { key });
    else this.give(place, KEYS[key]);
    return true;
  }
}
