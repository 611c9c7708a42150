// @ts-check
// The events of a job that come after its end: late lines, or another run. A stream that is complete hears of none, but the
// list of jobs has the time of the newest. A list may be some seconds old, so its status alone tells nothing.

export class Ended {
  /** The newest time that is known. */
  #newestMs = -Infinity;

  /**
   * Notes an event that the stream has brought.
   *
   * @param {number} timeMs
   */
  note(timeMs) {
    if (timeMs > this.#newestMs) this.#newestMs = timeMs;
  }

  /**
   * Tells, once for each, if the list knows of a newer event.
   *
   * @param {string | null} lastEventAt
   */
  isBehind(lastEventAt) {
    const before = this.#newestMs;
    this.note(Date.parse(lastEventAt ?? ""));
    return this.#newestMs > before;
  }
}
