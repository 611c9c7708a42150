// @ts-check
// The server's clock, and times as people read them.

/** Smaller differences are not corrected, since the `Date` header is cut to seconds. */
const MIN_DIFFERENCE_MS = 2000;

/** The server's clock. Events bear its time, and a browser's own clock may be wrong by minutes. */
export const serverClock = {
  aheadMs: 0,
  now() {
    return Date.now() + this.aheadMs;
  },
  /**
   * Sets the clock by the `Date` header of an answer.
   *
   * @param {string | null} dateHeader
   */
  adjust(dateHeader) {
    // Half a second is what the header has lost on average.
    const aheadMs = Date.parse(dateHeader ?? "") + 500 - Date.now();
    if (Number.isFinite(aheadMs)) this.aheadMs = Math.abs(aheadMs) < MIN_DIFFERENCE_MS ? 0 : aheadMs;
  },
};

/**
 * Returns a duration such as `3.2 s` or `4 min 10 s`.
 *
 * @param {number} ms
 */
export function duration(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/**
 * Returns a duration such as `1:02.5`, for columns.
 *
 * @param {number} ms
 */
export function stopwatch(ms) {
  const tenths = Math.floor(Math.max(0, ms) / 100);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

/**
 * Returns an age in one unit, such as `5 min`.
 *
 * @param {number} ms
 */
export function ago(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/**
 * Returns the time of day at the reader's place, such as `14:02:07.250`.
 *
 * @param {number} timeMs
 */
export function clockTime(timeMs) {
  const time = new Date(timeMs);
  const digits = (/** @type {number} */ value, count = 2) => String(value).padStart(count, "0");
  const seconds = `${digits(time.getSeconds())}.${digits(time.getMilliseconds(), 3)}`;
  return `${digits(time.getHours())}:${digits(time.getMinutes())}:${seconds}`;
}
