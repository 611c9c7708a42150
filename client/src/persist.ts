// The cursor of a page across reloads, in sessionStorage. A browser may refuse that storage, or it may be full; then the
// stream starts from the beginning after a reload.

/** Keeps `cursor`, if it is given, and returns what is kept. */
export function kept(key: string, cursor?: string): string | null {
  try {
    if (cursor !== undefined) sessionStorage.setItem(key, cursor);
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}
