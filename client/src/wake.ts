// The moments at which a browser knows better than a timer: it is online again, looked at again, back from the cache.

/** `isCut` says that whatever was open before cannot be trusted. Returns how to stop listening. */
export function onWake(wake: (isCut: boolean) => void): () => void {
  if (!globalThis.document) return () => {};
  const stop = new AbortController();
  const { signal } = stop;
  addEventListener("online", () => wake(true), { signal });
  addEventListener("pageshow", (event) => event.persisted && wake(true), { signal });
  document.addEventListener("visibilitychange", () => document.hidden || wake(false), { signal });
  return () => stop.abort();
}
