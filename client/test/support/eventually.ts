const PATIENCE_MS = 25_000;
// real ones, whatever a test does to its clock
const { setTimeout } = globalThis;

/** Waits until it is true, and says what did not become so. What throws has not become true yet. */
export async function eventually(what: string, isSo: () => unknown, patienceMs = PATIENCE_MS): Promise<void> {
  const until = performance.now() + patienceMs;
  let last: unknown;
  for (;;) {
    try {
      if (await isSo()) return;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (performance.now() > until)
      throw new Error(`"${what}" did not become true within ${patienceMs / 1000} s`, { cause: last });
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
}
