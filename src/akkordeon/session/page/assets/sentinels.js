// A card for each sentinel: how far it is, how fast, how long it will take, and where its batches went.

import { el, facts, keyed, say } from "./dom.js";
import { clock, count, measure, Rates } from "./numbers.js";

const MARKS = { "at work": "▶", ended: "■", stopped: "‖", failed: "✖" };
const rates = new Rates();

/** Show them. `latest` gives the last value of each measure of a sentinel. */
export function showSentinels(list, picture, latest, steer) {
  const things = Object.entries(picture.sentinels ?? {}).map(([name, sentinel]) => [
    name, { sentinel, now: picture.now_s, latest: latest(name), steer },
  ]);
  keyed(list, things, make, show);
}

function make(_, name) {
  const card = el("li", { class: "card" });
  card.head = el("h3", {}, name);
  card.state = el("p");
  card.bar = el("progress", { max: "1", "aria-label": "trained so far" });
  card.list = facts();
  card.why = el("p", { class: "warn" });
  card.detach = el("button", { type: "button" }, "detach");
  card.detach.addEventListener("click", () =>
    card.steer({ do: "detach", sentinel: name }, `Have ${name} send nothing new, and end?`));
  card.append(card.head, card.state, card.bar, card.list, card.why, card.detach);
  return card;
}

function show(card, { sentinel, now, latest, steer }, name) {
  card.steer = steer;
  const atWork = sentinel.state === "at work";
  card.detach.hidden = !steer || !atWork;
  say(card.state, `${MARKS[sentinel.state] ?? ""} ${sentinel.role ?? ""}, ${sentinel.state ?? ""}`);
  const wanted = sentinel.samples_wanted;
  card.bar.hidden = !wanted;
  if (wanted) card.bar.value = Math.min(1, sentinel.samples / wanted);
  card.list.show([...progress(sentinel, name, now, atWork), ...latest, ...batches(sentinel)]);
  say(card.why, sentinel.why ? `⚠ ${sentinel.why}` : "");
  card.why.hidden = !sentinel.why;
}

function progress(sentinel, name, now, atWork) {
  const found = [];
  const of = sentinel.rounds_wanted ? ` of ${count(sentinel.rounds_wanted)}` : "";
  const rounds = sentinel.trains === false ? "rounds" : "epochs";
  if ("rounds" in sentinel) found.push([rounds, `${count(sentinel.rounds)}${of}`]);
  const perS = atWork
    ? rates.add(`${sentinel.address} samples`, now, sentinel.samples)
    : sentinel.seconds ? sentinel.samples / sentinel.seconds : null;
  if (sentinel.samples) found.push(["samples", count(sentinel.samples)]);
  if (perS) found.push(["samples/s", count(perS)]);
  if (atWork && perS && sentinel.samples_wanted) {
    found.push(["time left", clock((sentinel.samples_wanted - sentinel.samples) / perS)]);
  }
  if (!atWork && sentinel.seconds) found.push(["taken", clock(sentinel.seconds)]);
  if (sentinel.where) found.push(["process", sentinel.where]);
  return found;
}

function batches(sentinel) {
  const found = [];
  if (sentinel.in_flight) found.push(["in flight", count(sentinel.in_flight)]);
  if (sentinel.trained) found.push(["trained", `${count(sentinel.trained)} batches`]);
  if (sentinel.refused) found.push(["⚠ refused", count(sentinel.refused)]);
  if (sentinel.lost) found.push(["⚠ lost", count(sentinel.lost)]);
  return found;
}

/** The last values of a sentinel, for `showSentinels`. */
export function latestOf(curves) {
  return (name) => Object.entries(curves)
    .filter(([, of]) => of[name]?.length)
    .map(([what, of]) => [what, measure(of[name][of[name].length - 1][1])]);
}
