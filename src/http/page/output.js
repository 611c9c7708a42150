// @ts-check
// The output pane: a window onto the lines of a job. It follows the end, or stands where the reader has scrolled to. Lines
// that arrive between two frames are drawn together.

import { linkTo } from "./address.js";
import { make, setText } from "./dom.js";
import { Lines } from "./lines.js";
import { Marker } from "./marker.js";
import { focusables, makeRow } from "./row.js";

/** @typedef {import("./lines.js").Line} Line */

/** The number of rows in the document. */
const MAX_ROWS = 1_000;
/** More rows than this at once would cost a frame. */
const MAX_ROWS_PER_FRAME = 150;
/** The number of rows on each side of a line that is looked up. */
const AROUND = 70;
/** A pane that is scrolled so near to its end counts as being there. */
const SLACK_PX = 24;
/** More rows are fetched when the reader is so near to an end. */
const NEAR_PX = 300;

export class Output {
  lines = new Lines();
  #jobId = "";
  /**
   * Lines that are drawn, with their rows, in order.
   *
   * @type {Map<number, {line: Line, row: HTMLElement}>}
   */
  #rows = new Map();
  /**
   * Lines that follow the last row and are not drawn yet.
   *
   * @type {Line[]}
   */
  #undrawn = [];
  /** The number of shown lines above the first row, and below the last. */
  #above = 0;
  #below = 0;
  /** @type {string | null} the id of the step whose lines are shown; `null` shows all */
  #stepId = null;
  #frame = 0;
  #isFollowing = true;
  /** The place to which the pane was scrolled last. */
  #topPx = 0;
  /** The heights of the content and of the pane at that time. */
  #heightPx = 0;
  #viewPx = 0;
  /** Rows are being fetched. */
  #isFetching = false;
  /** The number of the window: what was fetched for another one is thrown away. */
  #window = 0;
  /** The number of lines that arrived while the reader was scrolled away from the end. */
  #unread = 0;
  /** @type {string | null} the id of the event whose line is to be shown as soon as it is there */
  #target = null;
  /** @type {HTMLElement | null} the row whose links can be reached by Tab */
  #current = null;
  #older = make("p", "older");
  #olderText = make("span", "");
  #pane;
  #newest;
  #clock;
  #marker = new Marker();

