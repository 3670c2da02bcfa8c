// A sound: its waveform to look at and to click into. The file itself is played by <audio>, which streams it; the waveform
// is decoded beside it, and where that fails the browser's own controls take over.
import { element } from "./dom.js";
import { say } from "./words.js";

const MOST_BYTES = 16 * 2 ** 20; // longer files would take too much memory once decoded
const DECODE_HZ = 8000; // the lowest rate that browsers must offer: enough for a picture, and small
const BAR_PX = 3;
const GAP_PX = 2;
const STEP_S = 5;

const clockTime = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;

/** The loudest sample in each of `num` equal stretches, scaled so that the loudest of all is 1. */
export function peaksOf(samples, num) {
  const peaks = new Float32Array(num);
  for (let at = 0; at < samples.length; at += 1) {
    const bin = Math.min(num - 1, Math.floor((at * num) / samples.length));
    peaks[bin] = Math.max(peaks[bin], Math.abs(samples[at]));
  }
  const loudest = Math.max(...peaks) || 1;
  return peaks.map((peak) => peak / loudest);
}

async function decode(url) {
  const response = await fetch(url, { credentials: "same-origin" });
  if (!response.ok) throw new Error(`status ${response.status}`);
  if (Number(response.headers.get("Content-Length")) > MOST_BYTES) throw new Error("too long for a waveform");
  const sound = await new OfflineAudioContext(1, 1, DECODE_HZ).decodeAudioData(await response.arrayBuffer());
  return sound.getChannelData(0);
}

function draw(canvas, samples, share) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width) return;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const num = Math.max(1, Math.floor(width / (BAR_PX + GAP_PX)));
  peaksOf(samples, num).forEach((peak, at) => {
    const tall = Math.max(2, peak * (height - 4));
    pen.fillStyle = style.getPropertyValue(at < share * num ? "--rlhf" : "--faint");
    pen.beginPath();
    pen.roundRect(at * (BAR_PX + GAP_PX), (height - tall) / 2, BAR_PX, tall, BAR_PX / 2);
    pen.fill();
  });
}

function follow(audio, { play, wave, canvas, time }, samples, n) {
  const refresh = () => {
    const length = audio.duration || 0;
    draw(canvas, samples, length ? audio.currentTime / length : 0);
    time.textContent = `${clockTime(audio.currentTime)} / ${clockTime(length)}`;
    wave.setAttribute("aria-valuemax", length.toFixed(1));
    wave.setAttribute("aria-valuenow", audio.currentTime.toFixed(1));
    wave.setAttribute("aria-valuetext", time.textContent);
  };
  const run = () => {
    refresh();
    if (!audio.paused) requestAnimationFrame(run);
  };
  const seek = (seconds) => { audio.currentTime = Math.min(audio.duration || 0, Math.max(0, seconds)); };
  audio.addEventListener("play", run);
  for (const kind of ["pause", "seeked", "ended", "loadedmetadata"]) audio.addEventListener(kind, refresh);
  for (const kind of ["play", "pause"]) {
    audio.addEventListener(kind, () => {
      play.dataset.playing = String(!audio.paused);
      say(play, audio.paused ? "sound.play" : "sound.pause", { n }, "label");
    });
  }
  wave.addEventListener("click", (event) => {
    const box = canvas.getBoundingClientRect();
    seek(((event.clientX - box.left) / box.width) * audio.duration);
  });
  wave.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: audio.currentTime - STEP_S, ArrowRight: audio.currentTime + STEP_S, Home: 0, End: audio.duration }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    seek(to);
  });
  new ResizeObserver(refresh).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", refresh);
  refresh();
}

/** The figure of a sound and its <audio>. */
export function soundFigure(url, n) {
  const audio = element("audio", { src: url, preload: "metadata", label: ["sound", { n }] });
  const canvas = element("canvas", { className: "waveform", "aria-hidden": "true" });
  const wave = element("div", { className: "wave", role: "slider", tabIndex: 0, label: ["sound.seek", { n }], "aria-valuemin": "0", "aria-valuemax": "0", "aria-valuenow": "0" }, canvas);
  const play = element("button", { type: "button", className: "play", label: ["sound.play", { n }], data: { playing: "false" } });
  const time = element("span", { className: "time", "aria-hidden": "true" });
  play.addEventListener("click", () => (audio.paused ? audio.play() : audio.pause()));
  const player = element("div", { className: "player" }, play, wave, time);
  const figure = element("figure", { className: "medium sound", data: { kind: "audio" } }, player, audio);
  decode(url).then(
    (samples) => follow(audio, { play, wave, canvas, time }, samples, n),
    () => {
      player.remove();
      audio.controls = true;
      figure.dataset.fallback = "true";
    },
  );
  return { figure, player: audio };
}
