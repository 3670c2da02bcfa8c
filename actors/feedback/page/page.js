// The rating page: who is logged in, which view is shown, and what the browser does meanwhile (keys, tabs, lost networks).
// Rating itself is rate.js, the overview for admins admin.js.
import { startAdmin, stopAdmin } from "./admin.js";
import { call, hurry, insist, onTrouble, Refusal, session, SignedOut } from "./api.js";
import { announce, byId, showOnly } from "./dom.js";
import { forget } from "./drafts.js";
import { flush } from "./events.js";
import { listen, listKeys } from "./keys.js";
import { startZoom } from "./media.js";
import * as rate from "./rate.js";
import { Outbox } from "./outbox.js";
import { addWords, currentLanguage, hasWord, say, switchLanguage, translate, word } from "./words.js";

const VIEWS = ["loading-view", "login-view", "rate-view", "admin-view"];
const RATER_SHELF = "polyphony.rater";

const outbox = new Outbox({ complain: (error) => announce("said", { text: error.message }), signedOut });

const remember = (rater) => {
  try {
    sessionStorage.setItem(RATER_SHELF, rater);
  } catch {
    // No storage: after a reload nothing of the last rater is left to be kept apart.
  }
};

const rememberedRater = () => {
  try {
    return sessionStorage.getItem(RATER_SHELF);
  } catch {
    return null;
  }
};

// ---- views

const isAdmin = () => session.role === "admin";

/** The view in the address; an admin starts with the overview. */
function wantedView() {
  return isAdmin() && location.hash !== "#rate" ? "admin-view" : "rate-view";
}

function showView(view) {
  const isRating = view === "rate-view";
  const isIn = isRating || view === "admin-view";
  showOnly(VIEWS.map(byId), byId(view));
  for (const id of ["who", "logout"]) byId(id).hidden = !isIn;
  byId("views").hidden = !(isIn && isAdmin());
  byId("progress-box").hidden = byId("keys").hidden = !isRating;
  for (const [id, one] of [["view-rate", "rate-view"], ["view-admin", "admin-view"]]) {
    if (view === one) byId(id).setAttribute("aria-current", "page");
    else byId(id).removeAttribute("aria-current");
  }
  document.body.dataset.view = view.replace("-view", "");
  rate.look(isRating);
  if (view === "admin-view") startAdmin({ signedOut, announce });
  else stopAdmin();
}

function enterView() {
  showView(wantedView());
}

// ---- session

/** The session is over: back to the log-in, with what was typed left as it is behind it. */
function signedOut() {
  if (session.csrf === null && !byId("login-view").hidden) return;
  const wasIn = session.csrf !== null;
  session.csrf = null;
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  showLogin(wasIn ? "login.expired" : null);
}

function showLogin(message) {
  showView("login-view");
  byId("invitation").focus();
  complainLogin(message);
}

function complainLogin(message, values = {}) {
  const field = byId("login-error");
  if (message) say(field, message, values);
  else {
    delete field.dataset.word;
    field.textContent = "";
  }
  byId("invitation").setAttribute("aria-invalid", String(Boolean(message) && message !== "login.expired"));
}

/** Labels that came with the criteria go before the page's own words; one that has neither is shown by its name. */
function learnCriteria(criteria) {
  for (const { name, label } of criteria) {
    const key = `criterion.${name}`;
    const plain = name.replaceAll("_", " ");
    if (label) addWords({ en: { [key]: label.en ?? plain }, zh: { [key]: label.zh ?? label.en ?? plain } });
    else if (!hasWord(key)) addWords({ en: { [key]: plain }, zh: { [key]: plain } });
  }
}

