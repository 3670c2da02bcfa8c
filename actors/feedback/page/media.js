// Pictures, sounds and videos of a prompt, and the dialog in which a picture is looked at closely.
import { byId, element } from "./dom.js";
import { soundFigure } from "./sound.js";
import { say } from "./words.js";

const SMALL_PX = 160; // tiny pictures grow with hard edges, so that every pixel shows; photographs stay smooth

/** Tells the seconds for which a player has really played whenever it stops; returns how to tell them at once. */
function countPlayed(player, tell) {
  let since = null;
  const report = (isOver) => {
    const now = performance.now();
    if (since !== null) tell((now - since) / 1000);
    since = since === null || isOver ? null : now;
  };
  player.addEventListener("playing", () => { since ??= performance.now(); });
  for (const kind of ["pause", "ended", "waiting", "emptied"]) player.addEventListener(kind, () => report(true));
  return report;
}

/** In place of what cannot be loaded: a word and a way to try again. */
function mend(figure, player) {
  const note = element("p", { className: "note", hidden: true }, element("span", { word: "media.failed" }), " ");
  const again = element("button", { type: "button", word: "media.again" });
  again.addEventListener("click", () => {
    note.hidden = true;
    const { src } = player;
    player.src = "";
    player.src = src;
  });
  note.append(again);
  player.addEventListener("error", () => { note.hidden = false; });
  figure.append(note);
}

function pictureFigure(url, n) {
  const picture = element("img", { src: url, alternative: ["picture.alt", { n }] });
  picture.addEventListener("load", () => picture.classList.toggle("pixels", picture.naturalWidth < SMALL_PX));
  const open = element("button", { type: "button", className: "zoomable", "aria-haspopup": "dialog", label: ["picture.zoom", { n }] }, picture);
  const figure = element("figure", { className: "medium picture", data: { kind: "image" } }, open);
  return { figure, player: picture, open };
}

function videoFigure(url, n) {
  const player = element("video", { src: url, controls: true, playsInline: true, preload: "metadata", label: ["video", { n }] });
  player.addEventListener("loadedmetadata", () => player.classList.toggle("pixels", player.videoWidth < SMALL_PX));
  return { figure: element("figure", { className: "medium video", data: { kind: "video" } }, player), player };
}

const FIGURES = { image: pictureFigure, audio: soundFigure, video: videoFigure };

/** The media of one prompt. `opened` is told of a zoomed picture, `played` of seconds played. */
export class Media {
  #counts = { image: 0, audio: 0, video: 0 };
  #pictures = [];
  #players = [];
  #last = null;
  #reports = [];

  constructor({ opened, played }) {
    Object.assign(this, { opened, played });
  }

  /** The figure of a medium {kind, url}. */
  add({ kind, url }) {
    const n = (this.#counts[kind] += 1);
    const { figure, player, open } = FIGURES[kind](url, n);
    mend(figure, player);
    if (open) {
      open.addEventListener("click", () => this.zoom(player));
      this.#pictures.push(player);
    } else {
      player.addEventListener("play", () => { this.#last = player; });
      this.#reports.push(countPlayed(player, this.played));
      this.#players.push(player);
    }
    return figure;
  }

  /** Zooms the given picture, or the one in focus, or the first. */
  zoom(picture = this.#focused(this.#pictures)) {
    if (!picture) return false;
    showPicture(this.#pictures, this.#pictures.indexOf(picture));
    this.opened();
    return true;
  }

  /** Plays or stops the player in focus, the one used last, or the first. */
  toggle() {
    const player = this.#players.find((one) => !one.paused) ?? this.#focused(this.#players, this.#last);
    if (!player) return false;
    if (player.paused) player.play().catch(() => {});
    else player.pause();
    return true;
  }

  /** Reports what was played so far without stopping it. */
  report() {
    for (const report of this.#reports) report(false);
  }

  pause() {
    for (const player of this.#players) player.pause();
    for (const report of this.#reports) report(true); // the pause event comes later, when the item may be gone
  }

  #focused(players, otherwise = null) {
    const figure = document.activeElement?.closest(".medium");
    return players.find((player) => figure?.contains(player)) ?? otherwise ?? players[0];
  }
}

let shown = { pictures: [], at: 0 };

function showPicture(pictures, at) {
  shown = { pictures, at: (at + pictures.length) % pictures.length };
  const { src, naturalWidth } = pictures[shown.at];
  const picture = byId("zoom-picture");
  picture.src = src;
  picture.classList.toggle("pixels", naturalWidth < SMALL_PX);
  picture.classList.remove("actual");
  say(picture, "picture.alt", { n: shown.at + 1 }, "alt");
  say(byId("zoom-place"), "zoom.place", { n: shown.at + 1, of: pictures.length });
  byId("zoom-place").hidden = pictures.length < 2;
  if (!byId("zoom-dialog").open) byId("zoom-dialog").showModal();
}

/** Keys and clicks of the zoom dialog: arrows go from picture to picture, a click shows the true size, Z closes. */
export function startZoom() {
  const dialog = byId("zoom-dialog");
  dialog.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (step && shown.pictures.length > 1) showPicture(shown.pictures, shown.at + step);
    if (event.key.toLowerCase() === "z") dialog.close();
    event.stopPropagation(); // else the page would open it again
  });
  byId("zoom-picture").addEventListener("click", ({ target }) => target.classList.toggle("actual"));
  byId("zoom-stage").addEventListener("click", ({ target, currentTarget }) => target === currentTarget && dialog.close());
}
