// Numbers in words that fit, and how fast they grow.

const OVER_S = 5;

/** How fast numbers grow, over the last seconds. */
export class Rates {
  #points = new Map();

  /** Take in what a number is at a time; gives its growth per second, or null before there are two. */
  add(key, atS, value) {
    if (typeof value !== "number" || typeof atS !== "number") return null;
    let points = this.#points.get(key);
    if (!points) this.#points.set(key, (points = []));
    const last = points[points.length - 1];
    if (last && (atS < last[0] || value < last[1])) points.length = 0; // begun anew
    if (!last || atS > last[0] || !points.length) points.push([atS, value]);
    while (points.length > 2 && atS - points[0][0] > OVER_S) points.shift();
    const [firstS, first] = points[0];
    const [lastS, latest] = points[points.length - 1];
    return lastS > firstS ? (latest - first) / (lastS - firstS) : null;
  }
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A whole number, or a dash where there is none. */
export function count(value) {
  return typeof value === "number" ? whole.format(value) : "–";
}

/** A measured number in few digits. */
export function measure(value) {
  if (typeof value !== "number") return "–";
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(3) : value.toFixed(4);
}

/** Bytes in a unit that fits. */
export function bytes(value) {
  if (typeof value !== "number") return "–";
  let unit = 0;
  while (value >= 1000 && unit < 4) {
    value /= 1000;
    unit += 1;
  }
  return `${value.toFixed(unit && value < 100 ? 1 : 0)} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

/** Seconds as a clock has them. */
export function clock(seconds) {
  const all = Math.max(0, Math.round(seconds));
  const two = (n) => String(n).padStart(2, "0");
  const hours = Math.floor(all / 3600);
  return `${hours ? `${hours}:` : ""}${hours ? two(Math.floor(all / 60) % 60) : Math.floor(all / 60)}:${two(all % 60)}`;
}

/** A share in percent. */
export function share(value) {
  return typeof value === "number" ? `${Math.round(100 * Math.min(1, Math.max(0, value)))} %` : "–";
}

/** What a class of τ is called: 0, 1, 2–3, 4–7, … */
export function staleness(place) {
  if (place < 2) return String(place);
  return `${2 ** (place - 1)}–${2 ** place - 1}`;
}
