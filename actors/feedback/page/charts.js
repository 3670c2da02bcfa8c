// Small charts for the overview, made of SVG nodes: bars by the hour, an interval on a scale, a step from before to after.
import { drawing, element } from "./dom.js";
import { currentLanguage, say, word } from "./words.js";

const HOUR_MS = 3_600_000;
const MOST_HOURS = 72;
const WIDEST = 1130;
const MARGINS = 72; // of the page and the card around it: the chart is drawn at the size at which it is seen
const HEIGHT = 150;
const LEFT = 34;
const RIGHT = 12;
const BOTTOM = 22;
const TOP = 10;
const LABEL = 70;

/** Counts of every hour from the first to the last, at most the last 72, with zeros where nothing was judged. */
export function everyHour(hours) {
  const counts = new Map(hours.map(({ hour, num }) => [Math.floor(Date.parse(hour) / HOUR_MS), num]));
  const last = Math.max(...counts.keys());
  const first = Math.max(Math.min(...counts.keys()), last - MOST_HOURS + 1);
  return Array.from({ length: last - first + 1 }, (_, at) => ({ at: new Date((first + at) * HOUR_MS), num: counts.get(first + at) ?? 0 }));
}

/** A round number at or above `most`, for the top of an axis. */
export function roundUp(most) {
  const ten = 10 ** Math.floor(Math.log10(Math.max(1, most)));
  return [1, 2, 3, 4, 5, 6, 8, 10].map((factor) => factor * ten).find((value) => value >= most);
}

function bar({ at, num }, index, { slot, wide, tallest }) {
  const tall = (num / tallest) * (HEIGHT - TOP - BOTTOM);
  const when = new Intl.DateTimeFormat(currentLanguage(), { weekday: "short", hour: "2-digit", minute: "2-digit" }).format(at);
  const shape = { class: "bar-shape", x: LEFT + index * slot + (slot - wide) / 2, width: wide, y: HEIGHT - BOTTOM - tall, height: tall, rx: Math.min(3, wide / 3) };
  return drawing("rect", shape, drawing("title", {}, word("admin.bar", { hour: when, num })));
}

function hourLabels(rows, slot) {
  const every = Math.ceil(LABEL / slot);
  const format = new Intl.DateTimeFormat(currentLanguage(), { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  return rows.flatMap(({ at }, index) => {
    if (index % every) return [];
    const place = { class: "tick", x: LEFT + (index + 0.5) * slot, y: HEIGHT - 5, "text-anchor": "middle" };
    return [drawing("text", place, format.format(at))];
  });
}

/** Bars of judgements by the hour. */
export function hourChart(hours) {
  const rows = everyHour(hours);
  const tallest = roundUp(Math.max(...rows.map(({ num }) => num)));
  const width = Math.min(WIDEST, document.documentElement.clientWidth - MARGINS);
  const slot = (width - LEFT - RIGHT) / rows.length;
  const sizes = { slot, wide: Math.min(28, slot * 0.7), tallest };
  const lines = [0, 0.5, 1].flatMap((share) => {
    const y = HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM);
    const label = Number.isInteger(share * tallest) ? [drawing("text", { class: "tick", x: LEFT - 8, y: y + 4, "text-anchor": "end" }, String(share * tallest))] : [];
    return [drawing("line", { class: "grid", x1: LEFT, x2: width, y1: y, y2: y }), ...label];
  });
  const svg = drawing("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", id: "hours-chart" }, ...lines, ...rows.map((row, at) => bar(row, at, sizes)), ...hourLabels(rows, slot));
  const num = rows.reduce((sum, row) => sum + row.num, 0);
  say(svg, "admin.hours.about", { num, hours: rows.length, most: Math.max(...rows.map((row) => row.num)) }, "label");
  return svg;
}

function mark(className, styles) {
  const node = element("span", { className });
  Object.assign(node.style, styles);
  return node;
}

const percent = (value, from) => `${(100 * (Math.min(1, Math.max(from, value)) - from)) / (1 - from)}%`;

/** An estimate with its interval on a scale from `from` to 1; `marks` are thresholds drawn as lines. */
export function scaleOf({ value, low, high, from, marks }) {
  const lines = marks.map((at) => mark("threshold", { left: percent(at, from) }));
  const whisker = low === null || high === null ? [] : [mark("whisker", { left: percent(low, from), right: `calc(100% - ${percent(high, from)})` })];
  return element("div", { className: "track", role: "img", label: ["admin.scale", { alpha: value.toFixed(2), from }] }, ...lines, ...whisker, mark("dot", { left: percent(value, from) }));
}

/** A step from one share to another, as a hollow and a filled dot. */
export function stepOf(before, after) {
  const [low, high] = [Math.min(before, after), Math.max(before, after)];
  return element(
    "div", { className: "track step", "aria-hidden": "true" },
    mark("whisker rlhf", { left: percent(low, 0), right: `calc(100% - ${percent(high, 0)})` }),
    mark("dot sft", { left: percent(before, 0) }), mark("dot rlhf", { left: percent(after, 0) }),
  );
}
