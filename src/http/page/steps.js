// @ts-check
// The steps of a job: one bar for each on a common time axis.

import { make, setText } from "./dom.js";
import { glyphOf } from "./job.js";
import { duration } from "./time.js";

/** @typedef {import("./job.js").Job} Job */
/** @typedef {import("./job.js").Step} Step */

/**
 * The elements of one step.
 *
 * @typedef {object} Row
 * @property {HTMLButtonElement} button
 * @property {HTMLElement} glyph
 * @property {HTMLElement} name
 * @property {HTMLElement} word the state, for screen readers
 * @property {HTMLElement} bar
 * @property {HTMLElement} fill the part of the bar that is done
 * @property {HTMLElement} label
 * @property {HTMLElement} took
 */

/**
 * The part of the time axis that is shown, with the current time, and its width on the screen.
 *
 * @typedef {{beganMs: number, spanMs: number, nowMs: number, widthPx: number}} Axis
 */

const MAX_ROWS = 200;
/** A running job has at least so much of an axis to grow into. */
const MIN_RUNNING_SPAN_MS = 5000;
const MIN_SPAN_MS = 100;
const MIN_TICK_DISTANCE_PX = 90;
const DAY_MS = 86_400_000;
const TICKS_MS = [
  0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400,
].map((seconds) => seconds * 1000);
/** The label of a tick further right than this would be cut off. */
const MAX_TICK_SHARE = 0.95;
/** A bar of this width has room for its percentage, and needs so much more for each letter of its message. */
const LABEL_PX = 48;
const LETTER_PX = 8;

export class Steps {
  /** @type {Map<string, Row>} */
  #rows = new Map();
  #root;
  #list;
  #ticks;
  #onSelect;

  /**
   * @param {HTMLElement} root
   * @param {(id: string) => void} onSelect
   */
  constructor(root, onSelect) {
    this.#root = root;
    this.#list = /** @type {HTMLElement} */ (root.querySelector("ol"));
    this.#ticks = /** @type {HTMLElement} */ (root.querySelector(".ticks"));
    this.#onSelect = onSelect;
  }

  clear() {
    this.#rows.clear();
    this.#list.replaceChildren();
    this.#root.hidden = true;
  }

