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

/** The picture, the curves and the log; `take` adds an event to them. */
export class State {
  picture = nothing();
  curves = nothing();
  log = [];

  /** Take an event in; gives the measures that have new points. */
  take(event) {
    if (event.first) {
      this.picture = nothing();
      this.curves = nothing();
      this.log = [];
    }
    this.picture = merged(this.picture, event.picture ?? {});
    const news = new Set();
    for (const [who, measures] of Object.entries(event.curves ?? {})) {
      for (const [measure, points] of Object.entries(measures)) {
        const curve = ((this.curves[measure] ??= nothing())[who] ??= []);
        curve.push(...points);
        if (curve.length > POINTS_MAX) curve.splice(0, POINTS_MAX / 2, ...everySecond(curve, POINTS_MAX / 2));
        news.add(measure);
      }
    }
    this.log = [...this.log, ...(event.log ?? [])].slice(-LOG_MAX);
    return news;
  }
}

function everySecond(points, until) {
  return points.slice(0, until).filter((_, place) => place % 2 === 0);
}
