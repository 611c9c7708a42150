"use client";

// The React hooks. Each job has a store outside of React, which opens its stream with the first subscriber and closes it
// with the last. The streams of a page share one connection.

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import type {
  AnyEvents,
  EventOf,
  JobStatus,
  JobStream,
  JobStreamError,
  JobStreamOptions,
  JobStreamState,
  Reset,
} from "./index.js";
import { append, before, failed, INTERVAL_MS, open } from "./snapshot.js";

export type {
  AnyEvents,
  EventOf,
  JobEvent,
  JobStatus,
  JobStreamOptions,
  JobStreamState,
  Reset,
  RetryOptions,
} from "./index.js";
export { JobStreamError } from "./snapshot.js";

/** Callbacks may be new functions with every render; the newest ones are called. */
export interface UseJobStreamOptions<Events extends object = AnyEvents, Reduced = undefined> extends JobStreamOptions {
  /** The number of newest events that are kept. Default 1000. */
  maxEvents?: number | undefined;
  /** `false` holds no connection, and keeps what was shown. Default true. */
  enabled?: boolean | undefined;
  /**
   * The time for which events are kept when the last component that shows them unmounts. One that mounts meanwhile shows
   * them and goes on from there. Default 300000, or 0 with `onEvent`, since kept events are not told again.
   */
  keepMs?: number | undefined;
  /** Makes one value of all events, also of those that are no longer in `events`. A reset begins it anew. */
  reduce?: ((state: Reduced, event: EventOf<Events>) => Reduced) | undefined;
  /** The value before the first event. Default `undefined`. */
  initial?: Reduced | undefined;
  /** Called with each event, once and in order. */
  onEvent?: ((event: EventOf<Events>) => void) | undefined;
  /** History was lost: the events that follow are all there are. */
  onReset?: ((reset: Reset) => void) | undefined;
  /** The job has ended, and all of its events were delivered. */
  onComplete?: ((jobStatus: JobStatus | null, jobId: string) => void) | undefined;
  /** Called with each new error; its `retryable` tells if the stream goes on by itself. */
  onError?: ((error: JobStreamError, jobId: string) => void) | undefined;
}

/** The part of the result that comes from events. */
interface Data<Events extends object, Reduced> {
  /** The newest events, `maxEvents` at most. */
  readonly events: readonly EventOf<Events>[];
  /** The number of events before those in `events`. */
  readonly dropped: number;
  /** The newest event, for display. An effect on it misses events of the same render: `onEvent` does not. */
  readonly lastEvent: EventOf<Events> | null;
  /** The value that `reduce` has made. */
  readonly reduced: Reduced;
  /** The number of times that history was lost, and `events` began anew. */
  readonly resets: number;
  readonly state: JobStreamState;
}

export interface UseJobStream<Events extends object = AnyEvents, Reduced = undefined> extends Data<Events, Reduced> {
  readonly error: JobStreamError | null;
  readonly jobStatus: JobStatus | null;
  /** The events that there were at the beginning are here: those that follow are new. */
  readonly isCaughtUp: boolean;
  /** The time of the next try, as `Date.now()` counts; `null` unless it is retrying. */
  readonly retryAt: number | null;
  readonly reconnect: () => void;
}

// Inside, events have any type; the caller's types are those of the hooks alone.
type Options = UseJobStreamOptions<AnyEvents, unknown>;
type Snapshot = UseJobStream<AnyEvents, unknown>;

const KEEP_MS = 300_000;
/** The jobs whose events are kept after unmounting, at most. */
const MAX_KEPT = 200;

/** Snapshots of unmounted jobs by their keys, the oldest first, and the time until which each is kept. */
const kept = new Map<string, Snapshot & { untilMs: number }>();

/** The stores with something new. All of them render at once. */
const changed = new Set<Store>();
let publishedMs = 0;
/** The number of times that something new was rendered. */
let version = 0;

function publish(): void {
  publishedMs = performance.now();
  const stores = [...changed];
  changed.clear();
  for (const store of stores) store.publish();
}