/** Takes in who is logged in. The same rater goes on where the session was lost; another one starts afresh. */
async function welcome() {
  const me = await insist(() => call("GET", "/api/me"));
  const isSame = session.rater === me.rater && rate.hasItem();
  if (rememberedRater() !== me.rater) forget();
  remember(me.rater);
  Object.assign(session, { rater: me.rater, role: me.role, csrf: me.csrf });
  learnCriteria(me.criteria);
  byId("who").textContent = me.rater;
  byId("who").dataset.role = me.role;
  if (isSame) {
    enterView();
    outbox.drain();
    return;
  }
  // What the last visit left unsent goes first: the next item depends on it.
  await outbox.drain();
  if (session.csrf === null) return;
  rate.enter(me);
  enterView();
}

async function logIn(token) {
  byId("login").disabled = true;
  try {
    await insist(() => call("POST", "/api/login", { token }));
    byId("invitation").value = "";
    complainLogin(null);
    await welcome();
    announce("login.done", { name: session.rater });
  } catch (error) {
    if (error instanceof SignedOut) showLogin("login.expired");
    else if (error instanceof Refusal) {
      showLogin(null);
      byId("invitation").value = token;
      complainLogin("said", { text: error.message });
    } else throw error;
  } finally {
    byId("login").disabled = false;
  }
}

async function logOut() {
  rate.leave();
  await flush();
  try {
    await call("POST", "/api/logout");
  } catch (error) {
    if (!(error instanceof SignedOut)) {
      announce("said", { text: error instanceof Refusal ? error.message : word("unreachable") });
      await welcome();
      return;
    }
  }
  Object.assign(session, { rater: null, role: null, csrf: null });
  forget();
  showLogin(null);
  announce("logged.out");
}

/** The invitation in the address, which is removed from there at once so that it stays in no history. */
function takeInvitation() {
  const token = new URLSearchParams(location.hash.slice(1)).get("invitation");
  if (token) history.replaceState(null, "", location.pathname);
  return token;
}

// ---- wiring

function wireSession() {
  byId("login-form").addEventListener("submit", (event) => {
    event.preventDefault();
    // A whole address is as good as the invitation in it.
    const typed = byId("invitation").value.trim();
    const token = typed.split("#invitation=").at(-1);
    if (token) logIn(decodeURIComponent(token));
    else complainLogin("login.empty");
  });
  byId("logout").addEventListener("click", logOut);
  window.addEventListener("hashchange", () => {
    const token = takeInvitation();
    if (token) logIn(token);
    else if (session.csrf) enterView();
  });
}

function wireBrowser() {
  byId("language").addEventListener("click", () => {
    switchLanguage();
    nameOtherLanguage();
  });
  byId("keys").addEventListener("click", () => byId("keys-dialog").showModal());
  byId("retry").addEventListener("click", hurry);
  window.addEventListener("online", hurry);
  onTrouble((error) => {
    byId("trouble").hidden = error === null;
    if (error === null) return;
    const away = outbox.numPending ? "trouble.kept" : "trouble";
    say(byId("trouble-text"), error.status === 429 ? "trouble.slow" : away);
  });
  document.addEventListener("visibilitychange", () => {
    rate.hold("hidden", document.hidden);
    if (document.hidden) rate.part();
  });
  window.addEventListener("pagehide", rate.part);
  window.addEventListener("beforeunload", (event) => outbox.numPending && event.preventDefault());
  listen((key) => {
    if (byId("rate-view").hidden) return false;
    if (key !== "?") return rate.press(key);
    byId("keys-dialog").showModal();
    return true;
  });
}

/** The button is named in the language that it leads to. */
function nameOtherLanguage() {
  byId("language").lang = currentLanguage() === "en" ? "zh-CN" : "en";
}

async function start() {
  listKeys();
  translate();
  nameOtherLanguage();
  rate.furnish({ outbox, signedOut });
  rate.startRating();
  startZoom();
  wireSession();
  wireBrowser();
  const token = takeInvitation();
  if (token) {
    await logIn(token);
    return;
  }
  try {
    await welcome();
  } catch (error) {
    if (!(error instanceof SignedOut)) throw error;
    showLogin(null);
  }
}

start();
