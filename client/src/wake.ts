// The moments at which a browser knows more than a timer: the page is online again, is looked at again, or is back
// from the back/forward cache. And the clocks, by which sleep is noticed.

export interface WakeHandlers {
  /** With `isCut`, no open connection can be trusted. */
  onWake(isCut: boolean): void;
  /** The device has lost its network. */
  onOffline(): void;
}

/** Calls the handlers at each such moment. Returns how to stop listening. */
export function onWake(handlers: WakeHandlers): () => void {
  if (!globalThis.document) return () => {};
  const stop = new AbortController();
  const { signal } = stop;
  addEventListener("online", () => handlers.onWake(true), { signal });
  addEventListener("offline", () => handlers.onOffline(), { signal });
  addEventListener("pageshow", (event) => event.persisted && handlers.onWake(true), { signal });
  document.addEventListener("visibilitychange", () => document.hidden || handlers.onWake(false), { signal });
  return () => stop.abort();
}

/** The monotonic clock, in milliseconds: it does not follow when the time of day is set. It may stand still in sleep. */
export const now = (): number => performance.now();

/**
 * Returns how far the time of day is ahead of the monotonic clock. It grows in sleep, where that clock stands still, and
 * when the time of day is set forward.
 */
export const aheadMs = (): number => Date.now() - now();
