// What the server has told so far.

// Names are whatever users have chosen: an object that inherits something would have a "constructor" by itself.
const nothing = () => Object.create(null);

/** A value with a JSON Merge Patch (RFC 7396) applied; what is there is changed. */
export function merged(there, patch) {
  if (patch === null || typeof patch !== "object" || Array.isArray(patch)) return patch;
  const into = there !== null && typeof there === "object" && !Array.isArray(there) ? there : nothing();
  for (const [key, value] of Object.entries(patch)) {
    if (value === null) delete into[key];
    else into[key] = merged(into[key], value);
  }
  return into;
}

const POINTS_MAX = 4000;
const LOG_MAX = 500;
const CURVES_MAX = 200; // where sentinels come and go there are ever more

/** The picture, the curves and the log; `take` adds an event to them. */
export class State {
  picture = nothing();
  curves = nothing();
  log = [];
  #latest = new Map(); // measure and sentinel of each curve; the last is the one that had a point last

  /** Take an event in; gives the measures that have new points. */
  take(event) {
    if (event.first) {
      this.picture = nothing();
      this.curves = nothing();
      this.log = [];
      this.#latest.clear();
    }
    this.picture = merged(this.picture, event.picture ?? {});
    const news = new Set();
    for (const [who, measures] of Object.entries(event.curves ?? {})) {
      for (const [measure, points] of Object.entries(measures)) {
        const curve = this.#curve(measure, who);
        curve.push(...points);
        if (curve.length > POINTS_MAX) curve.splice(0, POINTS_MAX / 2, ...everySecond(curve, POINTS_MAX / 2));
        news.add(measure);
      }
    }
    this.#forgetSome(news);
    this.log = [...this.log, ...(event.log ?? [])].slice(-LOG_MAX);
    return news;
  }

  #curve(measure, who) {
    const key = JSON.stringify([measure, who]);
    this.#latest.delete(key);
    this.#latest.set(key, [measure, who]);
    return ((this.curves[measure] ??= nothing())[who] ??= []);
  }

  /** Forget the curves that had no point for longest, if there are too many. */
  #forgetSome(news) {
    for (const [key, [measure, who]] of this.#latest) {
      if (this.#latest.size <= CURVES_MAX) break;
      this.#latest.delete(key);
      delete this.curves[measure][who];
      if (!Object.keys(this.curves[measure]).length) delete this.curves[measure];
      news.add(measure);
    }
  }
}

function everySecond(points, until) {
  return points.slice(0, until).filter((_, place) => place % 2 === 0);
}
