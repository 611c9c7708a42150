// The store for Svelte. It is a store by its contract alone, so it works with every version since 3.

import { before, type Snapshot, type Watch, type WatchOptions, watch } from "./watch.js";

export type { JobEvent, JobStatus, JobStreamState } from "./index.js";
export type { Snapshot, WatchOptions } from "./watch.js";

export interface JobStreamStore {
  /** Calls `run` at once, and with each change, at most 16 times a second. Returns how to stop. */
  subscribe(run: (snapshot: Snapshot) => void): () => void;
  reconnect(): void;
}

/** Watches a job from the first subscriber to the last. `null` watches nothing. */
export function jobStream(jobId: string | null | undefined, options: WatchOptions = {}): JobStreamStore {
  let snapshot = before(jobId ? "connecting" : "closed");
  let current: Watch | null = null;
  const subscribers = new Set<(snapshot: Snapshot) => void>();
  const open = () => {
    // On the server Svelte subscribes and unsubscribes at once, and nothing is opened.
    if (!jobId || current || subscribers.size === 0) return;
    current = watch(jobId, options, (changed) => {
      snapshot = changed;
      for (const run of subscribers) run(snapshot);
    });
  };
  return {
    subscribe(run) {
      const subscriber = (changed: Snapshot) => run(changed);
      subscribers.add(subscriber);
      run(snapshot);
      queueMicrotask(open);
      return () => {
        subscribers.delete(subscriber);
        if (subscribers.size > 0) return;
        current?.close();
        current = null;
      };
    },
    reconnect: () => current?.reconnect(),
  };
}
