// @ts-check
// The search in the output: a count, and the way from one found line to the next.

import { byId, setText } from "./dom.js";
import { textOf } from "./lines.js";

/** @typedef {import("./lines.js").Line} Line */

/** So many lines are looked through at once, which takes a few milliseconds. */
const LINES_PER_TURN = 2000;

export class Search {
  /** @type {Line[]} */
  #hits = [];
  /** The index of the hit where the reader is; -1 before the first step. */
  #at = -1;
  #needle = "";
  /** The number of the search: an older one stops. */
  #run = 0;
  #isDone = true;
  #input = byId("find", HTMLInputElement);
  #count = byId("find-count");
  #steps = [byId("find-previous", HTMLButtonElement), byId("find-next", HTMLButtonElement)];
  #output;

  /** @param {import("./output.js").Output} output */
  constructor(output) {
    this.#output = output;
    this.#input.addEventListener("input", () => this.again());
    this.#input.addEventListener("keydown", (event) => this.#onKey(event));
    this.#steps[0]?.addEventListener("click", () => this.#step(-1));
    this.#steps[1]?.addEventListener("click", () => this.#step(1));
    addEventListener("keydown", (event) => {
      const isTyping = event.target instanceof Element && event.target.closest("input, textarea, select");
      if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey || isTyping) return;
      event.preventDefault();
      this.#input.focus();
    });
    this.#draw();
  }

  /** Searches anew, since the text or the shown lines are others. */
  async again() {
    const run = (this.#run += 1);
    this.#needle = this.#input.value.toLowerCase();
    this.#hits = [];
    this.#at = -1;
    this.#isDone = this.#needle === "";
    this.#output.mark(this.#needle, null);
    this.#draw();
    if (this.#isDone) return;
    // Lines that arrive meanwhile are looked at by `add`.
    const lines = this.#output.lines.newest.slice();
    /** @type {Line[]} */
    const found = [];
    for (let from = 0; from < lines.length; from += LINES_PER_TURN) {
      if (from > 0) await new Promise((resume) => setTimeout(resume));
      if (this.#run !== run) return;
      found.push(...lines.slice(from, from + LINES_PER_TURN).filter((line) => this.#matches(line)));
    }
    this.#hits = [...found, ...this.#hits];
    this.#isDone = true;
    this.#draw();
  }

  /** @param {Line} line a line that has just arrived */
  add(line) {
    if (this.#needle === "" || !this.#matches(line)) return;
    this.#hits.push(line);
    // Lines that are in memory no more are not found any more either.
    if (this.#hits.length > this.#output.lines.newest.length) {
      const { first } = this.#output.lines;
      const kept = this.#hits.filter(({ number }) => number >= first);
      this.#at = Math.max(-1, this.#at - (this.#hits.length - kept.length));
      this.#hits = kept;
    }
    this.#draw();
  }

  /** @param {Line} line */
  #matches(line) {
    return this.#output.isShown(line) && textOf(line).toLowerCase().includes(this.#needle);
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      this.#step(event.shiftKey ? -1 : 1);
    }
    if (event.key !== "Escape" || this.#input.value === "") return;
    this.#input.value = "";
    this.again();
  }

  /** @param {1 | -1} by */
  #step(by) {
    const { length } = this.#hits;
    if (length === 0) return;
    // The first step backwards goes to the newest hit.
    this.#at = this.#at < 0 ? (by > 0 ? 0 : length - 1) : (this.#at + by + length) % length;
    const line = this.#hits[this.#at];
    if (!line) return;
    this.#draw();
    this.#output.reveal(line).then(() => this.#output.mark(this.#needle, line.number));
  }

  #draw() {
    const { length } = this.#hits;
    const { first, newest } = this.#output.lines;
    const where = first > 0 ? ` in the newest ${newest.length.toLocaleString("en")}` : "";
    setText(this.#count, this.#needle === "" ? "" : this.#found() + where);
    for (const button of this.#steps) button.disabled = length === 0;
  }

  #found() {
    const { length } = this.#hits;
    if (length === 0) return this.#isDone ? "none" : "…";
    const all = length.toLocaleString("en");
    if (this.#at < 0) return length === 1 ? "1 line" : `${all} lines`;
    return `${(this.#at + 1).toLocaleString("en")} of ${all}`;
  }
}
