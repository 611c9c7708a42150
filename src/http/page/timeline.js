// @ts-check
// The timeline: the times of the last minute's events, with the gaps of a lost connection and the events that filled
// them afterwards.

const WINDOW_MS = 60_000;
const BUCKET_MS = 500;
/** Buckets are kept for some minutes, since the window of an ended job lies in the past. */
const MAX_BUCKETS = (4 * WINDOW_MS) / BUCKET_MS;
const MAX_GAPS = 20;
/** The time in which a bar of filled-in events grows to its height. */
const GROW_MS = 600;

/**
 * The number of events that arrived as they happened, of those that filled a gap, and the time of the first of these.
 *
 * @typedef {{live: number, filled: number, filledAt: number}} Bucket
 */

export class Timeline {
  /**
   * Buckets by the number of their half second.
   *
   * @type {Map<number, Bucket>}
   */
  #buckets = new Map();
  /** @type {{fromMs: number, toMs: number}[]} */
  #gaps = [];
  #canvas;
  #context;

  /** @param {HTMLCanvasElement} canvas */
  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  }

  clear() {
    this.#buckets.clear();
    this.#gaps = [];
  }

  /**
   * @param {number} timeMs
   * @param {boolean} fillsGap
   */
  add(timeMs, fillsGap) {
    const number = Math.floor(timeMs / BUCKET_MS);
    const bucket = this.#buckets.get(number) ?? { live: 0, filled: 0, filledAt: 0 };
    if (fillsGap) {
      bucket.filled += 1;
      bucket.filledAt ||= performance.now();
    } else bucket.live += 1;
    this.#buckets.set(number, bucket);
    if (this.#buckets.size <= MAX_BUCKETS) return;
    // The first inserted bucket is close enough to the oldest one.
    for (const oldest of this.#buckets.keys()) return void this.#buckets.delete(oldest);
  }

  /** @param {number} timeMs */
  beginGap(timeMs) {
    this.#gaps.push({ fromMs: timeMs, toMs: Infinity });
    if (this.#gaps.length > MAX_GAPS) this.#gaps.shift();
  }

  /** @param {number} timeMs */
  endGap(timeMs) {
    const gap = this.#gaps.at(-1);
    if (gap) gap.toMs = Math.min(gap.toMs, timeMs);
  }

  /**
   * @param {number} endMs the time at the right edge
   * @param {boolean} isStill draw without movement
   */
  draw(endMs, isStill) {
    const { width, height } = this.#fit();
    const context = this.#context;
    const startMs = endMs - WINDOW_MS;
    const style = getComputedStyle(this.#canvas);
    const colour = (/** @type {string} */ name) => style.getPropertyValue(name).trim();
    const x = (/** @type {number} */ timeMs) => ((timeMs - startMs) / WINDOW_MS) * width;
    context.clearRect(0, 0, width, height);
    context.fillStyle = colour("--gap");
    for (const { fromMs, toMs } of this.#gaps) {
      const left = Math.max(0, x(fromMs));
      const right = Math.min(width, x(toMs));
      if (right > left) context.fillRect(left, 0, right - left, height);
    }
    context.fillStyle = colour("--line");
    context.fillRect(0, height - 1, width, 1);
    const barWidth = Math.max(2, (BUCKET_MS / WINDOW_MS) * width - 1.5);
    for (const [number, { live, filled, filledAt }] of this.#buckets) {
      const left = x(number * BUCKET_MS);
      if (left < -barWidth || left > width) continue;
      const liveHeight = barHeight(live, height);
      const grown = isStill ? 1 : eased((performance.now() - filledAt) / GROW_MS);
      const filledHeight = (barHeight(live + filled, height) - liveHeight) * grown;
      context.fillStyle = colour("--running");
      context.fillRect(left, height - 1 - liveHeight, barWidth, liveHeight);
      context.fillStyle = colour("--filled");
      context.fillRect(left, height - 1 - liveHeight - filledHeight, barWidth, filledHeight);
    }
  }

  /** Fits the canvas to its size on the screen, and returns that size. */
  #fit() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    const scale = devicePixelRatio || 1;
    const pixelWidth = Math.round(width * scale);
    const pixelHeight = Math.round(height * scale);
    if (this.#canvas.width !== pixelWidth || this.#canvas.height !== pixelHeight) {
      this.#canvas.width = pixelWidth;
      this.#canvas.height = pixelHeight;
    }
    this.#context.setTransform(scale, 0, 0, scale, 0, 0);
    return { width, height };
  }
}

/**
 * Returns the height of a bar on a logarithmic scale: one event can be seen, and two hundred still fit.
 *
 * @param {number} count
 * @param {number} height
 */
function barHeight(count, height) {
  return count === 0 ? 0 : Math.min(height - 2, 4 + (Math.log2(count) / 8) * (height - 6));
}

/** @param {number} share */
function eased(share) {
  return share >= 1 ? 1 : 1 - (1 - Math.max(0, share)) ** 3;
}