  /**
   * @param {HTMLElement} pane
   * @param {HTMLButtonElement} newest the button that leads to the end
   * @param {(timeMs: number) => string} clock writes the time of a line
   */
  constructor(pane, newest, clock) {
    this.#pane = pane;
    this.#newest = newest;
    this.#clock = clock;
    const more = make("button", "", "Show more");
    const first = make("button", "", "From the beginning");
    this.#older.append(this.#olderText, more, first);
    more.addEventListener("click", () => this.#showOlder());
    first.addEventListener("click", () => this.#showFrom(0));
    pane.append(this.#older);
    pane.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    pane.addEventListener("keydown", (event) => this.#onKey(event));
    pane.addEventListener("copy", (event) => copySelection(event));
    newest.addEventListener("click", () => {
      this.showEnd();
      pane.focus({ preventScroll: true });
    });
    // A pane that changes its size stays at the end.
    new ResizeObserver(() => this.#isFollowing && this.#scrollToEnd()).observe(pane);
  }

  /** @type {import("./lines.js").Filter} */
  isShown = (line) => this.#stepId === null || line.stepId === this.#stepId;

  /** @param {import("./lines.js").OutputEvent} event */
  add(event) {
    const taken = this.lines.add(event);
    if (!taken) return null;
    const { line, isNew } = taken;
    if (!isNew) this.#redraw(line);
    else if (this.isShown(line)) this.#append(line);
    if (line.id === this.#target) queueMicrotask(() => this.reveal(line));
    return line;
  }

  /** @param {Line} line */
  #append(line) {
    if (!this.#isFollowing) this.#setUnread(this.#unread + 1);
    // A reader who is elsewhere keeps what he sees.
    if (this.#below > 0 || (!this.#isFollowing && this.#rows.size + this.#undrawn.length >= MAX_ROWS)) {
      this.#below += 1;
      return;
    }
    this.#undrawn.push(line);
    // There are no frames while the page is hidden.
    if (this.#undrawn.length >= MAX_ROWS * 2) this.#above += this.#undrawn.splice(0, MAX_ROWS).length;
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  /** @param {string} jobId */
  clear(jobId) {
    this.#jobId = jobId;
    this.lines.clear(jobId);
    this.#stepId = this.#target = null;
    this.#setWindow([], true);
  }

  /**
   * Shows the lines of one step, or all lines for `null`.
   *
   * @param {string | null} stepId
   */
  show(stepId) {
    this.#stepId = stepId;
    this.#showNewest();
  }

  /** Goes to the end, and stays there as lines arrive. */
  showEnd() {
    if (this.#below === 0 && this.#rows.size > 0) this.#follow();
    else this.#showNewest();
  }

  #showNewest() {
    this.#setWindow(this.lines.last(MAX_ROWS_PER_FRAME, this.isShown), true);
  }

  /**
   * Shows the line of an event as soon as it is there.
   *
   * @param {string | null} id
   */
  aim(id) {
    this.#target = id;
    const line = id === null ? undefined : this.lines.newest.find((line) => line.id === id);
    if (line) this.reveal(line);
    else if (id === null) this.#markTarget();
  }

  /**
   * Shows a line, and the lines around it.
   *
   * @param {Line} line
   */
  async reveal(line) {
    if (!this.#rows.has(line.number)) await this.#showFrom(line.number);
    const row = this.#rows.get(line.number)?.row;
    this.#markTarget();
    if (!row) return;
    this.#isFollowing = false;
    this.#newest.hidden = false;
    row.scrollIntoView({ block: "center" });
    this.#setCurrent(row);
  }

  /** Writes the times again, on another clock. */
  redrawTimes() {
    for (const { line, row } of this.#rows.values())
      setText(/** @type {HTMLElement} */ (row.firstElementChild), this.#clock(line.timeMs));
  }

  /**
   * Marks the lines that are found by a search.
   *
   * @param {string} needle in lower case
   * @param {number | null} current the number of the line where the reader is
   */
  mark(needle, current) {
    this.#marker.search(needle);
    for (const { line, row } of this.#rows.values()) {
      this.#marker.mark(row, line);
      row.classList.toggle("here", line.number === current);
    }
  }

  // ---- the window

  /**
   * @param {readonly Line[]} lines
   * @param {boolean} isFollowing
   */
  #setWindow(lines, isFollowing) {
    this.#window += 1;
    this.#isFetching = false;
    for (const number of [...this.#rows.keys()]) this.#remove(number);
    this.#undrawn = [];
    this.#insert(lines, null);
    const last = lines.at(-1);
    const total = this.lines.countOf(this.#stepId);
    this.#below = isFollowing || !last ? 0 : this.#countAfter(last.number);
    this.#above = Math.max(0, total - lines.length - this.#below);
    this.#isFollowing = isFollowing;
    this.#drawOlder();
    if (isFollowing) this.#follow();
    else this.#newest.hidden = false;
  }

  /**
   * Returns the number of shown lines after a line.
   *
   * @param {number} number
   */
  #countAfter(number) {
    const { count, first, newest } = this.lines;
    if (this.#stepId === null) return count - number - 1;
    // Lines of a step that are in memory no more are not counted one by one.
    return newest.slice(Math.max(0, number + 1 - first)).filter(this.isShown).length;
  }

  /**
   * Shows the lines around a line.
   *
   * @param {number} number
   */
  async #showFrom(number) {
    const window = (this.#window += 1);
    this.#isFetching = true;
    try {
      const before = await this.lines.before(number, AROUND, this.isShown);
      const after = await this.lines.from(number, AROUND, this.isShown);
      if (this.#window !== window) return;
      this.#setWindow([...before, ...after], false);
      if (number === 0) this.#pane.scrollTop = 0;
    } catch (error) {
      this.#fail(error);
    } finally {
      if (this.#window === window) this.#isFetching = false;
    }
  }

  async #showOlder() {
    const first = this.#firstRow()?.line;
    if (!first || this.#above === 0 || this.#isFetching) return;
    const window = this.#window;
    this.#isFetching = true;
    try {
      const older = await this.lines.before(first.number, MAX_ROWS_PER_FRAME, this.isShown);
      if (this.#window !== window) return;
      const fromEnd = this.#pane.scrollHeight - this.#pane.scrollTop;
      this.#insert(older, this.#rows.values().next().value?.row ?? null);
      this.#above = older.length === 0 ? 0 : Math.max(0, this.#above - older.length);
      this.#drawOlder();
      this.#pane.scrollTop = this.#pane.scrollHeight - fromEnd;
      this.#removeFromEnd();
    } catch (error) {
      this.#fail(error);
    } finally {
      if (this.#window === window) this.#isFetching = false;
    }
  }

  async #showNewer() {
    const last = [...this.#rows.values()].at(-1)?.line;
    if (!last || this.#below === 0 || this.#isFetching) return;
    const window = this.#window;
    this.#isFetching = true;
    try {
      const newer = await this.lines.from(last.number + 1, MAX_ROWS_PER_FRAME, this.isShown);
      if (this.#window !== window) return;
      this.#insert(newer, null);
      const end = newer.at(-1);
      this.#below = end ? this.#countAfter(end.number) : 0;
      this.#removeFromStart();
    } catch (error) {
      this.#fail(error);
    } finally {
      if (this.#window === window) this.#isFetching = false;
    }
  }

  /** @param {unknown} error */
  #fail(error) {
    this.#isFetching = false;
    setText(this.#olderText, `Older lines cannot be read: ${error instanceof Error ? error.message : error}`);
  }

  #firstRow() {
    return this.#rows.values().next().value;
  }

  /**
   * Inserts rows before the first row, or at the end; a line that was drawn while others were read has its row already.
   *
   * @param {readonly Line[]} lines
   * @param {HTMLElement | null} before
   */
  #insert(lines, before) {
    const rows = document.createDocumentFragment();
    const isNew = (/** @type {Line} */ { number }) => !this.#rows.has(number);
    const drawn = lines.filter(isNew).map((line) => {
      const row = makeRow(
        line,
        this.#clock(line.timeMs),
        linkTo({ job: this.#jobId, step: this.#stepId, line: line.id }),
      );
      this.#marker.mark(row, line);
      rows.append(row);
      return /** @type {const} */ ([line.number, { line, row }]);
    });
    this.#pane.insertBefore(rows, before);
    if (before === null) for (const [number, entry] of drawn) this.#rows.set(number, entry);
    else this.#rows = new Map([...drawn, ...this.#rows]);
    if (this.#target !== null) this.#markTarget();
  }

  /** @param {number} number */
  #remove(number) {
    const row = this.#rows.get(number)?.row;
    if (!row) return;
    this.#marker.forget(row);
    if (row === this.#current) this.#current = null;
    row.remove();
    this.#rows.delete(number);
  }

  #removeFromStart() {
    // Reading a height costs a layout, which a pane that follows its end has only once for each frame.
    const before = this.#isFollowing ? 0 : this.#pane.scrollHeight;
    for (const number of this.#rows.keys()) {
      if (this.#rows.size <= MAX_ROWS) break;
      this.#remove(number);
      this.#above += 1;
    }
    this.#drawOlder();
    if (!this.#isFollowing) this.#pane.scrollTop -= before - this.#pane.scrollHeight;
  }

  #removeFromEnd() {
    for (const number of [...this.#rows.keys()].slice(MAX_ROWS)) {
      this.#remove(number);
      this.#below += 1;
    }
    if (this.#below === 0) return;
    this.#below += this.#undrawn.length;
    this.#undrawn = [];
  }

  #drawOlder() {
    this.#older.hidden = this.#above === 0;
    const lines = this.#above === 1 ? "1 older line" : `${this.#above.toLocaleString("en")} older lines`;
    setText(this.#olderText, this.#above === 0 ? "" : lines);
  }

  // ---- frames

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (this.#isFollowing && this.#undrawn.length > MAX_ROWS) {
      const skipped = this.#undrawn.splice(0, this.#undrawn.length - MAX_ROWS).length + this.#rows.size;
      for (const number of [...this.#rows.keys()]) this.#remove(number);
      this.#above += skipped;
    }
    this.#insert(this.#undrawn.splice(0, MAX_ROWS_PER_FRAME), null);
    if (this.#isFollowing) {
      this.#removeFromStart();
      this.#scrollToEnd();
    }
    if (this.#undrawn.length > 0) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  /** @param {Line} line a line that was overwritten */
  #redraw(line) {
    const old = this.#rows.get(line.number)?.row;
    if (!old) return;
    const row = makeRow(
      line,
      this.#clock(line.timeMs),
      linkTo({ job: this.#jobId, step: this.#stepId, line: line.id }),
    );
    this.#marker.forget(old);
    this.#marker.mark(row, line);
    old.replaceWith(row);
    if (old === this.#current) this.#current = null;
    this.#rows.set(line.number, { line, row });
  }

  #markTarget() {
    for (const { line, row } of this.#rows.values()) row.classList.toggle("target", line.id === this.#target);
  }

  // ---- the reader

  #onScroll() {
    const { scrollHeight, scrollTop, clientHeight } = this.#pane;
    const leftPx = scrollHeight - scrollTop - clientHeight;
    // A pane that grew or shrank is not at its end, although nobody has scrolled up.
    const isOther = scrollHeight !== this.#heightPx || clientHeight !== this.#viewPx;
    const isPushed = this.#isFollowing && (isOther || scrollTop >= this.#topPx - 1);
    this.#topPx = scrollTop;
    if (isPushed && leftPx >= SLACK_PX) return this.#scrollToEnd();
    this.#isFollowing = this.#below === 0 && leftPx < SLACK_PX;
    if (this.#isFollowing) this.#setUnread(0);
    else this.#newest.hidden = false;
    if (scrollTop < NEAR_PX && scrollHeight > clientHeight && !this.#isFollowing) this.#showOlder();
    if (leftPx < NEAR_PX && this.#below > 0) this.#showNewer();
  }

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "End") this.showEnd();
    if (event.key === "Home" && this.#above > 0) this.#showFrom(0);
    if (event.key !== "j" && event.key !== "k") return;
    const sibling = event.key === "j" ? "nextElementSibling" : "previousElementSibling";
    const next = this.#current ? this.#current[sibling] : [...this.#rows.values()].at(-1)?.row;
    if (!(next instanceof HTMLElement) || next === this.#older) return;
    this.#setCurrent(next);
    focusables(next)[0]?.focus();
  }

  /** @param {HTMLElement} row */
  #setCurrent(row) {
    for (const inner of this.#current ? focusables(this.#current) : []) inner.tabIndex = -1;
    this.#current = row;
    for (const inner of focusables(row)) inner.tabIndex = 0;
  }

  #follow() {
    this.#isFollowing = true;
    this.#scrollToEnd();
    this.#setUnread(0);
  }

  #scrollToEnd() {
    this.#pane.scrollTop = this.#pane.scrollHeight;
    this.#topPx = this.#pane.scrollTop;
    this.#heightPx = this.#pane.scrollHeight;
    this.#viewPx = this.#pane.clientHeight;
  }

  /** @param {number} count */
  #setUnread(count) {
    this.#unread = count;
    this.#newest.hidden = this.#isFollowing;
    this.#newest.textContent = count > 0 ? `${count.toLocaleString("en")} new ↓` : "Newest ↓";
  }
}

/**
 * Copies the selected rows as one line each, without their times.
 *
 * @param {ClipboardEvent} event
 */
function copySelection(event) {
  const selection = getSelection();
  if (!selection || selection.rangeCount === 0 || !event.clipboardData) return;
  const copied = selection.getRangeAt(0).cloneContents();
  for (const folded of copied.querySelectorAll("details:not([open]) .json")) folded.remove();
  const texts = copied.querySelectorAll(".line > .text");
  if (texts.length < 2) return;
  event.clipboardData.setData("text/plain", [...texts].map((text) => text.textContent).join("\n"));
  event.preventDefault();
}
