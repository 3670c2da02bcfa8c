// The overview for admins: who rates and how well, how far the items are, what the reward model made of it, invitations.
import { call, insist, Refusal, SignedOut } from "./api.js";
import { hourChart, scaleOf, stepOf } from "./charts.js";
import { button, byId, element } from "./dom.js";
import { currentLanguage, say, word } from "./words.js";

const EVERY_S = 20;
const RELIABLE = [0.667, 0.8]; // Krippendorff, Content Analysis (2004), chapter 11: tentative, reliable

const room = { timer: null, isOpen: false, hosts: null };

const decimals = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits).replace("-", "−"));
const percents = (value) => (value === null || value === undefined ? "–" : `${Math.round(100 * value)} %`);
const seconds = (value) => (value === null || value === undefined ? "–" : `${value.toFixed(1)} s`);
const pValue = (value) => (value < 0.001 ? "p < 0.001" : `p = ${decimals(value, 3)}`);
const signed = (value) => `${value > 0 ? "+" : ""}${decimals(value, 3)}`;

const cell = (value, note) => element("td", {}, value, ...(note ? [" ", element("small", {}, ...[note].flat())] : []));
const heads = (...words) => element("tr", {}, ...words.map((one) => element("th", { scope: "col", word: one })));

function table(id, title, head, rows) {
  return element(
    "div", { className: "scroll", role: "group", tabIndex: 0, label: title },
    element("table", { id }, element("thead", {}, head), element("tbody", {}, ...rows)),
  );
}

function big(id, label, value, about) {
  return element("div", { className: "big", id }, element("span", { className: "label", word: label }), element("strong", {}, value), element("small", { word: about }));
}

function headline({ agreement, items, judgements }) {
  const { alpha, low, high, num_items, kappa } = agreement;
  const hasInterval = alpha !== null && low !== null && high !== null;
  const interval = hasInterval ? ["admin.interval", { low: decimals(low), high: decimals(high) }] : "admin.interval.none";
  const from = alpha !== null && Math.min(alpha, low ?? alpha) < 0 ? -1 : 0;
  return [
    element(
      "div", { className: "headline" },
      big("agreement-alpha", "admin.alpha", decimals(alpha), interval),
      big("agreement-kappa", "admin.kappa", decimals(kappa), "admin.kappa.about"),
      big("items-done", "admin.items", String(items.done), ["admin.items.about", items]),
      big("judgements-num", "admin.judgements", String(judgements.num), ["admin.judgements.about", judgements]),
    ),
    ...(alpha === null ? [] : [scaleOf({ value: alpha, low, high, from, marks: RELIABLE })]),
    element("p", { className: "fine", word: ["admin.alpha.about", { items: num_items }] }),
  ];
}

function stateOf({ is_set_aside: isSetAside, reason, revoked }) {
  if (revoked) return element("td", {}, element("i", { className: "kind", word: "admin.revoked" }));
  if (!isSetAside) return element("td", {}, element("i", { className: "kind good", word: "admin.standing" }));
  return element("td", { className: "why" }, element("i", { className: "kind bad", word: "admin.aside" }), element("small", {}, reason ?? ""));
}

function raterRow(rater) {
  const { name, role, num_judged, num_skipped, median_latency_s, per_hour, gold_accuracy, num_gold, position_bias: bias, self_agreement, reliability, num_shared, revoked } = rater;
  const p = bias.p_value === null ? ["admin.bias.plain", { num: bias.num }] : ["admin.bias.p", { p: pValue(bias.p_value), num: bias.num }];
  const revoke = revoked || role === "admin" ? [] : [button({ word: "admin.revoke", className: "quiet small", data: { action: "revoke", name }, label: ["admin.revoke.label", { name }], onclick: () => askRevoke(name) })];
  return element(
    "tr", { data: { rater: name, aside: String(rater.is_set_aside), revoked: String(revoked) } },
    element("th", { scope: "row" }, name, element("small", { word: role })),
    cell(String(num_judged), [`${num_skipped} `, element("span", { word: "admin.skipped" })]),
    cell(decimals(per_hour, 1), seconds(median_latency_s)),
    cell(percents(gold_accuracy), element("span", { word: ["admin.gold.n", { num: num_gold }] })),
    cell(percents(bias.first_share), element("span", { word: p })),
    cell(percents(self_agreement)),
    cell(decimals(reliability), element("span", { word: ["admin.reliability.n", { num: num_shared }] })),
    stateOf(rater),
    element("td", {}, ...revoke),
  );
}

