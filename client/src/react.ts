"use client";

// The React hooks. Each job has a store outside of React, which opens its stream with the first subscriber and closes it
// with the last. The streams of a page share one connection.

import { useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import {
  type AnyEvents,
  type EventOf,
  type JobStatus,
  JobStream,
  JobStreamError,
  type JobStreamOptions,
  type JobStreamState,
  type Reset,
} from "./index.js";

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
export { JobStreamError } from "./index.js";

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

/** The least time between two renders, so that 1,000 events a second do not freeze a page. */
const RENDER_INTERVAL_MS = 64;
const KEEP_MS = 300_000;
/** The jobs whose events are kept after unmounting, at most. */
const MAX_KEPT = 200;
const IDLE = { attempt: 0, retryInMs: null, retryAt: null, error: null };
const CONNECTING: JobStreamState = { ...IDLE, status: "connecting", jobStatus: null, isCaughtUp: false, cursor: null };
const CLOSED: JobStreamState = { ...CONNECTING, ...IDLE, status: "closed" };
const NOTHING = { events: [], dropped: 0, lastEvent: null, resets: 0 };

/** Snapshots of unmounted jobs by their keys, the oldest first, and the time until which each is kept. */
const kept = new Map<string, Snapshot & { untilMs: number }>();

/** The stores with something new. All of them render at once. */
const changed = new Set<Store>();
let publishedMs = 0;
/** The number of times that something new was rendered. */
let version = 0;
const getVersion = () => version;

function publish(): void {
  publishedMs = performance.now();
  const stores = [...changed];
  changed.clear();
  for (const store of stores) store.publish();
}

/** Lets go of `snapshot`'s events but for the newest `count`. */
function trim(snapshot: Snapshot, count = 1000): Snapshot {
  const extra = snapshot.events.length - count;
  return extra > 0
    ? { ...snapshot, events: snapshot.events.slice(extra), dropped: snapshot.dropped + extra }
    : snapshot;
}

/** Adds the state to what comes from events, as a whole and by its parts. */
const withState = (data: Omit<Snapshot, "state" | keyof JobStreamState>, state: JobStreamState): Snapshot => ({
  ...data,
  ...state,
  state,
});

const isWatched = ({ jobId, options }: Store): boolean => jobId !== "" && options.enabled !== false;

/** The store of one job: a stream and the snapshot of it that is rendered. */
class Store {
  /** The options of the newest render. */
  options: Options;
  snapshot: Snapshot;
  /** What is rendered next. Its events lack the new ones, which are added once for each render. */
  #next: Snapshot;
  #newEvents: EventOf[] = [];
  #stream: JobStream | null = null;
  readonly #subscribers = new Set<() => void>();

  constructor(
    readonly jobId: string,
    readonly key: string,
    options: Options,
  ) {
    this.options = options;
    this.snapshot = this.#next = this.#restore() ?? this.#begin(0);
  }

  readonly #reconnect = (): void => this.#stream?.reconnect();

  /** The state while there is no stream. */
  get #idle(): JobStreamState {
    return isWatched(this) ? CONNECTING : CLOSED;
  }

  /** Begins with nothing, after so many resets. */
  #begin(resets: number): Snapshot {
    return withState({ ...NOTHING, reduced: this.options.initial, resets, reconnect: this.#reconnect }, this.#idle);
  }

  subscribe(onChange: () => void): () => void {
    this.#subscribers.add(onChange);
    // StrictMode subscribes, unsubscribes and subscribes again, as hooks do whose list has changed. Only what comes of it
    // counts.
    queueMicrotask(this.openOrClose);
    return () => {
      this.#subscribers.delete(onChange);
      queueMicrotask(this.openOrClose);
    };
  }

  /** Finds what an unmounted component has left. A value can be made of it again only if no event was dropped. */
  #restore(): Snapshot | null {
    const { reduce, initial } = this.options;
    const snapshot = kept.get(this.key);
    if (!snapshot || snapshot.untilMs < performance.now() || (reduce && snapshot.dropped > 0)) return null;
    const reduced = reduce ? snapshot.events.reduce(reduce, initial) : initial;
    const { cursor, jobStatus } = snapshot.state;
    return withState({ ...snapshot, reduced, reconnect: this.#reconnect }, { ...this.#idle, cursor, jobStatus });
  }

  #keep(): void {
    const { keepMs = this.options.onEvent ? 0 : KEEP_MS } = this.options;
    const nowMs = performance.now();
    kept.delete(this.key);
    if (keepMs > 0 && this.snapshot.state.cursor) kept.set(this.key, { ...this.snapshot, untilMs: nowMs + keepMs });
    for (const [key, { untilMs }] of kept) if (kept.size > MAX_KEPT || untilMs < nowMs) kept.delete(key);
  }

  /** Opens or closes the stream, as its subscribers and options now want it. */
  readonly openOrClose = (): void => {
    if (this.#subscribers.size > 0 && isWatched(this)) this.#stream ??= this.#open();
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
    const { token } = options;
    let stream: JobStream;
    try {
      stream = new JobStream(jobId, {
        ...options,
        maxBuffered: 0,
        // A store that had a stream before goes on where that one was.
        ...(cursor && { resumeAt: cursor, resumeAfter: this.#next.lastEvent?.id }),
        // A render may bring a new token function; the newest one is called.
        ...(token !== undefined && {
          sameToken: token,
          token: () => (typeof this.options.token === "function" ? this.options.token() : (this.options.token ?? "")),
        }),
      });
    } catch (error) {
      // The options make no address: other options make another store.
      if (!(error instanceof JobStreamError)) throw error;
      this.#next = withState(this.#next, { ...CONNECTING, retryInMs: null, status: "failed", error });
      this.options.onError?.(error, jobId);
      this.#changed();
      return null;
    }
    let lastError: JobStreamError | null = null;
    stream.on("state", ({ status, error, jobStatus }) => {
      this.#changed();
      if (error && error !== lastError) this.options.onError?.(error, jobId);
      lastError = error;
      if (status === "complete") this.options.onComplete?.(jobStatus, jobId);
    });
    stream.on("event", (event) => {
      const { reduce, onEvent } = this.options;
      if (reduce) this.#next = { ...this.#next, reduced: reduce(this.#next.reduced, event) };
      this.#newEvents.push(event);
      this.#changed();
      onEvent?.(event);
    });
    stream.on("reset", (reset) => {
      this.#newEvents = [];
      this.#next = this.#begin(this.#next.resets + 1);
      this.#changed();
      this.options.onReset?.(reset);
    });
    this.#changed();
    return stream;
  }

  #changed(): void {
    if (changed.size === 0) setTimeout(publish, Math.max(0, publishedMs + RENDER_INTERVAL_MS - performance.now()));
    changed.add(this);
  }

  /** Makes a new snapshot and lets React render it. */
  publish(): void {
    version += 1;
    this.#take();
    for (const onChange of this.#subscribers) onChange();
  }

  #take(): void {
    const newEvents = this.#newEvents;
    this.#newEvents = [];
    let { events, lastEvent, state } = this.#next;
    if (newEvents.length > 0) events = [...events, ...newEvents];
    lastEvent = newEvents.at(-1) ?? lastEvent;
    state = this.#stream?.state ?? state;
    this.snapshot = this.#next = withState(trim({ ...this.#next, events, lastEvent }, this.options.maxEvents), state);
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
  return useJobStreams([jobId ?? ""], options).get(jobId ?? "") as Snapshot;
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
    const storeOf = (key: string, index: number) =>
      stores.current.find((store) => store.key === key) ?? new Store(jobIds[index]!, key, options);
    const list = (stores.current = keys.map(storeOf));
    const subscribe = (onChange: () => void) => {
      const stops = list.map((store) => store.subscribe(onChange));
      return () => {
        for (const stop of stops) stop();
      };
    };
    return { list, subscribe };
  }, [keys.join()]);
  useEffect(() => {
    for (const store of list) {
      store.options = options;
      store.openOrClose();
    }
  });
  const version = useSyncExternalStore(subscribe, getVersion, getVersion);
  // A smaller maxEvents takes effect at once, before the next snapshot.
  return useMemo(
    () => new Map(list.map(({ jobId, snapshot }) => [jobId, trim(snapshot, maxEvents)])),
    [list, version, maxEvents],
  );
}
