// @ts-check
// The lines of a job's output. The newest are in memory; older ones are read again when somebody wants them, from marks
// that are kept for that.

import { describe } from "./describe.js";
import { readEvents } from "./history.js";
import { PLAIN, plainText, readLine } from "./terminal.js";

/**
 * An event, with its time in milliseconds on the server's clock.
 *
 * @typedef {object} OutputEvent
 * @property {string} id
 * @property {string} cursor
 * @property {string} type
 * @property {string | null} stepId
 * @property {number} timeMs
 * @property {unknown} payload
 * @property {readonly string[]} [unreadable]
 */

/**
 * A line of output. `number` counts the lines of a job from 0.
 *
 * @typedef {object} Line
 * @property {number} number
 * @property {string} id the id of its event
 * @property {number} timeMs
 * @property {string | null} stepId
 * @property {import("./describe.js").LineKind} kind
 * @property {string} tag
 * @property {string} [type] the type of an event that is shown as it is
 * @property {string} text as it was written, with the codes of terminals
 * @property {import("./terminal.js").TextStyle} style the style that it begins with
 * @property {object} [json] the payload that can be unfolded
 * @property {readonly string[]} [unreadable]
 */

/** The number of lines in memory, and of their characters. */
const MAX_LINES = 50_000;
const MAX_CHARS = 16_000_000;
const MAX_LINE_LENGTH = 16_000;
/** The number of lines from one mark to the next. */
const MARK_EVERY = 500;
const MAX_WRITERS = 1000;
/** The number of marked parts that one call reads, where the lines of one step are rare. */
const MAX_PARTS = 200;

/** @typedef {(line: Line) => boolean} Filter */

/** Makes lines of events: it numbers them, and knows what each writer left the next line to begin with. */
class LineMaker {
  /**
   * The style and the newest line of each writer: the output or the errors of a step.
   *
   * @type {Map<string, {style: import("./terminal.js").TextStyle, line: Line}>}
   */
  #writers = new Map();

  /** @param {number} next the number of the next line */
  constructor(next) {
    this.next = next;
  }

  /**
   * Returns the line of an event, and whether it is a new one; one that begins with a carriage return overwrites its
   * writer's last. Events that only the steps show have none.
   *
   * @param {OutputEvent} event
   * @returns {{line: Line, isNew: boolean} | null}
   */
  take(event) {
    const described = describe(event);
    if (!described) return null;
    const { id, timeMs, stepId, unreadable } = event;
    const text = described.text.slice(0, MAX_LINE_LENGTH);
    const writer = described.kind === "out" || described.kind === "err" ? `${described.kind} ${stepId}` : null;
    const before = writer === null ? undefined : this.#writers.get(writer);
    const style = before?.style ?? PLAIN;
    const after = writer === null ? PLAIN : readLine(text, style).style;
    if (before && text.startsWith("\r")) {
      Object.assign(before.line, { id, timeMs, text, style });
      before.style = after;
      return { line: before.line, isNew: false };
    }
    const line = {
      ...described,
      text,
      style,
      number: this.next,
      id,
      timeMs,
      stepId,
      ...(unreadable && { unreadable }),
    };
    this.next += 1;
    if (writer !== null) this.#remember(writer, { style: after, line });
    return { line, isNew: true };
  }

  /**
   * @param {string} writer
   * @param {{style: import("./terminal.js").TextStyle, line: Line}} last
   */
  #remember(writer, last) {
    this.#writers.set(writer, last);
    if (this.#writers.size <= MAX_WRITERS) return;
    for (const oldest of this.#writers.keys()) return void this.#writers.delete(oldest);
  }
}

export class Lines {
  #jobId = "";
  #maker = new LineMaker(0);
  /**
   * The newest lines; the first has the number `#first`.
   *
   * @type {Line[]}
   */
  #lines = [];
  #first = 0;
  #chars = 0;
  /** @type {Map<string | null, number>} */
  #counts = new Map();
  /**
   * The places before marked lines.
   *
   * @type {{number: number, cursor: string | null}[]}
   */
  #marks = [{ number: 0, cursor: null }];
  /** @type {string | null} */
  #cursor = null;
  /**
   * The part that was read last.
   *
   * @type {{mark: number, lines: Line[]} | null}
   */
  #part = null;

  /** The number of the first line in memory. */
  get first() {
    return this.#first;
  }

  get count() {
    return this.#maker.next;
  }

