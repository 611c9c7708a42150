// What all bindings share: one stream or several, and snapshots of them that change at most 16 times a second.

import type { AnyEvents, EventOf, JobEvent, JobStreamOptions, Reset } from "./index.js";
import { append, before, failed, INTERVAL_MS, open, type Snapshot } from "./snapshot.js";

export { before, type Snapshot } from "./snapshot.js";

export interface WatchOptions<Events extends object = AnyEvents> extends JobStreamOptions {
  /** The number of newest events that are kept. Default 1000. */
  maxEvents?: number | undefined;
  /** Called with each event, once and in order. */
  onEvent?: ((event: EventOf<Events>) => void) | undefined;
  /** History was lost: the events that follow are all there are. */
  onReset?: ((reset: Reset) => void) | undefined;
}

export interface Watch {
  reconnect(): void;
  close(): void;
}

/** Watches a job until `close()`, and hands each new snapshot to `onChange`. */
export function watch(jobId: string, options: WatchOptions, onChange: (snapshot: Snapshot) => void): Watch {
  let shown = before("connecting");
  let newEvents: JobEvent[] = [];
  const stream = open(jobId, options, (error) => onChange(failed(shown, error)));
  if (!stream) return { reconnect() {}, close() {} };
  const { schedule, stop } = throttled(() => {
    shown = { ...append(shown, newEvents, options.maxEvents), state: stream.state };
    newEvents = [];
    onChange(shown);
  });
  const unsubscribes = [
    stream.on("state", schedule),
    stream.on("event", (event) => {
      newEvents.push(event);
      schedule();
      options.onEvent?.(event);
    }),
    stream.on("reset", (reset) => {
      shown = before("connecting");
      newEvents = [];
      schedule();
      options.onReset?.(reset);
    }),
  ];
  schedule();
  return {
    reconnect: () => stream.reconnect(),
    close() {
      stop();
      for (const unsubscribe of unsubscribes) unsubscribe();
      stream.close();
    },
  };
}

/** The snapshots of several jobs, by the job. Each change makes a new map. */
export type Snapshots<Events extends object = AnyEvents> = ReadonlyMap<string, Snapshot<Events>>;

export interface WatchAll extends Watch {
  /** Watches these jobs and no others. Those that are watched already go on. */
  update(jobIds: readonly string[]): void;
}

/** Watches several jobs until `close()`, on one connection, and hands new snapshots to `onChange`. */
export function watchAll(options: WatchOptions, onChange: (snapshots: Snapshots) => void): WatchAll {
  const watches = new Map<string, Watch>();
  const snapshots = new Map<string, Snapshot>();
  const { schedule, stop } = throttled(() => onChange(new Map(snapshots)));
  let isClosed = false;
  const update = (jobIds: readonly string[]) => {
    if (isClosed) return;
    for (const [jobId, one] of watches) {
      if (jobIds.includes(jobId)) continue;
      one.close();
      watches.delete(jobId);
      snapshots.delete(jobId);
    }
    for (const jobId of jobIds) {
      if (watches.has(jobId)) continue;
      snapshots.set(jobId, before("connecting"));
      const show = (snapshot: Snapshot) => {
        snapshots.set(jobId, snapshot);
        schedule();
      };
      watches.set(jobId, watch(jobId, options, show));
    }
    onChange(new Map(snapshots));
  };
  return {
    update,
    reconnect() {
      for (const one of watches.values()) one.reconnect();
    },
    close() {
      stop();
      isClosed = true;
      for (const one of watches.values()) one.close();
    },
  };
}

/** Calls `publish` soon after `schedule`, and not more often than the interval allows. */
function throttled(publish: () => void) {
  let timer: ReturnType<typeof setTimeout> | undefined;
  let publishedMs = 0;
  const run = () => {
    timer = undefined;
    publishedMs = performance.now();
    publish();
  };
  return {
    schedule: () => {
      timer ??= setTimeout(run, Math.max(0, publishedMs + INTERVAL_MS - performance.now()));
    },
    stop: () => clearTimeout(timer),
  };
}
