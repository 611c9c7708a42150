// What all bindings share: one stream or several, and snapshots of them that change at most 16 times a second.

import {
  type JobEvent,
  JobStream,
  JobStreamError,
  type JobStreamOptions,
  type JobStreamState,
  type Reset,
} from "./index.js";

export interface WatchOptions extends JobStreamOptions {
  /** The number of newest events that are kept. Default 1000. */
  maxEvents?: number | undefined;
  /** Called with each event, once and in order. */
  onEvent?: ((event: JobEvent) => void) | undefined;
  /** History was lost: the events that follow are all there are. */
  onReset?: ((reset: Reset) => void) | undefined;
}

/** What is shown of a job. Each change makes a new object. */
export interface Snapshot {
  /** The newest events, `maxEvents` at most. */
  readonly events: readonly JobEvent[];
  /** The number of events before those in `events`. */
  readonly dropped: number;
  readonly lastEvent: JobEvent | null;
  readonly state: JobStreamState;
}

/** The least time between two snapshots, so that 1,000 events a second do not freeze a page. */
const INTERVAL_MS = 64;
const IDLE = {
  attempt: 0,
  retryInMs: null,
  retryAt: null,
  error: null,
  jobStatus: null,
  isCaughtUp: false,
  cursor: null,
} as const;

/** What is shown before a stream is there; `closed` where there is no job to watch. */
export const before = (status: "connecting" | "closed"): Snapshot => ({
  events: [],
  dropped: 0,
  lastEvent: null,
  state: { ...IDLE, status },
});

export interface Watch {
  reconnect(): void;
  close(): void;
}

/** Watches a job until `close()`, and hands each new snapshot to `onChange`. */
export function watch(jobId: string, options: WatchOptions, onChange: (snapshot: Snapshot) => void): Watch {
  let { events, dropped, lastEvent } = before("connecting");
  let newEvents: JobEvent[] = [];
  let stream: JobStream;
  try {
    stream = new JobStream(jobId, { ...options, maxBuffered: 0 });
  } catch (error) {
    // The options make no address. What failed for another reason is for the caller to see.
    if (!(error instanceof JobStreamError)) throw error;
    onChange({ ...before("connecting"), state: { ...IDLE, status: "failed", error } });
    return { reconnect() {}, close() {} };
  }
  const { schedule, stop } = throttled(() => {
    lastEvent = newEvents.at(-1) ?? lastEvent;
    if (newEvents.length > 0) events = [...events, ...newEvents];
    newEvents = [];
    const extra = Math.max(0, events.length - (options.maxEvents ?? 1000));
    if (extra > 0) events = events.slice(extra);
    dropped += extra;
    onChange({ events, dropped, lastEvent, state: stream.state });
  });
  const unsubscribes = [
    stream.on("state", schedule),
    stream.on("event", (event) => {
      newEvents.push(event);
      schedule();
      options.onEvent?.(event);
    }),
    stream.on("reset", (reset) => {
      ({ events, dropped, lastEvent } = before("connecting"));
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
export type Snapshots = ReadonlyMap<string, Snapshot>;

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
