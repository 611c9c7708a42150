// The moments at which a browser knows more than a timer: the page is online again, is looked at again, or is back
// from the back/forward cache. And the clocks, by which sleep is noticed.

/**
 * Calls `wake` at each such moment, with `isCut` where no open connection can be trusted, and `lose` when the device has lost
 * its network. Returns how to stop listening.
 */
export function onWake(wake: (isCut: boolean) => void, lose: () => void): () => void {
  if (!globalThis.document) return () => {};
  const stop = new AbortController();
  const { signal } = stop;
  addEventListener("online", () => wake(true), { signal });
  addEventListener("offline", () => lose(), { signal });
  addEventListener("pageshow", (event) => event.persisted && wake(true), { signal });
  document.addEventListener("visibilitychange", () => document.hidden || wake(false), { signal });
  return () => stop.abort();
}

/** The monotonic clock, in milliseconds: it does not follow when the time of day is set. It may stand still in sleep. */
export const now = (): number => performance.now();

/**
 * Returns how far the time of day is ahead of the monotonic clock. It grows in sleep, where that clock stands still, and
 * when the time of day is set forward.
 */
export const aheadMs = (): number => Date.now() - now();
