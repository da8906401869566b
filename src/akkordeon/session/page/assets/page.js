// The page: events come from the server, and every part shows what it is about.

import { Curves } from "./curves.js";
import { el, keyed, say } from "./dom.js";
import { bytes, clock } from "./numbers.js";
import { showRow } from "./row.js";
import { latestOf, showSentinels } from "./sentinels.js";
import { State } from "./state.js";
import { Steering } from "./steering.js";

const AGAIN_MS = 3000;
const by = (id) => document.getElementById(id);

const state = new State();
const curves = new Curves(by("curves"));
const steering = new Steering(() => show(new Set()));

// ── events ────────────────────────────────────────────────────────────────────────────────────────────

let source = null;
let ended = false;
let again = 0;

function connect() {
  clearTimeout(again);
  source?.close();
  if (ended || document.hidden) return;
  source = new EventSource("events");
  source.addEventListener("message", (event) => take(event, "live"));
  source.addEventListener("last", (event) => {
    ended = true;
    source.close();
    take(event, "has ended; this is the last that was seen of it");
  });
  source.addEventListener("error", () => {
    say(by("state"), "✖ no connection; trying again …");
    if (source.readyState === EventSource.CLOSED) again = setTimeout(connect, AGAIN_MS);
  });
}

function take(event, how) {
  const news = state.take(JSON.parse(event.data));
  show(news);
  say(by("state"), `${how}, ${clock(state.picture.seconds ?? 0)}`);
}

// One that nobody looks at costs nothing: it comes again with all there is.
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    source?.close();
    if (!ended) say(by("state"), "paused, as nobody looks");
  } else connect();
});

// ── parts ─────────────────────────────────────────────────────────────────────────────────────────────

function show(news) {
  const picture = state.picture;
  const steer = picture.offers ? steering.steer : null;
  const title = picture.title ?? "akkordeon";
  say(by("title"), title);
  if (document.title !== title) document.title = title;
  line("trouble", picture.failure ?? picture.trouble, "⚠ ");
  line("note", picture.note, "");
  steering.show(picture);
  showRow(by("row"), by("row-heading"), picture, steer);
  showSentinels(by("sentinels"), picture, latestOf(state.curves), steer);
  curves.show(state.curves, news);
  showHosts(picture);
  showLog();
}

function line(id, text, mark) {
  by(id).hidden = !text;
  say(by(id), text ? mark + text : "");
}

function showHosts({ hosts = {}, process }) {
  const things = Object.entries(hosts).map(([key, { node, pid, actors }]) => [
    key, `${node}, process ${pid}: ${actors.join(", ")}`,
  ]);
  if (process) {
    const gpu = process.gpu_bytes ? `, ${bytes(process.gpu_bytes)} on GPUs` : "";
    const where = `${process.node}, process ${process.pid} (this one)`;
    things.unshift(["here", `${where}: ${bytes(process.memory_bytes)}${gpu}`]);
  }
  by("hosts-section").hidden = !things.length;
  keyed(by("hosts"), things, () => el("li"), (item, text) => say(item, text));
}

const MARKS = {
  came: "→", went: "←", failed: "✖", refused: "⚠", recovered: "↻", changed: "✎", asked: "☞", noted: "·",
};

function showLog() {
  const things = [...state.log].reverse().map((entry) => [String(entry.n), entry]);
  keyed(by("log"), things, ({ seconds, kind, who, text }) =>
    el("li", { class: kind }, el("time", {}, clock(seconds)),
      el("span", { class: "kind" }, `${MARKS[kind] ?? ""} ${kind}`), el("strong", {}, who), ` ${text}`), () => {});
}

// ── dark and light ────────────────────────────────────────────────────────────────────────────────────

const THEME = "akkordeon theme";
const root = document.documentElement;

function theme(chosen) {
  if (chosen) root.dataset.theme = chosen;
  else delete root.dataset.theme;
}

by("theme").addEventListener("click", () => {
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  localStorage.setItem(THEME, dark ? "light" : "dark");
  theme(localStorage.getItem(THEME));
  curves.redraw();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => curves.redraw());
theme(localStorage.getItem(THEME));

connect();