  /** @param {string | null} selected the id of a step */
  select(selected) {
    for (const [id, row] of this.#rows) row.button.setAttribute("aria-pressed", String(id === selected));
  }

  /**
   * @param {Job} job
   * @param {number} nowMs
   */
  draw(job, nowMs) {
    this.#root.hidden = job.steps.size === 0;
    if (this.#root.hidden) return;
    const beganMs = job.beganMs ?? nowMs;
    const elapsedMs = job.endMs(nowMs) - beganMs;
    // The bar of a running step has some room to grow into.
    const spanMs = job.isOver
      ? Math.max(elapsedMs * 1.01, MIN_SPAN_MS)
      : Math.max(elapsedMs * 1.06, MIN_RUNNING_SPAN_MS);
    // All tracks are as wide as the ticks. A width that is read after a style was set would cost a layout for each row.
    const widthPx = this.#ticks.clientWidth;
    for (const step of job.steps.values()) {
      if (!this.#rows.has(step.id) && this.#rows.size < MAX_ROWS) this.#rows.set(step.id, this.#makeRow(step.id));
      const row = this.#rows.get(step.id);
      if (row) drawRow(row, step, { beganMs, spanMs, nowMs, widthPx });
    }
    this.#drawTicks(spanMs, widthPx);
  }

  /**
   * @param {string} stepId
   * @returns {Row}
   */
  #makeRow(stepId) {
    const row = {
      button: make("button", "step"),
      glyph: make("span", "glyph"),
      name: make("span", "name"),
      word: make("span", "visually-hidden"),
      bar: make("span", "bar"),
      fill: make("span", "fill"),
      label: make("span", "label"),
      took: make("span", "took"),
    };
    row.button.type = "button";
    row.button.setAttribute("aria-pressed", "false");
    row.glyph.setAttribute("aria-hidden", "true");
    row.bar.append(row.fill);
    // The room in which the bar lies.
    const track = make("span", "track");
    track.append(row.bar, row.label);
    row.button.append(row.glyph, row.name, row.word, track, row.took);
    row.button.addEventListener("click", () => this.#onSelect(stepId));
    const item = document.createElement("li");
    item.append(row.button);
    this.#list.append(item);
    return row;
  }

  /**
   * @param {number} spanMs
   * @param {number} widthPx
   */
  #drawTicks(spanMs, widthPx) {
    const maxTicks = Math.max(2, Math.floor(widthPx / MIN_TICK_DISTANCE_PX));
    const distanceMs = TICKS_MS.find((ms) => spanMs / ms <= maxTicks) ?? Math.ceil(spanMs / maxTicks / DAY_MS) * DAY_MS;
    const count = Math.floor(spanMs / distanceMs) + 1;
    while (this.#ticks.childElementCount > count) this.#ticks.lastElementChild?.remove();
    while (this.#ticks.childElementCount < count) this.#ticks.append(make("span", "tick"));
    [...this.#ticks.children].forEach((element, index) => {
      const tick = /** @type {HTMLElement} */ (element);
      const share = (index * distanceMs) / spanMs;
      tick.style.left = `${share * 100}%`;
      tick.hidden = share > MAX_TICK_SHARE;
      setText(tick, tickLabel(index * distanceMs));
    });
  }
}

/**
 * @param {Row} row
 * @param {Step} step
 * @param {Axis} axis
 */
function drawRow(row, step, { beganMs, spanMs, nowMs, widthPx }) {
  row.button.dataset.state = step.state;
  setText(row.glyph, glyphOf(step.state));
  setText(row.name, step.name);
  row.button.title = step.message ? `${step.name}: ${step.message}` : step.name;
  setText(row.word, step.state === "seen" ? "" : `, ${step.state}`);
  // A skipped step has no time. Its bar is hatched from edge to edge.
  const isSkipped = step.state === "skipped";
  const percentAt = (/** @type {number} */ timeMs) => (Math.max(0, timeMs - beganMs) / spanMs) * 100;
  const from = isSkipped ? 0 : percentAt(step.fromMs ?? beganMs);
  const to = isSkipped ? 100 : percentAt(step.toMs ?? nowMs);
  row.bar.hidden = step.fromMs === null;
  row.bar.style.left = `${from}%`;
  row.bar.style.width = `${Math.max(0, Math.min(100, to) - from)}%`;
  const done = step.state === "running" ? step.percent : null;
  row.fill.style.width = done === null ? "" : `${done}%`;
  row.bar.classList.toggle("measured", done !== null);
  drawLabel(row, step, done, { from, to, widthPx });
  const took = step.fromMs === null || isSkipped ? "" : duration((step.toMs ?? nowMs) - step.fromMs);
  setText(row.took, took);
}

/**
 * Draws the label within the bar where there is room, else behind it, or before it at the right edge.
 *
 * @param {Row} row
 * @param {Step} step
 * @param {number | null} done in percent
 * @param {{from: number, to: number, widthPx: number}} bar its edges in percent of the track, and the track's width
 */
function drawLabel({ label }, step, done, { from, to, widthPx }) {
  const short = done !== null ? `${Math.round(done)} %` : step.state === "skipped" ? "skipped" : "";
  const pxPerPercent = widthPx / 100;
  const roomPx = (to - from) * pxPerPercent;
  const long = done !== null && step.message ? `${short}  ${step.message}` : short;
  setText(label, roomPx > LABEL_PX + (long.length - short.length) * LETTER_PX ? long : short);
  const isBefore = roomPx < LABEL_PX && (100 - to) * pxPerPercent < LABEL_PX;
  label.classList.toggle("before", isBefore);
  label.style.left = `${roomPx > LABEL_PX || isBefore ? from : to}%`;
}

/** @param {number} ms */
function tickLabel(ms) {
  const seconds = ms / 1000;
  if (seconds < 60) return `${Number(seconds.toFixed(2))} s`;
  if (seconds < 3600) {
    return seconds % 60 === 0
      ? `${seconds / 60} min`
      : `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  }
  return seconds % 3600 === 0 ? `${seconds / 3600} h` : `${Math.floor(seconds / 3600)} h ${(seconds % 3600) / 60}`;
}
