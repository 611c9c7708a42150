// The picture of the steps: one bar for each on a common time line.

import { duration } from "./time.js";

const MOST_ROWS = 200;
const SHORTEST_SPAN_MS = 10_000;
const TICK_PX = 90;
const TICKS_MS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 86400].map((s) => s * 1000);
const GLYPHS = { pending: "○", running: "●", seen: "●", completed: "✓", failed: "✕", skipped: "–", cancelled: "⊘" };
/** A bar of this width has room for its percentage, and so much more for each letter of its message. */
const LABEL_PX = 48;
const LETTER_PX = 8;

export class Steps {
  #rows = new Map();

  /** @param {HTMLElement} root @param {(id: string) => void} onSelect */
  constructor(root, onSelect) {
    this.root = root;
    this.list = root.querySelector("ol");
    this.ticks = root.querySelector(".ticks");
    this.onSelect = onSelect;
  }

  clear() {
    this.#rows.clear();
    this.list.replaceChildren();
    this.root.hidden = true;
  }

  select(selected) {
    for (const [id, row] of this.#rows) row.button.setAttribute("aria-pressed", String(id === selected));
  }

  draw(job, now) {
    this.root.hidden = job.steps.size === 0;
    if (this.root.hidden) return;
    const began = job.beganAt ?? now;
    const elapsed = job.endAt(now) - began;
    // a running bar has some room to grow into
    const span = Math.max(elapsed * (job.isOver ? 1.01 : 1.06), SHORTEST_SPAN_MS);
    for (const step of job.steps.values()) {
      if (!this.#rows.has(step.id) && this.#rows.size < MOST_ROWS) this.#rows.set(step.id, this.#row(step));
      const row = this.#rows.get(step.id);
      if (row) drawRow(row, step, began, span, now);
    }
    this.#drawTicks(span);
  }

  #row(step) {
    const button = make("button", "step");
    button.type = "button";
    button.setAttribute("aria-pressed", "false");
    const row = {
      button,
      glyph: make("span", "glyph"),
      name: make("span", "name"),
      track: make("span", "track"),
      bar: make("span", "bar"),
      fill: make("span", "fill"),
      label: make("span", "label"),
      took: make("span", "took"),
      word: make("span", "unseen"),
    };
    row.glyph.setAttribute("aria-hidden", "true");
    row.bar.append(row.fill);
    row.track.append(row.bar, row.label);
    button.append(row.glyph, row.name, row.word, row.track, row.took);
    button.addEventListener("click", () => this.onSelect(step.id));
    const item = document.createElement("li");
    item.append(button);
    this.list.append(item);
    return row;
  }

  #drawTicks(span) {
    const most = Math.max(2, Math.floor(this.ticks.clientWidth / TICK_PX));
    const every = TICKS_MS.find((ms) => span / ms <= most) ?? Math.ceil(span / most / 86_400_000) * 86_400_000;
    const count = Math.floor(span / every) + 1;
    while (this.ticks.childElementCount > count) this.ticks.lastElementChild.remove();
    while (this.ticks.childElementCount < count) this.ticks.append(make("span", "tick"));
    [...this.ticks.children].forEach((tick, number) => {
      const at = (number * every) / span;
      tick.style.left = `${at * 100}%`;
      // its label would be cut off at the right edge
      tick.hidden = at > 0.95;
      setText(tick, tickLabel(number * every));
    });
  }
}

function drawRow(row, step, began, span, now) {
  row.button.dataset.state = step.state;
  setText(row.glyph, GLYPHS[step.state]);
  setText(row.name, step.name);
  row.button.title = step.message ? `${step.name}: ${step.message}` : step.name;
  setText(row.word, step.state === "seen" ? "" : `, ${step.state}`);
  // what did not happen has no time: it is hatched from edge to edge
  const isSkipped = step.state === "skipped";
  const from = isSkipped ? 0 : (Math.max(0, (step.from ?? began) - began) / span) * 100;
  const to = isSkipped ? 100 : (Math.max(0, (step.to ?? now) - began) / span) * 100;
  row.bar.hidden = step.from === null;
  row.bar.style.left = `${from}%`;
  row.bar.style.width = `${Math.max(0, Math.min(100, to) - from)}%`;
  const percent = step.state === "running" ? step.percent : null;
  row.fill.style.width = percent === null ? "" : `${percent}%`;
  row.bar.classList.toggle("measured", percent !== null);
  drawLabel(row, step, percent, from, to);
  const took = step.from === null || isSkipped ? "" : duration((step.to ?? now) - step.from);
  setText(row.took, took);
}

/** Within the bar where there is room, else behind it, or before it at the right edge. */
function drawLabel({ label, track }, step, percent, from, to) {
  const short = percent !== null ? `${Math.round(percent)} %` : step.state === "skipped" ? "skipped" : "";
  const toPx = track.clientWidth / 100;
  const room = (to - from) * toPx;
  const long = percent !== null && step.message ? `${short}  ${step.message}` : short;
  setText(label, room > LABEL_PX + (long.length - short.length) * LETTER_PX ? long : short);
  const isBefore = room < LABEL_PX && (100 - to) * toPx < LABEL_PX;
  label.classList.toggle("before", isBefore);
  label.style.left = `${room > LABEL_PX || isBefore ? from : to}%`;
}

function tickLabel(ms) {
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return seconds % 60 === 0 ? `${seconds / 60} min` : `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
  return seconds % 3600 === 0 ? `${seconds / 3600} h` : `${Math.floor(seconds / 3600)} h ${(seconds % 3600) / 60}`;
}

function make(tag, name) {
  const made = document.createElement(tag);
  made.className = name;
  return made;
}

/** A text that stays the same costs no layout. */
function setText(to, text) {
  if (to.textContent !== text) to.textContent = text;
}
