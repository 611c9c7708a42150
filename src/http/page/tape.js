// The tape: when the events of the last minute happened, and which of them filled a gap after a reconnect.

const WINDOW_MS = 60_000;
const BUCKET_MS = 500;
const FILL_MS = 600;

export class Tape {
  /** Number of the half second → how many came as they happened, and how many afterwards. */
  #buckets = new Map();
  #gaps = [];

  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
  }

  clear() {
    this.#buckets.clear();
    this.#gaps = [];
  }

  add(at, filledGap) {
    const number = Math.floor(at / BUCKET_MS);
    const bucket = this.#buckets.get(number) ?? { live: 0, filled: 0, filledAt: 0 };
    if (filledGap) {
      bucket.filled += 1;
      bucket.filledAt ||= performance.now();
    } else bucket.live += 1;
    this.#buckets.set(number, bucket);
    // insertion order is close enough to the order of time
    if (this.#buckets.size > (4 * WINDOW_MS) / BUCKET_MS) this.#buckets.delete(this.#buckets.keys().next().value);
  }

  gapBegins(at) {
    this.#gaps.push({ from: at, to: Infinity });
    if (this.#gaps.length > 20) this.#gaps.shift();
  }

  gapEnds(at) {
    const gap = this.#gaps.at(-1);
    if (gap) gap.to = Math.min(gap.to, at);
  }

  /** @param {number} end the time at the right edge @param {boolean} isStill without movement */
  draw(end, isStill) {
    const { width, height } = this.#fit();
    const [context, from] = [this.context, end - WINDOW_MS];
    const style = getComputedStyle(this.canvas);
    const colour = (name) => style.getPropertyValue(name).trim();
    const x = (at) => ((at - from) / WINDOW_MS) * width;
    context.clearRect(0, 0, width, height);
    context.fillStyle = colour("--gap");
    for (const gap of this.#gaps) {
      const [left, right] = [Math.max(0, x(gap.from)), Math.min(width, x(gap.to))];
      if (right > left) context.fillRect(left, 0, right - left, height);
    }
    context.fillStyle = colour("--line");
    context.fillRect(0, height - 1, width, 1);
    const bar = Math.max(2, (BUCKET_MS / WINDOW_MS) * width - 1.5);
    for (const [number, { live, filled, filledAt }] of this.#buckets) {
      const left = x(number * BUCKET_MS);
      if (left < -bar || left > width) continue;
      const liveHeight = barHeight(live, height);
      const grown = isStill ? 1 : eased((performance.now() - filledAt) / FILL_MS);
      const filledHeight = (barHeight(live + filled, height) - liveHeight) * grown;
      context.fillStyle = colour("--running");
      context.fillRect(left, height - 1 - liveHeight, bar, liveHeight);
      context.fillStyle = colour("--filled");
      context.fillRect(left, height - 1 - liveHeight - filledHeight, bar, filledHeight);
    }
  }

  #fit() {
    const { clientWidth: width, clientHeight: height } = this.canvas;
    const scale = devicePixelRatio || 1;
    const [wide, high] = [Math.round(width * scale), Math.round(height * scale)];
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      this.canvas.width = wide;
      this.canvas.height = high;
    }
    this.context.setTransform(scale, 0, 0, scale, 0, 0);
    return { width, height };
  }
}

/** One event can be seen, two hundred at once still fit. */
function barHeight(count, height) {
  return count === 0 ? 0 : Math.min(height - 2, 4 + (Math.log2(count) / 8) * (height - 6));
}

function eased(share) {
  return share >= 1 ? 1 : 1 - (1 - Math.max(0, share)) ** 3;
}
