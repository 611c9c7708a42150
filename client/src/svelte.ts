// The stores for Svelte. They are stores by their contract alone, so they work with every version since 3.

import type { AnyEvents } from "./index.js";
import { before, type Snapshot, type Snapshots, type Watch, type WatchOptions, watch, watchAll } from "./watch.js";

export type { AnyEvents, EventOf, JobEvent, JobStatus, JobStreamState } from "./index.js";
export type { Snapshot, Snapshots, WatchOptions } from "./watch.js";

export interface JobStreamStore<Events extends object = AnyEvents> {
  /** Calls `run` at once, and with each change, at most 16 times a second. Returns how to stop. */
  subscribe(run: (snapshot: Snapshot<Events>) => void): () => void;
  reconnect(): void;
}

export interface JobStreamsStore<Events extends object = AnyEvents> {
  /** Calls `run` at once, and with each change, at most 16 times a second. Returns how to stop. */
  subscribe(run: (snapshots: Snapshots<Events>) => void): () => void;
  /** Watches these jobs and no others. Those that are watched already go on. */
  update(jobIds: readonly string[]): void;
  reconnect(): void;
}

/** Watches a job from the first subscriber to the last. `null` watches nothing. */
export function jobStream<Events extends object = AnyEvents>(
  jobId: string | null | undefined,
  options?: WatchOptions<Events>,
): JobStreamStore<Events>;
export function jobStream(jobId: string | null | undefined, options: WatchOptions = {}): JobStreamStore {
  return storeOf(before(jobId ? "connecting" : "closed"), (show) => (jobId ? watch(jobId, options, show) : null));
}

/** Watches several jobs on one connection from the first subscriber to the last. Its value is what is shown by the job. */
export function jobStreams<Events extends object = AnyEvents>(
  jobIds: readonly string[],
  options?: WatchOptions<Events>,
): JobStreamsStore<Events>;
export function jobStreams(jobIds: readonly string[], options: WatchOptions = {}): JobStreamsStore {
  let current: readonly string[] = jobIds;
  let all: ReturnType<typeof watchAll> | null = null;
  const store = storeOf<Snapshots>(new Map(), (show) => {
    all = watchAll(options, show);
    all.update(current);
    return all;
  });
  return {
    ...store,
    update(jobIds) {
      current = jobIds;
      all?.update(jobIds);
    },
  };
}

/** A store that holds a watch while it has subscribers. */
function storeOf<Shown>(first: Shown, open: (show: (shown: Shown) => void) => Watch | null) {
  let shown = first;
  let current: Watch | null = null;
  const subscribers = new Set<(shown: Shown) => void>();
  const openOnce = () => {
    // On the server Svelte subscribes and unsubscribes at once, and nothing is opened.
    if (current || subscribers.size === 0) return;
    current = open((changed) => {
      shown = changed;
      for (const run of subscribers) run(shown);
    });
  };
  return {
    subscribe(run: (shown: Shown) => void) {
      const subscriber = (changed: Shown) => run(changed);
      subscribers.add(subscriber);
      run(shown);
      queueMicrotask(openOnce);
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
