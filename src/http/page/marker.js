// @ts-check
// The marks of a search: whole rows by a class, and the found text itself where the browser can paint ranges (CSS Custom
// Highlight API), which leaves the document as it is.

import { textOf } from "./lines.js";

const NAME = "found";
/** Rows with many places are marked so far. */
const MAX_RANGES_PER_ROW = 50;

export class Marker {
  #needle = "";
  #highlight = globalThis.Highlight ? new Highlight() : null;
  /** @type {WeakMap<HTMLElement, Range[]>} */
  #ranges = new WeakMap();

  constructor() {
    if (this.#highlight) CSS.highlights.set(NAME, this.#highlight);
  }

  /** @param {string} needle in lower case; the empty one marks nothing */
  search(needle) {
    this.#needle = needle;
    this.#highlight?.clear();
  }

  /**
   * @param {HTMLElement} row
   * @param {import("./lines.js").Line} line
   */
  mark(row, line) {
    this.forget(row);
    const isFound = this.#needle !== "" && textOf(line).toLowerCase().includes(this.#needle);
    row.classList.toggle("found", isFound);
    if (!isFound || !this.#highlight) return;
    const ranges = rangesOf(row, this.#needle);
    for (const range of ranges) this.#highlight.add(range);
    this.#ranges.set(row, ranges);
  }

  /** @param {HTMLElement} row a row that leaves the document */
  forget(row) {
    for (const range of this.#ranges.get(row) ?? []) this.#highlight?.delete(range);
    this.#ranges.delete(row);
  }
}

/**
 * Returns the places of a text in the content of a row, also where it begins in one colour and ends in another.
 *
 * @param {HTMLElement} row
 * @param {string} needle
 */
function rangesOf(row, needle) {
  const content = row.lastElementChild;
  /** @type {Range[]} */
  const ranges = [];
  if (!content) return ranges;
  const walker = document.createTreeWalker(content, NodeFilter.SHOW_TEXT);
  /** @type {{node: Node, from: number}[]} */
  const nodes = [];
  let text = "";
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    nodes.push({ node, from: text.length });
    text += node.nodeValue ?? "";
  }
  const lower = text.toLowerCase();
  // A few letters change their length in lower case. Such a row is marked as a whole only.
  if (lower.length !== text.length) return ranges;
  const placeOf = (/** @type {number} */ at, /** @type {boolean} */ isEnd) =>
    nodes.filter(({ from }) => (isEnd ? from < at : from <= at)).at(-1) ?? nodes[0];
  for (let at = lower.indexOf(needle); at >= 0 && ranges.length < MAX_RANGES_PER_ROW; ) {
    const [start, end] = [placeOf(at, false), placeOf(at + needle.length, true)];
    if (!start || !end) break;
    const range = document.createRange();
    range.setStart(start.node, at - start.from);
    range.setEnd(end.node, at + needle.length - end.from);
    ranges.push(range);
    at = lower.indexOf(needle, at + needle.length);
  }
  return ranges;
}