function raters(rows) {
  if (!rows.length) return [element("p", { className: "empty", word: "admin.none" })];
  const head = heads("admin.name", "admin.judged", "admin.perhour", "admin.gold", "admin.bias", "admin.self", "admin.reliability", "admin.state", "admin.revoke");
  head.children[2].append(" ", element("small", { word: "admin.latency" }));
  return [table("raters-table", "admin.raters", head, rows.map(raterRow)), element("p", { className: "fine", word: "admin.raters.about" })];
}

function hours({ by_hour: byHour, by_kind: byKind }) {
  const kinds = Object.entries(byKind).map(([kind, num]) => element("li", { data: { kind } }, element("span", { word: `kind.${kind}` }), ` ${num}`));
  const chart = byHour.length ? hourChart(byHour) : element("p", { className: "none", word: "admin.hours.none" });
  return [element("figure", { className: "chart" }, chart), element("ul", { className: "tags", id: "judgements-by-kind", label: "admin.kinds" }, ...kinds)];
}

function versionRow({ version, num_judgements, accuracy_new, accuracy_before: before, accuracy_after: after, at, state }) {
  const both = before !== null && after !== null;
  const gain = both ? after - before : null;
  const when = new Intl.DateTimeFormat(currentLanguage(), { dateStyle: "short", timeStyle: "short" }).format(new Date(at * 1000));
  return element(
    "tr", { data: { version } },
    element("th", { scope: "row" }, String(version)),
    cell(String(num_judgements)),
    cell(decimals(accuracy_new, 3)),
    element("td", { className: "both" }, element("span", { className: "sft" }, decimals(before, 3)), " → ", element("span", { className: "rlhf" }, decimals(after, 3))),
    element("td", { className: "wide" }, ...(both ? [stepOf(before, after)] : [])),
    element("td", { className: gain > 0 ? "good" : gain < 0 ? "bad" : "" }, both ? signed(gain) : "–"),
    cell(when),
    element("td", { word: `admin.state.${state}` }),
  );
}

function rewardModel({ versions, num_eaten: num }) {
  if (!versions.length) return [element("p", { className: "empty", word: "admin.model.none" })];
  const head = heads("admin.version", "admin.eaten", "admin.foreseen", "admin.accuracy", "admin.gain", "admin.at", "admin.state");
  head.children[3].colSpan = 2;
  return [table("versions-table", "admin.model", head, versions.map(versionRow)), element("p", { className: "fine", word: ["admin.model.about", { num }] })];
}

const spanOf = ({ first, last }) => (first === last ? String(first) : `${first}–${last}`);

function strengthRow(row, start) {
  const against = row === start ? "–" : percents(1 / (1 + Math.exp(start.value - row.value)));
  return element(
    "tr", { data: { run: row.run, version: spanOf(row) } },
    element("th", { scope: "row" }, spanOf(row), element("small", {}, row.run)),
    cell(String(row.num)),
    cell(decimals(row.value), element("span", { word: ["admin.interval", { low: decimals(row.low), high: decimals(row.high) }] })),
    cell(against),
  );
}

function strengths(rows) {
  if (!rows.length) return [element("p", { className: "empty", word: "admin.strength.none" })];
  const head = heads("admin.policy", "admin.compared", "admin.strength", "admin.against");
  const body = rows.map((row) => strengthRow(row, rows.find(({ run }) => run === row.run)));
  return [table("strengths-table", "admin.strengths", head, body), element("p", { className: "fine", word: "admin.strength.about" })];
}

// ---- inviting and revoking

function showInvitation(name, address) {
  const field = element("input", { id: "invite-address", readOnly: true, value: new URL(address, location.href).href });
  const copy = button({ id: "invite-copy", word: "admin.copy" });
  copy.addEventListener("click", async () => {
    field.select();
    // The clipboard is there in secure contexts only; else the address is selected, ready to be copied by hand.
    await navigator.clipboard?.writeText(field.value);
    if (navigator.clipboard) room.hosts.announce("admin.copied");
  });
  byId("invite-result").replaceChildren(
    element("label", { htmlFor: "invite-address", word: ["admin.invite.address", { name }] }),
    element("div", { className: "row" }, field, copy), element("p", { className: "fine", word: "admin.invite.once" }),
  );
  field.focus();
  field.select();
}

async function invite(event) {
  event.preventDefault();
  const { name, role, days } = Object.fromEntries(new FormData(event.target));
  await act(async () => {
    const { address } = await call("POST", "/api/admin/invite", { name: name.trim(), role, days: Number(days) });
    event.target.reset();
    showInvitation(name.trim(), address);
    await refresh();
  });
}

function askRevoke(name) {
  say(byId("revoke-title"), "admin.revoke.title", { name });
  say(byId("revoke-about"), "admin.revoke.about", { name });
  byId("revoke-dialog").dataset.name = name;
  byId("revoke-dialog").showModal();
}

