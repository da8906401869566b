// Elements made of text: nothing here, or elsewhere on the page, makes HTML of what comes from the server.

/** An element with attributes and children; strings become text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Have an element say something else, if that is news: what does not change is not drawn again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/**
 * Have a list show these things in this order, an element each that stays while its key does.
 * @param {Element} list where they are
 * @param {[string, any][]} things keys and things
 * @param {(thing: any, key: string) => Element} make an element, once for each key
 * @param {(element: Element, thing: any, key: string) => void} show what a thing is now
 */
export function keyed(list, things, make, show) {
  const there = list.keyed ??= new Map();
  const wanted = new Set(things.map(([key]) => key));
  for (const key of [...there.keys()]) {
    if (!wanted.has(key)) {
      there.get(key).remove();
      there.delete(key);
    }
  }
  things.forEach(([key, thing], place) => {
    let element = there.get(key);
    if (!element) there.set(key, (element = make(thing, key)));
    if (list.children[place] !== element) list.insertBefore(element, list.children[place] ?? null);
    show(element, thing, key);
  });
}

/** A list of names and values that is filled by `facts.show([[name, text], …])`. */
export function facts() {
  const list = el("dl");
  const cells = new Map();
  list.show = (pairs) => {
    const wanted = new Set(pairs.map(([name]) => name));
    for (const [name, [dt, dd]] of cells) {
      if (!wanted.has(name)) {
        dt.remove();
        dd.remove();
        cells.delete(name);
      }
    }
    pairs.forEach(([name, text], place) => {
      if (!cells.has(name)) cells.set(name, [el("dt", {}, name), el("dd")]);
      const [dt, dd] = cells.get(name);
      if (list.children[2 * place] !== dt) {
        list.insertBefore(dt, list.children[2 * place] ?? null);
        list.insertBefore(dd, list.children[2 * place + 1] ?? null);
      }
      say(dd, text);
    });
  };
  return list;
}
