// @ts-check
// The output pane. Lines that arrive between two frames are drawn together, and the document holds only the newest.

import { make } from "./dom.js";

/**
 * @typedef {object} Line
 * @property {number} timeMs
 * @property {string | null} stepId
 * @property {import("./describe.js").LineKind} kind
 * @property {string} tag
 * @property {string} [type] the type of an event that is shown as it is
 * @property {string} text
 */

/** The number of lines in memory, from which a step is filtered. */
const MAX_LINES = 20_000;
/** The number of lines in the document. */
const MAX_ROWS = 2_000;
/** More rows than this at once would cost a frame. */
const MAX_ROWS_PER_FRAME = 400;
const MAX_LINE_LENGTH = 4_000;
/** A pane that is scrolled so near to its end counts as being there. */
const SLACK_PX = 24;
/** Colour codes and other escapes of terminals (ECMA-48: CSI, OSC, two-byte). */
// biome-ignore lint/suspicious/noControlCharactersInRegex: escapes begin with a control character
const TERMINAL_ESCAPES = /\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]/g;
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are meant
const CONTROL_CHARACTERS = /[\x00-\x08\x0b-\x1f\x7f]/g;

export class Output {
  /** @type {Line[]} */
  #lines = [];
  /**
   * Lines that are to be shown and are not drawn yet.
   *
   * @type {Line[]}
   */
  #undrawn = [];
  /**
   * The id of the step whose lines are shown; `null` shows all.
   *
   * @type {string | null}
   */
  #stepId = null;
  #frame = 0;
  #isFollowing = true;
  /** The number of lines that arrived while the reader was scrolled away from the end. */
  #unread = 0;
  #pane;
  #newest;
  #clock;

  /**
   * @param {HTMLElement} pane
   * @param {HTMLButtonElement} newest the button that leads to the end
   * @param {(timeMs: number) => string} clock writes the time of a line
   */
  constructor(pane, newest, clock) {
    this.#pane = pane;
    this.#newest = newest;
    this.#clock = clock;
    pane.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    newest.addEventListener("click", () => {
      this.#follow();
      pane.focus({ preventScroll: true });
    });
    // A pane that changes its size stays at the end.
    new ResizeObserver(() => this.#isFollowing && this.#follow()).observe(pane);
  }

  /** @param {Line} line */
  add(line) {
    this.#lines.push(line);
    // Lines are dropped many at a time, since each splice moves all that stay.
    if (this.#lines.length >= MAX_LINES * 1.5) this.#lines.splice(0, this.#lines.length - MAX_LINES);
    if (!this.#isShown(line)) return;
    this.#undrawn.push(line);
    // There are no frames while the page is hidden.
    if (this.#undrawn.length >= MAX_ROWS * 2) this.#undrawn.splice(0, this.#undrawn.length - MAX_ROWS);
    if (!this.#isFollowing) this.#setUnread(this.#unread + 1);
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  clear() {
    this.#lines = [];
    this.show(null);
  }

  /**
   * Shows the lines of one step, or all lines for `null`.
   *
   * @param {string | null} stepId
   */
  show(stepId) {
    this.#stepId = stepId;
    this.#undrawn = this.#lines.filter((line) => this.#isShown(line));
    this.#pane.replaceChildren();
    this.#follow();
    this.#draw();
  }

  /** @param {Line} line */
  #isShown(line) {
    return this.#stepId === null || line.stepId === this.#stepId;
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#undrawn = this.#undrawn.slice(-MAX_ROWS);
    const rows = document.createDocumentFragment();
    for (const line of this.#undrawn.splice(0, MAX_ROWS_PER_FRAME)) rows.append(this.#row(line));
    const excess = this.#pane.childElementCount + rows.childElementCount - MAX_ROWS;
    for (let removed = 0; removed < excess; removed += 1) this.#pane.firstElementChild?.remove();
    this.#pane.append(rows);
    if (this.#isFollowing) this.#follow();
    if (this.#undrawn.length > 0) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  /** @param {Line} line */
  #row({ timeMs, kind, tag, type, text }) {
    const row = make("div", `line ${kind}`);
    const content = make("span", "text", plain(text));
    if (type !== undefined) content.prepend(make("span", "type", plain(type)), " ");
    row.append(make("span", "time", this.#clock(timeMs)), make("span", "tag", plain(tag)), content);
    return row;
  }

  #onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.#pane;
    this.#isFollowing = scrollHeight - scrollTop - clientHeight < SLACK_PX;
    if (this.#isFollowing) this.#setUnread(0);
    else this.#newest.hidden = false;
  }

  /** Scrolls to the end, and stays there as lines arrive. */
  #follow() {
    this.#isFollowing = true;
    this.#pane.scrollTop = this.#pane.scrollHeight;
    this.#setUnread(0);
  }

  /** @param {number} count */
  #setUnread(count) {
    this.#unread = count;
    this.#newest.hidden = this.#isFollowing;
    this.#newest.textContent = count > 0 ? `${count.toLocaleString("en")} new ↓` : "Newest ↓";
  }
}

/**
 * Returns a text of bounded length, without escapes and control characters.
 *
 * @param {string} text
 */
function plain(text) {
  const bare = text.slice(0, MAX_LINE_LENGTH).replace(TERMINAL_ESCAPES, "").replace(CONTROL_CHARACTERS, "");
  return text.length > MAX_LINE_LENGTH ? `${bare}…` : bare;
}