async function revoke() {
  const { name } = byId("revoke-dialog").dataset;
  await act(async () => {
    await call("POST", "/api/admin/revoke", { name });
    room.hosts.announce("admin.revoke.done", { name });
    await refresh();
  });
}

/** Runs a request of an admin once: what an admin does by hand is not repeated by itself. */
async function act(request) {
  try {
    await request();
  } catch (error) {
    if (error instanceof SignedOut) room.hosts.signedOut();
    else room.hosts.announce("said", { text: error instanceof Refusal ? error.message : word("unreachable") });
  }
}

function inviteForm() {
  const field = (name, label, control) => element("div", { className: "field" }, element("label", { htmlFor: `invite-${name}`, word: label }), Object.assign(control, { id: `invite-${name}`, name }));
  const roles = ["rater", "expert"].map((role) => element("option", { value: role, word: role }));
  return element(
    "form", { id: "invite-form", className: "panel form-row", onsubmit: invite },
    field("name", "admin.invite.name", element("input", { type: "text", required: true, maxLength: 80, autocomplete: "off" })),
    field("role", "admin.invite.role", element("select", {}, ...roles)),
    field("days", "admin.invite.days", element("input", { type: "number", min: "0.1", max: "365", step: "any", defaultValue: "14", required: true })),
    element("button", { type: "submit", className: "primary", id: "invite", word: "admin.invite.do" }),
  );
}

function build() {
  const part = (id, title) => element("section", { id: `admin-${id}`, "aria-labelledby": `admin-${id}-title` }, element("h2", { id: `admin-${id}-title`, word: title }), element("div", { className: "part", id: `admin-${id}-body` }));
  const head = element(
    "div", { className: "admin-head" }, element("h1", { word: "admin.title" }), element("p", { className: "fine", id: "admin-refreshed" }),
    element("a", { id: "export", className: "button", href: "/api/admin/export.jsonl", download: "", word: "admin.export" }),
  );
  const invitations = part("invite", "admin.invite");
  invitations.querySelector(".part").append(inviteForm(), element("div", { id: "invite-result", className: "invite-result" }));
  const cancel = button({ word: "cancel", className: "quiet", id: "revoke-cancel", onclick: () => byId("revoke-dialog").close() });
  const form = element("form", { method: "dialog", onsubmit: revoke }, element("div", { className: "row" }, element("button", { className: "primary", id: "revoke-confirm", word: "admin.revoke" }), cancel));
  const dialog = element("dialog", { id: "revoke-dialog", "aria-labelledby": "revoke-title" }, element("h2", { id: "revoke-title" }), element("p", { id: "revoke-about" }), form);
  byId("admin-view").replaceChildren(head, part("agreement", "admin.agreement"), part("hours", "admin.hours"), part("raters", "admin.raters"), part("strengths", "admin.strengths"), part("model", "admin.model"), invitations, dialog);
}

async function refresh() {
  clearTimeout(room.timer);
  try {
    const summary = await insist(() => call("GET", "/api/admin/summary"));
    if (!room.isOpen) return;
    fill("agreement", headline(summary));
    fill("hours", hours(summary.judgements));
    fill("raters", raters(summary.raters));
    fill("strengths", strengths(summary.strengths));
    fill("model", rewardModel(summary.reward_model));
    const time = new Intl.DateTimeFormat(currentLanguage(), { timeStyle: "medium" }).format(new Date());
    say(byId("admin-refreshed"), "admin.refreshed", { time, seconds: EVERY_S });
  } catch (error) {
    if (error instanceof SignedOut) room.hosts.signedOut();
    else room.hosts.announce("said", { text: error.message });
  }
  clearTimeout(room.timer);
  if (room.isOpen) room.timer = setTimeout(refresh, EVERY_S * 1000);
}

/** Fills a part anew, with the focus and the place of a scrolled table kept. */
function fill(id, nodes) {
  const part = byId(`admin-${id}-body`);
  const { name } = document.activeElement?.closest("[data-action=revoke]")?.dataset ?? {};
  const hadFocus = name !== undefined && part.contains(document.activeElement);
  const left = part.querySelector(".scroll")?.scrollLeft ?? 0;
  part.replaceChildren(...nodes);
  if (left) part.querySelector(".scroll").scrollLeft = left;
  if (hadFocus) [...part.querySelectorAll("[data-action=revoke]")].find((one) => one.dataset.name === name)?.focus();
}

/** Opens the overview; it looks again every 20 seconds. `hosts`: `signedOut` and `announce` of the page. */
export function startAdmin(hosts) {
  if (room.isOpen) return;
  Object.assign(room, { hosts, isOpen: true });
  build();
  refresh();
}

/** Closes it; nothing of it stays on the page. */
export function stopAdmin() {
  room.isOpen = false;
  clearTimeout(room.timer);
  byId("admin-view").replaceChildren();
}