  /** The lines in memory. */
  get newest() {
    return /** @type {readonly Line[]} */ (this.#lines);
  }

  /** @param {string} jobId */
  clear(jobId) {
    this.#jobId = jobId;
    this.#maker = new LineMaker(0);
    this.#lines = [];
    this.#first = this.#chars = 0;
    this.#counts.clear();
    this.#marks = [{ number: 0, cursor: null }];
    this.#cursor = null;
    this.#part = null;
  }

  /**
   * Returns how many lines a step has had, or all steps for `null`.
   *
   * @param {string | null} stepId
   */
  countOf(stepId) {
    return stepId === null ? this.count : (this.#counts.get(stepId) ?? 0);
  }

  /** @param {OutputEvent} event */
  add(event) {
    const taken = this.#maker.take(event);
    if (taken?.isNew) {
      const { line } = taken;
      // The place before this line is the cursor of the event before it.
      if (line.number > 0 && line.number % MARK_EVERY === 0 && this.#cursor)
        this.#marks.push({ number: line.number, cursor: this.#cursor });
      this.#lines.push(line);
      this.#chars += line.text.length;
      if (line.stepId !== null) this.#counts.set(line.stepId, (this.#counts.get(line.stepId) ?? 0) + 1);
      this.#trim();
    }
    this.#cursor = event.cursor;
    return taken;
  }

  /** Lets many lines go at a time, since each splice moves all that stay. */
  #trim() {
    if (this.#lines.length < MAX_LINES * 1.2 && this.#chars < MAX_CHARS * 1.2) return;
    let drop = Math.max(0, this.#lines.length - MAX_LINES);
    let chars = 0;
    for (let at = 0; at < this.#lines.length && (at < drop || this.#chars - chars > MAX_CHARS); at += 1) {
      chars += this.#lines[at]?.text.length ?? 0;
      drop = Math.max(drop, at + 1);
    }
    this.#lines.splice(0, drop);
    this.#first += drop;
    this.#chars -= chars;
  }

  /**
   * Returns the newest lines in memory that a filter lets through.
   *
   * @param {number} count
   * @param {Filter} isShown
   */
  last(count, isShown) {
    return this.#before(this.count, count, isShown);
  }

  /**
   * Returns up to `count` lines right before a line, which may have to be read again.
   *
   * @param {number} number
   * @param {number} count
   * @param {Filter} isShown
   */
  async before(number, count, isShown) {
    const found = this.#before(number, count, isShown);
    let end = Math.min(number, this.#first);
    for (let parts = 0; found.length < count && end > 0 && parts < MAX_PARTS; parts += 1) {
      const mark = this.#markBefore(end);
      const lines = (await this.#read(mark)).filter((line) => line.number < end && isShown(line));
      found.unshift(...lines.slice(-(count - found.length)));
      end = this.#marks[mark]?.number ?? 0;
    }
    return found;
  }

  /**
   * Returns up to `count` lines from a line on.
   *
   * @param {number} number
   * @param {number} count
   * @param {Filter} isShown
   */
  async from(number, count, isShown) {
    /** @type {Line[]} */
    const found = [];
    let start = number;
    for (let parts = 0; found.length < count && start < this.#first && parts < MAX_PARTS; parts += 1) {
      const mark = this.#markBefore(start + 1);
      const lines = await this.#read(mark);
      found.push(...lines.filter((line) => line.number >= start && line.number < this.#first && isShown(line)));
      start = Math.max(start + 1, this.#marks[mark + 1]?.number ?? this.#first);
    }
    for (let at = Math.max(0, start - this.#first); at < this.#lines.length && found.length < count; at += 1) {
      const line = /** @type {Line} */ (this.#lines[at]);
      if (isShown(line)) found.push(line);
    }
    return found.slice(0, count);
  }

  /**
   * Gives all lines as texts, part by part, also those that are not in memory.
   *
   * @param {Filter} isShown
   * @param {(line: Line) => string} write
   */
  async *texts(isShown, write) {
    for (let mark = 0; (this.#marks[mark]?.number ?? Infinity) < this.#first; mark += 1) {
      const lines = (await this.#read(mark)).filter((line) => line.number < this.#first && isShown(line));
      yield lines.map(write).join("");
    }
    yield this.#lines.filter(isShown).map(write).join("");
  }

  /**
   * @param {number} number
   * @param {number} count
   * @param {Filter} isShown
   */
  #before(number, count, isShown) {
    /** @type {Line[]} */
    const found = [];
    for (let at = Math.min(this.#lines.length, number - this.#first) - 1; at >= 0 && found.length < count; at -= 1) {
      const line = /** @type {Line} */ (this.#lines[at]);
      if (isShown(line)) found.push(line);
    }
    return found.reverse();
  }

  /**
   * Returns the index of the last mark before a line.
   *
   * @param {number} number
   */
  #markBefore(number) {
    let mark = Math.min(this.#marks.length - 1, Math.floor(number / MARK_EVERY) + 1);
    while (mark > 0 && (this.#marks[mark]?.number ?? 0) >= number) mark -= 1;
    return mark;
  }

  /**
   * Reads the lines from a mark to the next one again.
   *
   * @param {number} index
   */
  async #read(index) {
    if (this.#part?.mark === index) return this.#part.lines;
    const jobId = this.#jobId;
    const mark = this.#marks[index] ?? { number: 0, cursor: null };
    const end = this.#marks[index + 1]?.number ?? this.#first;
    const maker = new LineMaker(mark.number);
    /** @type {Line[]} */
    const lines = [];
    for (let after = mark.cursor; maker.next < end; ) {
      const { events, cursor } = await readEvents(jobId, after);
      for (const event of events) {
        const timeMs = Date.parse(event.timestamp);
        const taken = maker.take({ ...event, cursor: "", timeMs: Number.isFinite(timeMs) ? timeMs : 0 });
        if (taken?.isNew && taken.line.number < end) lines.push(taken.line);
      }
      if (events.length === 0) break;
      after = cursor;
    }
    if (jobId === this.#jobId) this.#part = { mark: index, lines };
    return lines;
  }
}

/**
 * Returns the text of a line as it is searched and copied.
 *
 * @param {Line} line
 */
export function textOf({ text, type }) {
  const bare = plainText(text);
  return type === undefined ? bare : bare === "" ? type : `${type} ${bare}`;
}
