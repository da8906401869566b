// What may be ordered: behind the token, and after a question.

import { el, keyed, say } from "./dom.js";

const KEPT = "akkordeon token";
const by = (id) => document.getElementById(id);

/** Knows the token, asks questions, sends orders. */
export class Steering {
  #token = null;
  #changed;

  /** @param {() => void} changed is called when there is a token, or none any more */
  constructor(changed) {
    this.#changed = changed;
    this.#takeFromAddress();
    addEventListener("hashchange", () => {
      this.#takeFromAddress();
      this.#changed();
    });
    by("use-token").addEventListener("click", () => this.#use());
    by("token").addEventListener("keydown", (event) => event.key === "Enter" && this.#use());
  }

  /** The function that asks and orders; null where nobody may. */
  get steer() {
    return this.#token === null ? null : (order, question, value) => this.#ask(order, question, value);
  }

  /** Show what may be ordered of all. */
  show(picture) {
    const offers = picture.offers;
    by("steering").hidden = !offers;
    if (!offers) return;
    by("unlock").hidden = this.#token !== null;
    const may = (what) => this.#token !== null && offers.orders.includes(what);
    const things = [];
    for (const name of may("attach") ? offers.sentinels : []) {
      if (picture.sentinels?.[name]?.state !== "at work") {
        const question = `Attach ${name}, with its data from the beginning?`;
        things.push([`attach ${name}`, [{ do: "attach", sentinel: name }, question]]);
      }
    }
    if (may("checkpoint")) {
      const question = "Keep all that the run can be taken up from?";
      things.push(["checkpoint now", [{ do: "checkpoint" }, question]]);
    }
    if (may("stop")) {
      const question = "Have all that trains end, with what is reached? A last validation follows.";
      things.push(["stop", [{ do: "stop" }, question]]);
    }
    keyed(by("orders"), things, ([order, question], name) =>
      el("button", { type: "button", onclick: () => this.#ask(order, question) }, name), () => {});
  }

  #use() {
    const given = by("token").value.trim();
    by("token").value = "";
    if (given) this.#keep(given);
    this.#token = sessionStorage.getItem(KEPT);
    this.#changed();
  }

  /** The token behind the #, which is not to stay there, or else the one that is kept. */
  #takeFromAddress() {
    const inAddress = location.hash.slice(1);
    if (inAddress) {
      history.replaceState(null, "", location.pathname + location.search);
      this.#keep(inAddress);
    }
    this.#token = sessionStorage.getItem(KEPT);
  }

  #keep(token) {
    sessionStorage.setItem(KEPT, token);
  }

  async #ask(order, question, value) {
    const given = await confirmed(question, value);
    if (given === null) return;
    if (value) {
      const number = Number(given.replace(",", "."));
      if (given.trim() === "" || !Number.isFinite(number)) {
        say(by("told"), `⚠ a number is wanted, got “${given}”`);
        return;
      }
      order = { ...order, [value]: number };
    }
    say(by("told"), "…");
    say(by("told"), await this.#send(order));
  }

  async #send(order) {
    let answer;
    try {
      answer = await fetch("orders", {
        method: "POST",
        headers: { "content-type": "application/json", authorization: `Bearer ${this.#token}` },
        body: JSON.stringify(order),
      });
    } catch {
      return "⚠ the server does not answer";
    }
    if (answer.status === 401) {
      sessionStorage.removeItem(KEPT);
      this.#token = null;
      this.#changed();
      return "⚠ that is not the token of this page";
    }
    const said = await answer.json().catch(() => ({ error: `it answered ${answer.status}` }));
    return answer.ok ? said.done : `⚠ ${said.error}`;
  }
}

/** What was answered to a question: the value that was given, "" for yes, null for no. */
function confirmed(question, value) {
  const dialog = by("confirm");
  say(by("question"), question);
  by("value-line").hidden = !value;
  say(by("value-name"), value ?? "");
  by("value").value = "";
  return new Promise((resolve) => {
    const answers = new AbortController();
    const answer = (given) => {
      answers.abort();
      if (dialog.open) dialog.close();
      resolve(given);
    };
    const on = (id, event, then) => by(id).addEventListener(event, then, { signal: answers.signal });
    on("yes", "click", () => answer(value ? by("value").value : ""));
    on("no", "click", () => answer(null));
    on("confirm", "close", () => answer(null));
    on("value", "keydown", (event) => event.key === "Enter" && answer(by("value").value));
    dialog.showModal();
    by(value ? "value" : "no").focus();
  });
}
