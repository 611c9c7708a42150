// Where a page goes on after a reload: sessionStorage, which a browser may refuse.

export function stored(key: string): string | null {
  try {
    return sessionStorage.getItem(key);
  } catch {
    return null;
  }
}

export function store(key: string, cursor: string): void {
  try {
    sessionStorage.setItem(key, cursor);
  } catch {
    // full or forbidden: it only starts from the beginning after a reload
  }
}
