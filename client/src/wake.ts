// The moments at which a browser knows more than a timer: the page is online again, is looked at again, or is back
// from the back/forward cache. And a clock that notices sleep.

export interface WakeHandlers {
  /** With `isCut`, no open connection can be trusted. */
  onWake(isCut: boolean): void;
  /** The device has lost its network. */
  onOffline(): void;
}

/** Calls the handlers at each such moment. Returns how to stop listening. */
export function onWake({ onWake, onOffline }: WakeHandlers): () => void {
  if (!globalThis.document) return () => {};
  const stop = new AbortController();
  const { signal } = stop;
  addEventListener("online", () => onWake(true), { signal });
  addEventListener("offline", onOffline, { signal });
  addEventListener("pageshow", (event) => event.persisted && onWake(true), { signal });
  document.addEventListener("visibilitychange", () => document.hidden || onWake(false), { signal });
  return () => stop.abort();
}

/** The monotonic clock, in milliseconds: it does not follow when the time of day is set. It may stand still in sleep. */
export const now = (): number => performance.now();

/** A shorter sleep ends no connection. */
const LEAST_SLEEP_MS = 20_000;

/**
 * Notices sleep: the time of day has moved on, and the monotonic clock has not. A clock that is set forward looks the
 * same, and costs one new connection.
 */
export class SleepMeter {
  #aheadMs = Date.now() - now();

  /** Returns the time slept since the last call, or 0. */
  sleptMs(): number {
    const beforeMs = this.#aheadMs;
    this.#aheadMs = Date.now() - now();
    const sleptMs = this.#aheadMs - beforeMs;
    return sleptMs > LEAST_SLEEP_MS ? sleptMs : 0;
  }
}
