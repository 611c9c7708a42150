// The cursor of a page across reloads, in sessionStorage. A browser may refuse that storage; then the stream starts
// from the beginning after a reload.

export function loadCursor(key: string): string | null {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}

export function saveCursor(key: string, cursor: string): void {
  try {
    sessionStorage.setItem(key, cursor);
  } catch {
    // The storage is full or forbidden.
  }
}
