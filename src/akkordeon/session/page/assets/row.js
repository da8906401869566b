// The row of gates as a picture: cards with what each gate does, and how many batches are between them.

import { el, facts, keyed, say } from "./dom.js";
import { bytes, count, share, staleness, Rates } from "./numbers.js";

const DOTS_MAX = 6;
const MANY = 100;
const rates = new Rates();

// Of a row of many gates only what is near the window is kept up to date: all of them would be felt.
const nearby = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    target.isFar = !isIntersecting;
    if (isIntersecting) target.update?.();
  }
}, { rootMargin: "50%" });

/** Show the row. `steer` asks for something that changes a gate; null where nobody may. */
export function showRow(list, heading, picture, steer) {
  const gates = picture.gates ?? {};
  const row = picture.row ?? [];
  const areShards = row.some((address) => gates[address]?.shard);
  const edges = areShards ? null : picture.edges;
  say(heading, areShards ? "Shards" : "Gates");
  const things = [];
  row.forEach((address, place) => {
    const before = place ? gates[row[place - 1]]?.name ?? row[place - 1] : "sentinels";
    if (edges) things.push([`edge ${place}`, { edge: edges[place], between: [before, gates[address]?.name] }]);
    things.push([address, { gate: gates[address] ?? {}, address, now: picture.now_s, steer }]);
  });
  if (edges && row.length) {
    const last = gates[row[row.length - 1]]?.name;
    things.unshift(["head", { end: "sentinels" }]);
    things.push([`edge ${row.length}`, { edge: edges[row.length], between: [last, "the loss"] }]);
    things.push(["tail", { end: "loss" }]);
  }
  list.classList.toggle("many", row.length > MANY);
  keyed(list, things, make, (element, thing) => {
    element.update = () => show(element, thing);
    if (row.length <= MANY || !element.isFar) element.update();
  });
}

function make(thing) {
  if (thing.end) return el("li", { class: "end" }, thing.end);
  const made = "edge" in thing ? makeEdge() : makeGate(thing);
  nearby.observe(made);
  return made;
}

function show(element, thing) {
  if (thing.end) return;
  if ("edge" in thing) showEdge(element, thing);
  else showGate(element, thing);
}

// ── edges ─────────────────────────────────────────────────────────────────────────────────────────────

function makeEdge() {
  const edge = el("li", { class: "edge" });
  edge.dots = el("span", { class: "dots", "aria-hidden": "true" });
  edge.number = el("span", { class: "count" });
  edge.append(edge.dots, edge.number, el("span", { class: "ways", "aria-hidden": "true" }));
  return edge;
}

function showEdge(edge, { edge: batches = 0, between }) {
  say(edge.number, count(batches));
  const wanted = Math.min(batches, DOTS_MAX);
  while (edge.dots.children.length < wanted) edge.dots.append(el("i"));
  while (edge.dots.children.length > wanted) edge.dots.lastChild.remove();
  const words = `${count(batches)} ${batches === 1 ? "batch" : "batches"} between ${between[0]} and ${between[1]}`;
  if (edge.title !== words) {
    edge.title = words;
    edge.setAttribute("aria-label", words);
  }
}

// ── gates and shards ──────────────────────────────────────────────────────────────────────────────────

function makeGate({ address }) {
  const card = el("li", { class: "gate card" });
  card.head = el("h3");
  card.busy = el("div", { class: "busy", "aria-hidden": "true" }, el("b")); // what is read is in the list
  card.list = facts();
  card.bars = el("div", { class: "histogram", role: "img" });
  card.buttons = el("span", { class: "buttons" });
  card.append(card.head, card.busy, card.list, card.bars, card.buttons);
  card.steer = null;
  const button = (label, order, question, value) => el("button", {
    type: "button",
    onclick: () => card.steer({ do: "set", gate: address, ...order }, question(card.head.textContent), value),
  }, label);
  card.buttons.append(
    button("learning rate …", {}, (name) => `Another learning rate for ${name}?`, "lr"),
    button("freeze", { frozen: true }, (name) => `Freeze ${name}? It passes gradients on and keeps its weights.`),
    button("thaw", { frozen: false }, (name) => `Have ${name} learn again?`),
  );
  return card;
}

function showGate(card, { gate, address, now, steer }) {
  card.steer = steer;
  card.buttons.hidden = !steer || Boolean(gate.shard);
  say(card.head, gate.name ?? address);
  const busy = rates.add(`${address} busy`, now, gate.busy_s);
  card.busy.firstChild.style.width = `${100 * Math.min(1, busy ?? 0)}%`;
  card.list.show([...work(gate, address, now, busy), ...memory(gate), ...troubles(gate)]);
  showHistogram(card.bars, gate);
}

function work(gate, address, now, busy) {
  const perSecond = (what, value) => rates.add(`${address} ${what}`, now, value);
  const found = [["version", count(gate.version)]];
  if ("queued" in gate) found.push(["busy", share(busy)], ["queue", count(gate.queued)]);
  if (gate.shard) {
    const { pushes, fetches, bytes_in: came, bytes_out: went, waiting } = gate.shard;
    found.push(
      ["pushes", `${count(perSecond("pushes", pushes))}/s, ${count(pushes)}`],
      ["fetches", `${count(perSecond("fetches", fetches))}/s, ${count(fetches)}`],
      ["in", `${bytes(perSecond("in", came))}/s, ${bytes(came)}`],
      ["out", `${bytes(perSecond("out", went))}/s, ${bytes(went)}`],
    );
    if (waiting) found.push(["fetches that wait", count(waiting)]);
  } else if ("stashed" in gate) {
    found.push(["in flight", count(gate.stashed)]);
  }
  if ("staleness_mean" in gate) found.push(["τ", `mean ${gate.staleness_mean}, max ${gate.staleness_max}`]);
  for (const [name, value] of Object.entries(gate.settings ?? {})) found.push([`set ${name}`, value]);
  return found;
}

function memory(gate) {
  const found = [];
  if (gate.weights_bytes) found.push(["weights", bytes(gate.weights_bytes)]);
  if (gate.copies_bytes) found.push(["all versions", `${bytes(gate.copies_bytes)} in ${count(gate.copies)}`]);
  if (gate.pinned) found.push(["cuts pinned", count(gate.pinned)]);
  return found;
}

function troubles(gate) {
  const found = [];
  for (const [fault, number] of Object.entries(gate.refused ?? {})) {
    found.push([`⚠ refused, ${fault.replaceAll("_", " ")}`, count(number)]);
  }
  if (gate.restarts) found.push(["⚠ made anew", count(gate.restarts)]);
  return found;
}

function showHistogram(bars, gate) {
  const classes = gate.staleness ?? [];
  const most = Math.max(1, ...classes);
  bars.hidden = !classes.length;
  const words = `τ: ${classes.map((number, place) => `${staleness(place)} ${count(number)} times`).join(", ")}`;
  if (bars.title === words) return;
  bars.title = words;
  bars.setAttribute("aria-label", words);
  keyed(bars, classes.map((number, place) => [String(place), number]), (_, place) => {
    return el("span", {}, el("b"), staleness(Number(place)));
  }, (column, number) => {
    column.firstChild.style.height = `${Math.round((60 * number) / most)}%`;
    column.firstChild.hidden = !number;
  });
}
