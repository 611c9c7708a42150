// Times as people read them, and the server's clock.

/** Events bear the server's time; a browser's own clock may be wrong by minutes. */
export const serverClock = {
  aheadMs: 0,
  now() {
    return Date.now() + this.aheadMs;
  },
  /** The `Date` header is cut to seconds: less than two are no difference. */
  hear(dateHeader) {
    const ahead = Date.parse(dateHeader ?? "") + 500 - Date.now();
    if (Number.isFinite(ahead)) this.aheadMs = Math.abs(ahead) < 2000 ? 0 : ahead;
  },
};

export function duration(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
  return `${Math.floor(seconds / 86_400)} d`;
}

/** `1:02.5`, for columns. */
export function stopwatch(ms) {
  const tenths = Math.floor(Math.max(0, ms) / 100);
  return `${Math.floor(tenths / 600)}:${String(Math.floor(tenths / 10) % 60).padStart(2, "0")}.${tenths % 10}`;
}

export function ago(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 60) return `${Math.floor(seconds)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  return `${Math.floor(seconds / 86_400)} d`;
}
