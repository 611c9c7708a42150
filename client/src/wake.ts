// The moments at which a browser knows more than a timer: the page is online again, is looked at again, or is back
// from the back/forward cache.

/** Calls `wake` at each such moment. With `isCut`, no open connection can be trusted. Returns how to stop listening. */
export function onWake(wake: (isCut: boolean) => void): () => void {
  if (!globalThis.document) return () => {};
  const stop = new AbortController();
  const { signal } = stop;
  addEventListener("online", () => wake(true), { signal });
  addEventListener("pageshow", (event) => event.persisted && wake(true), { signal });
  document.addEventListener("visibilitychange", () => document.hidden || wake(false), { signal });
  return () => stop.abort();
}
