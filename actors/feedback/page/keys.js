// Keys: what they do, and when they do nothing because somebody is typing or a control wants them itself.
import { byId, element } from "./dom.js";

const LIST = [
  ["1 2", "keys.pair"], ["0 T", "keys.tie"], ["1 – 9", "keys.rank"], ["↑ ↓", "keys.move"], ["1 – 5", "keys.rate"], ["← →", "keys.focus"],
  ["Enter", "keys.submit"], ["S", "keys.skip"], ["U", "keys.undo"], ["C", "keys.correct"], ["F", "keys.harmful"], ["R", "keys.reward"],
  ["+ -", "keys.thumb"],
  ["Z", "keys.zoom"], ["P", "keys.play"], ["Space Esc", "keys.pause"], ["?", "keys.help"],
];

const CHOICES = new Set(["radio", "checkbox", "button", "submit", "range"]);
// Keys that a focused control uses itself.
const OWN = {
  "Enter": "button, a, summary, textarea, select",
  " ": "button, a, summary, video, audio, input",
  "ArrowLeft": "input, [role=slider], video, audio, select", "ArrowRight": "input, [role=slider], video, audio, select",
  "ArrowUp": "input, [role=slider], video, audio, select, .text", "ArrowDown": "input, [role=slider], video, audio, select, .text",
};

function isTyping(target) {
  if (target.matches("input")) return !CHOICES.has(target.type);
  return target.matches("textarea, select") || target.isContentEditable;
}

/** Calls `press(key)` for keys that are meant for the page; a true answer means that the key was used. */
export function listen(press) {
  document.addEventListener("keydown", (event) => {
    const { key, target } = event;
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || event.repeat) return;
    if (document.querySelector("dialog[open]") || isTyping(target) || target.closest(OWN[key] ?? ":not(*)")) return;
    if (press(key.length === 1 ? key.toLowerCase() : key)) event.preventDefault();
  });
}

/** Fills the list of keys. */
export function listKeys() {
  const caps = (keys) => keys.split(" ").map((cap) => (cap === "–" ? "–" : element("kbd", {}, cap)));
  byId("keys-list").replaceChildren(...LIST.flatMap(([keys, word]) => [element("dt", {}, ...caps(keys)), element("dd", { word })]));
}