/** Adds the parts of the state. */
const withParts = (data: Omit<Snapshot, keyof JobStreamState>): Snapshot => ({ ...data, ...data.state });

const newest = (token: Options["token"]) => (typeof token === "function" ? token() : token!);

/** The store of one job: a stream and the snapshot of it that is rendered. */
class Store {
  /** The options of the newest render. */
  options: Options;
  snapshot: Snapshot;
  /** What is rendered next. Its events lack the new ones, which are added once for each render. */
  #next: Snapshot;
  #newEvents: EventOf[] = [];
  #stream: JobStream | null = null;
  readonly subscribers = new Set<() => void>();

  constructor(
    readonly jobId: string,
    readonly key: string,
    options: Options,
  ) {
    this.options = options;
    this.snapshot = this.#next = this.#restore();
  }

  readonly #reconnect = (): void => this.#stream?.reconnect();

  /** Begins with nothing, after so many resets. */
  begin(resets = 0): Snapshot {
    const nothing = before(this.jobId && this.options.enabled !== false ? "connecting" : "closed");
    return withParts({ ...nothing, reduced: this.options.initial, resets, reconnect: this.#reconnect });
  }

  /** Finds what an unmounted component has left. A value can be made of it again only if no event was dropped. */
  #restore(): Snapshot {
    const { reduce } = this.options;
    const nothing = this.begin();
    const snapshot = kept.get(this.key);
    if (!snapshot || snapshot.untilMs < performance.now() || (reduce && snapshot.dropped > 0)) return nothing;
    return withParts({
      ...snapshot,
      reduced: snapshot.events.reduce(this.#reduce, nothing.reduced),
      reconnect: this.#reconnect,
      state: { ...nothing.state, cursor: snapshot.state.cursor, jobStatus: snapshot.jobStatus },
    });
  }

  /** Returns the value after `event`. An error of the caller's function is reported as uncaught, and changes nothing. */
  readonly #reduce = (value: unknown, event: EventOf): unknown => {
    const { reduce } = this.options;
    try {
      return reduce ? reduce(value, event) : value;
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
      return value;
    }
  };

  #keep(): void {
    const { keepMs = this.options.onEvent ? 0 : KEEP_MS } = this.options;
    const nowMs = performance.now();
    kept.delete(this.key);
    if (this.snapshot.state.cursor) kept.set(this.key, { ...this.snapshot, untilMs: nowMs + keepMs });
    for (const [key, { untilMs }] of kept) if (kept.size > MAX_KEPT || untilMs <= nowMs) kept.delete(key);
  }

  /** Opens or closes the stream, as its subscribers and options now want it. */
  readonly openOrClose = (): void => {
    const isWatched = this.jobId && this.options.enabled !== false;
    if (isWatched && this.subscribers.size > 0) this.#stream ??= this.#open();
    else if (this.#stream) {
      this.#stream.close();
      this.publish();
      this.#stream = null;
      this.#keep();
    }
  };

  #open(): JobStream | null {
    const { cursor, status } = this.#next.state;
    if (status === "failed") return null;
    const { options, jobId } = this;
    const streamOptions = {
      ...options,
      // A store that had a stream before goes on where that one was.
      resumeAt: cursor,
      resumeAfter: this.#next.lastEvent?.id,
      // A render may bring a new token function; the newest one is called.
      sameToken: options.token,
      token: options.token && (() => newest(this.options.token)),
    };
    const stream = open(jobId, streamOptions, (error) => {
      // Other options make another store.
      this.#next = failed(this.#next, error);
      this.options.onError?.(error, jobId);
    });
    this.#changed();
    let lastError: JobStreamError | null = null;
    stream?.on("state", ({ status, error, jobStatus }) => {
      this.#changed();
      if (error && error !== lastError) this.options.onError?.(error, jobId);
      lastError = error;
      if (status === "complete") this.options.onComplete?.(jobStatus, jobId);
    });
    stream?.on("event", (event) => {
      this.#next = { ...this.#next, reduced: this.#reduce(this.#next.reduced, event) };
      this.#newEvents.push(event);
      this.#changed();
      this.options.onEvent?.(event);
    });
    stream?.on("reset", (reset) => {
      this.#newEvents = [];
      this.#next = this.begin(this.#next.resets + 1);
      this.#changed();
      this.options.onReset?.(reset);
    });
    return stream;
  }

  #changed(): void {
    if (changed.size === 0) setTimeout(publish, publishedMs + INTERVAL_MS - performance.now());
    changed.add(this);
  }

  /** Makes a new snapshot and lets React render it. */
  publish(): void {
    version += 1;
    const next = append(this.#next, this.#newEvents, this.options.maxEvents);
    this.snapshot = this.#next = withParts({ ...next, state: this.#stream?.state ?? next.state });
    this.#newEvents = [];
    for (const onChange of this.subscribers) onChange();
  }
}

