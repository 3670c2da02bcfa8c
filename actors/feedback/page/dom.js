// Making nodes. Whatever people, models or servers wrote reaches the page as text only, never as markup.
import { say } from "./words.js";

export const byId = (id) => document.getElementById(id);

/**
 * A node with properties and children. Beside DOM properties: `word`, `label` and `alternative` are words.js keys (or
 * [key, values]) for the text, the aria-label and the alt text, `data` fills the dataset, and names with a dash or "role" become attributes.
 */
export function element(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined) continue;
    if (name === "word") say(node, ...[value].flat());
    else if (name === "label") say(node, ...[value].flat(), "label");
    else if (name === "alternative") say(node, ...[value].flat(), "alt");
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name === "role" || name.includes("-")) node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children);
  return node;
}

/** An SVG node with attributes and children. */
export function drawing(tag, attributes = {}, ...children) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** A button with a word and, where there is one, the key that does the same. */
export function button({ word, key, ...properties }) {
  const hint = key ? [" ", element("kbd", {}, key)] : [];
  return element("button", { type: "button", ...properties }, element("span", { word }), ...hint);
}

/** Shows one of some nodes and hides the others; with none given hides all. */
export function showOnly(nodes, shown) {
  for (const node of nodes) node.hidden = node !== shown;
}

let fading;

/** Says something politely, to eyes and to screen readers; it fades after a while. */
export function announce(word, values = {}) {
  const status = byId("status");
  say(status, word, values);
  status.classList.add("fresh");
  clearTimeout(fading);
  fading = setTimeout(() => status.classList.remove("fresh"), 4000);
}
