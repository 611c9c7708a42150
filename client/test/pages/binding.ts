import type { Snapshots } from "../../src/watch.js";

/**
 * What the tests do with a page of a binding: its heading is the state, its list the events, its button connects anew. Below
 * it shows several jobs, each with its numbers.
 */
export interface Binding {
  show(jobId: string | null): void;
  showAll(jobIds: string[]): void;
  leave(): void;
}

declare global {
  interface Window {
    binding: Binding;
  }
}

export const QUICK = { retry: { initialMs: 50, maxMs: 400 } };

/** Returns each job with the numbers of its events. */
export const numbersOf = (jobs: Snapshots): [jobId: string, numbers: string][] =>
  [...jobs].map(([jobId, { events }]) => [jobId, events.map(({ payload }) => (payload as { n: number }).n).join()]);
