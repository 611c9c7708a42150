const TIMEOUT_MS = 25_000;
// The real timer, kept before a test replaces it by a fake one.
const { setTimeout } = globalThis;

/**
 * Waits until `isTrue` is true. A condition that throws is not true yet. The error names the condition by `name`.
 */
export async function eventually(name: string, isTrue: () => unknown, timeoutMs = TIMEOUT_MS): Promise<void> {
  const until = performance.now() + timeoutMs;
  let last: unknown;
  for (;;) {
    try {
      if (await isTrue()) return;
      last = undefined;
    } catch (error) {
      last = error;
    }
    if (performance.now() > until)
      throw new Error(`"${name}" did not become true within ${timeoutMs / 1000} s`, { cause: last });
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
}
