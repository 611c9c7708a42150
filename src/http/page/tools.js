// @ts-check
// What can be done with the whole output: copying it, keeping it as a file, and reading its times on another clock.

import { byId } from "./dom.js";
import { textOf } from "./lines.js";
import { copyText, flash, saveFile } from "./save.js";
import { clockTime, stopwatch } from "./time.js";

/** @typedef {import("./lines.js").Line} Line */

const STORED_AS = "jobcast:times";

export class Tools {
  /** Times are those of a clock on the wall, and not counted from the job's beginning. */
  #isWallClock = readChoice();
  #times = byId("times", HTMLButtonElement);
  #output;
  #jobOf;

  /**
   * @param {import("./output.js").Output} output
   * @param {() => import("./job.js").Job | null} jobOf
   */
  constructor(output, jobOf) {
    this.#output = output;
    this.#jobOf = jobOf;
    this.#times.setAttribute("aria-pressed", String(this.#isWallClock));
    this.#times.addEventListener("click", () => this.#switchTimes());
    const copy = byId("copy", HTMLButtonElement);
    copy.addEventListener("click", () => this.#copy(copy));
    const download = byId("download", HTMLButtonElement);
    download.addEventListener("click", () => this.#download(download));
  }

  /** @param {number} timeMs */
  timeOf(timeMs) {
    return this.#isWallClock ? clockTime(timeMs) : stopwatch(timeMs - (this.#jobOf()?.beganMs ?? timeMs));
  }

  #switchTimes() {
    this.#isWallClock = !this.#isWallClock;
    this.#times.setAttribute("aria-pressed", String(this.#isWallClock));
    storeChoice(this.#isWallClock);
    this.#output.redrawTimes();
  }

  /** @param {HTMLButtonElement} button */
  async #copy(button) {
    const texts = await this.#all(button, (line) => `${textOf(line)}\n`);
    if (texts) flash(button, (await copyText(texts.join(""))) ? "Copied" : "Not allowed");
  }

  /** @param {HTMLButtonElement} button */
  async #download(button) {
    const write = (/** @type {Line} */ line) =>
      `${new Date(line.timeMs).toISOString()}  ${line.tag === "" ? "" : `${line.tag}  `}${textOf(line)}\n`;
    const name = this.#jobOf()?.id ?? "output";
    const texts = await this.#all(button, write);
    if (texts) saveFile(`${name}.log`, texts);
  }

  /**
   * Gathers the texts of all shown lines; `null` where the older ones cannot be read.
   *
   * @param {HTMLButtonElement} button
   * @param {(line: Line) => string} write
   */
  async #all(button, write) {
    /** @type {string[]} */
    const texts = [];
    button.disabled = true;
    try {
      for await (const text of this.#output.lines.texts(this.#output.isShown, write)) texts.push(text);
      return texts;
    } catch {
      flash(button, "Failed");
      return null;
    } finally {
      button.disabled = false;
    }
  }
}

function readChoice() {
  try {
    return localStorage.getItem(STORED_AS) === "clock";
  } catch {
    return false;
  }
}

/** @param {boolean} isWallClock */
function storeChoice(isWallClock) {
  try {
    localStorage.setItem(STORED_AS, isWallClock ? "clock" : "job");
  } catch {
    // The browser keeps nothing for this page. The choice holds until it is left.
  }
}