/** Watches a job from mounting to unmounting. With `null` it watches nothing. */
export function useJobStream<Events extends object = AnyEvents, Reduced = undefined>(
  jobId: string | null | undefined,
  options: UseJobStreamOptions<Events, Reduced> & { initial: Reduced },
): UseJobStream<Events, Reduced>;
export function useJobStream<Events extends object = AnyEvents, Reduced = undefined>(
  jobId: string | null | undefined,
  options?: UseJobStreamOptions<Events, Reduced>,
): UseJobStream<Events, Reduced | undefined>;
export function useJobStream(jobId: string | null | undefined, options: Options = {}): Snapshot {
  const id = jobId ?? "";
  return useJobStreams([id], options).get(id) as Snapshot;
}

/**
 * Watches several jobs from mounting to unmounting, and returns what `useJobStream` would of each, by the job. What has not
 * changed is the same object as before. The list may change: jobs that stay in it go on.
 */
export function useJobStreams<Events extends object = AnyEvents, Reduced = undefined>(
  jobIds: readonly string[],
  options: UseJobStreamOptions<Events, Reduced> & { initial: Reduced },
): ReadonlyMap<string, UseJobStream<Events, Reduced>>;
export function useJobStreams<Events extends object = AnyEvents, Reduced = undefined>(
  jobIds: readonly string[],
  options?: UseJobStreamOptions<Events, Reduced>,
): ReadonlyMap<string, UseJobStream<Events, Reduced | undefined>>;
export function useJobStreams(jobIds: readonly string[], options: Options = {}): ReadonlyMap<string, Snapshot> {
  const { maxEvents, enabled, keepMs, initial, token, signal, ...rest } = options;
  const stores = useRef<Store[]>([]);
  // Functions and limits may be new with every render. Any other change means another stream.
  const keys = jobIds.map((jobId) => JSON.stringify([jobId, rest]));
  const { list, subscribe } = useMemo(() => {
    const list = keys.map(
      (key, index) => stores.current.find((store) => store.key === key) ?? new Store(jobIds[index]!, key, options),
    );
    stores.current = list;
    const subscribe = (onChange: () => void) => {
      for (const store of list) store.subscribers.add(onChange);
      return () => {
        for (const store of list) {
          store.subscribers.delete(onChange);
          // StrictMode subscribes again at once, as hooks do whose list has changed. Only what comes of it counts.
          queueMicrotask(store.openOrClose);
        }
      };
    };
    return { list, subscribe };
  }, [keys.join()]);
  // The server shows nothing, and so does a page at first that takes its markup over, whatever it has kept.
  const shown = useSyncExternalStore(
    subscribe,
    () => version,
    () => -1,
  );
  // By now they are subscribed to.
  useEffect(() => {
    for (const store of list) {
      store.options = options;
      store.openOrClose();
    }
  });
  // A smaller maxEvents takes effect at once, before the next snapshot.
  return useMemo(
    () =>
      new Map(list.map((store) => [store.jobId, append(shown < 0 ? store.begin() : store.snapshot, [], maxEvents)])),
    [list, shown, maxEvents],
  );
}
