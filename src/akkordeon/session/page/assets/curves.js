// Curves: a chart for each measure, a line for each sentinel, told apart by dashes and not by colour alone.

import { el, keyed, say } from "./dom.js";
import { clock, measure } from "./numbers.js";

const DASHES = [[], [9, 4], [2, 3], [10, 3, 2, 3], [16, 4], [5, 2]];
const LIGHT = ["#0072b2", "#b34700", "#00734f", "#a0427a", "#5c5c58", "#7a5c00"];
const DARK = ["#56b4e9", "#e69f00", "#2bc49a", "#e79bc6", "#c4c4c0", "#f0e442"];
const HEIGHT_SHARE = 0.45;
const STEPS_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400, 604800];

/** Draws curves; `show` draws what is new, `redraw` all, as when colours change. */
export class Curves {
  #place;
  #charts = new Map();
  #places = new Map(); // of sentinels among colours and dashes: the same in every chart
  #curves = {};

  constructor(place) {
    this.#place = place;
    new ResizeObserver(() => this.#resize()).observe(place);
  }

  /** Draw the measures that have new points. */
  show(curves, news) {
    this.#curves = curves;
    const measures = Object.keys(curves).sort((a, b) => (b === "loss") - (a === "loss") || a.localeCompare(b));
    keyed(this.#place, measures.map((what) => [what, what]), (what) => this.#make(what), (figure, what) => {
      if (news.has(what) || !this.#charts.has(what)) this.#draw(figure, what);
    });
    for (const [what, { plot }] of [...this.#charts]) {
      if (what in curves) continue;
      plot.destroy();
      this.#charts.delete(what);
    }
  }

  /** Draw all anew. */
  redraw() {
    for (const { plot } of this.#charts.values()) plot.destroy();
    this.#charts.clear();
    this.show(this.#curves, new Set());
  }

  #make(what) {
    const figure = el("figure");
    figure.canvas = el("div", { role: "img" });
    figure.caption = el("figcaption", {}, el("strong", {}, what));
    figure.keys = el("span");
    figure.keys.style.display = "contents";
    figure.caption.append(figure.keys);
    figure.append(figure.caption, figure.canvas);
    return figure;
  }

  #draw(figure, what) {
    const of = this.#curves[what];
    const names = Object.keys(of).sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
    const tables = names.map((name) => [of[name].map(([s]) => s), of[name].map(([, value]) => value)]);
    const data = uPlot.join(tables.map(sorted));
    const there = this.#charts.get(what);
    if (there && there.names.join("\n") === names.join("\n")) there.plot.setData(data);
    else {
      there?.plot.destroy();
      this.#charts.set(what, { names, plot: new uPlot(this.#options(names), data, figure.canvas) });
    }
    const values = names.map((name) => [name, measure(of[name][of[name].length - 1][1])]);
    figure.canvas.setAttribute("aria-label", `${what}: ${values.map((pair) => pair.join(" ")).join(", ")}`);
    const keys = values.map(([name, value]) => [name, { name, value, place: this.#placeOf(name) }]);
    keyed(figure.keys, keys, makeKey, showKey);
  }

  #options(names) {
    const colours = palette();
    const text = getComputedStyle(document.documentElement).getPropertyValue("--text").trim();
    const line = getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
    const axis = { stroke: text, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
    return {
      ...this.#size(),
      legend: { show: false },
      cursor: { show: false },
      scales: { x: { time: false } },
      axes: [
        { ...axis, incrs: STEPS_S, values: (_, splits) => splits.map((s) => clock(s)) },
        { ...axis, size: 64, values: (_, splits) => splits.map((value) => String(Number(value.toPrecision(4)))) },
      ],
      series: [{}, ...names.map((name) => ({
        label: name,
        stroke: colours[this.#placeOf(name) % colours.length],
        dash: DASHES[this.#placeOf(name) % DASHES.length],
        width: 2,
        spanGaps: true,
        points: { size: 5 },
      }))],
    };
  }

  #placeOf(name) {
    if (!this.#places.has(name)) this.#places.set(name, this.#places.size);
    return this.#places.get(name);
  }

  #size() {
    const width = Math.max(200, this.#place.clientWidth);
    return { width, height: Math.round(Math.min(420, Math.max(150, width * HEIGHT_SHARE))) };
  }

  #resize() {
    for (const { plot } of this.#charts.values()) {
      const size = this.#size();
      if (plot.width !== size.width) plot.setSize(size);
    }
  }
}

/** Of times that are equal the last value is drawn; times go up. */
function sorted([xs, ys]) {
  const of = new Map(xs.map((x, place) => [x, ys[place]]));
  const times = [...of.keys()].sort((a, b) => a - b);
  return [times, times.map((x) => of.get(x))];
}

function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function palette() {
  return isDark() ? DARK : LIGHT;
}

function makeKey({ name }) {
  const key = el("span", { class: "key" });
  key.sample = el("canvas", { width: "70", height: "22", "aria-hidden": "true" });
  key.value = el("span");
  key.append(key.sample, `${name} `, key.value);
  return key;
}

function showKey(key, { value, place }) {
  say(key.value, value);
  const colours = palette();
  const colour = colours[place % colours.length];
  if (key.colour === colour && key.place === place) return;
  key.colour = colour;
  key.place = place;
  const draw = key.sample.getContext("2d");
  draw.clearRect(0, 0, 70, 22);
  draw.strokeStyle = colour;
  draw.lineWidth = 5;
  draw.setLineDash(DASHES[place % DASHES.length].map((length) => 2 * length));
  draw.beginPath();
  draw.moveTo(2, 11);
  draw.lineTo(68, 11);
  draw.stroke();
}
