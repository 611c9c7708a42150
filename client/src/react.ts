"use client";

// The React hook. Each job has a store outside of React, which opens its stream with the first subscriber and closes it
// with the last.

import { useEffect, useMemo, useSyncExternalStore } from "react";
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
  onComplete?: ((jobStatus: JobStatus | null) => void) | undefined;
  /** Called with each new error; its `retryable` tells if the stream goes on by itself. */
  onError?: ((error: JobStreamError) => void) | undefined;
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

// Inside, events have any type; the caller's types are those of the hook alone.
type Options = UseJobStreamOptions<AnyEvents, unknown>;
type Snapshot = Data<AnyEvents, unknown>;

/** The least time between two renders, so that 1,000 events a second do not freeze a page. */
const RENDER_INTERVAL_MS = 64;
const KEEP_MS = 300_000;
/** The jobs whose events are kept after unmounting, at most. */
const MAX_KEPT = 20;
const CONNECTING = {
  status: "connecting",
  attempt: 0,
  retryInMs: null,
  retryAt: null,
  error: null,
  jobStatus: null,
  isCaughtUp: false,
  cursor: null,
} satisfies JobStreamState;
const NOTHING: Omit<Snapshot, "reduced"> = { events: [], dropped: 0, lastEvent: null, resets: 0, state: CONNECTING };
const subscribeToNothing = () => () => {};

/** Snapshots of unmounted jobs by their keys, the oldest first, and the time until which each is kept. */
const kept = new Map<string, { snapshot: Snapshot; untilMs: number }>();

/** Lets go of `snapshot`'s events but for the newest `count`. */
function trim(snapshot: Snapshot, count = 1000): Snapshot {
  const extra = snapshot.events.length - count;
  return extra > 0
    ? { ...snapshot, events: snapshot.events.slice(extra), dropped: snapshot.dropped + extra }
    : snapshot;
}

/** The store of one job: a stream and the snapshot of it that is rendered. */
class Store {
  /** The options of the newest render. */
  options: Options;
  #snapshot: Snapshot;
  /** What is rendered next. Its events lack the new ones, which are added once for each render. */
  #next: Snapshot;
  #newEvents: EventOf[] = [];
  #stream: JobStream | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #publishedMs = 0;
  readonly #subscribers = new Set<() => void>();

  constructor(
    readonly jobId: string,
    readonly key: string,
    options: Options,
  ) {
    this.options = options;
    this.#snapshot = this.#next = this.#restore() ?? { ...NOTHING, reduced: options.initial };
  }

  readonly getSnapshot = (): Snapshot => this.#snapshot;

  readonly reconnect = (): void => this.#stream?.reconnect();

  readonly subscribe = (onChange: () => void): (() => void) => {
    this.#subscribers.add(onChange);
    // StrictMode subscribes, unsubscribes and subscribes again. The stream is opened after that, once.
    queueMicrotask(() => this.#open());
    return () => {
      this.#subscribers.delete(onChange);
      if (this.#subscribers.size > 0) return;
      clearTimeout(this.#timer);
      this.#timer = undefined;
      this.#take();
      this.#stream?.close();
      this.#stream = null;
      this.#keep();
    };
  };

  /** Finds what an unmounted component has left. A value can be made of it again only if no event was dropped. */
  #restore(): Snapshot | null {
    const { reduce, initial } = this.options;
    const { snapshot, untilMs } = kept.get(this.key) ?? {};
    if (!snapshot || untilMs! < performance.now() || (reduce && snapshot.dropped > 0)) return null;
    const reduced = reduce ? snapshot.events.reduce(reduce, initial) : initial;
    return {
      ...snapshot,
      reduced,
      state: { ...CONNECTING, cursor: snapshot.state.cursor, jobStatus: snapshot.state.jobStatus },
    };
  }

  #keep(): void {
    const { keepMs = this.options.onEvent ? 0 : KEEP_MS } = this.options;
    const untilMs = performance.now() + keepMs;
    kept.delete(this.key);
    if (keepMs > 0 && this.#snapshot.state.cursor) kept.set(this.key, { snapshot: this.#snapshot, untilMs });
    for (const [key, { untilMs }] of kept) if (kept.size > MAX_KEPT || untilMs < performance.now()) kept.delete(key);
  }

  #open(): void {
    const { cursor, status } = this.#next.state;
    if (this.#stream || this.#subscribers.size === 0 || status === "failed") return;
    const { options } = this;
    const { token } = options;
    let stream: JobStream;
    try {
      stream = new JobStream(this.jobId, {
        ...options,
        maxBuffered: 0,
        // A store that had a stream before goes on where that one was.
        ...(cursor && { resumeAt: cursor }),
        // A render may bring a new token function; the newest one is called.
        ...(token !== undefined && {
          token: () => (typeof this.options.token === "function" ? this.options.token() : (this.options.token ?? "")),
        }),
      });
    } catch (error) {
      // The options make no address: other options make another store.
      if (!(error instanceof JobStreamError)) throw error;
      this.#next = { ...this.#next, state: { ...CONNECTING, status: "failed", error } };
      this.options.onError?.(error);
      return this.#publish();
    }
    this.#stream = stream;
    let lastError: JobStreamError | null = null;
    stream.on("state", (state) => {
      this.#schedule(stream);
      if (state.error && state.error !== lastError) this.options.onError?.(state.error);
      lastError = state.error;
      if (state.status === "complete") this.options.onComplete?.(state.jobStatus);
    });
    stream.on("event", (event) => {
      const { reduce, onEvent } = this.options;
      if (reduce) this.#next = { ...this.#next, reduced: reduce(this.#next.reduced, event) };
      this.#newEvents.push(event);
      this.#schedule(stream);
      onEvent?.(event);
    });
    stream.on("reset", (reset) => {
      this.#newEvents = [];
      this.#next = { ...NOTHING, reduced: this.options.initial, resets: this.#next.resets + 1 };
      this.#schedule(stream);
      this.options.onReset?.(reset);
    });
    this.#schedule(stream);
  }

  #schedule(stream: JobStream): void {
    if (this.#stream !== stream) return;
    const waitMs = Math.max(0, this.#publishedMs + RENDER_INTERVAL_MS - performance.now());
    this.#timer ??= setTimeout(() => this.#publish(), waitMs);
  }

  /** Makes a new snapshot and lets React render it. */
  #publish(): void {
    this.#timer = undefined;
    this.#publishedMs = performance.now();
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
    this.#snapshot = this.#next = trim({ ...this.#next, events, lastEvent, state }, this.options.maxEvents);
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
export function useJobStream(
  jobId: string | null | undefined,
  options: Options = {},
): UseJobStream<AnyEvents, unknown> {
  const { maxEvents, enabled = true, keepMs, initial, token, signal, ...rest } = options;
  // Functions and limits may be new with every render. Any other change means another stream.
  const key = JSON.stringify([jobId, rest]);
  const store = useMemo(() => new Store(jobId ?? "", key, options), [jobId, key]);
  useEffect(() => {
    store.options = options;
  });
  const isEnabled = enabled && !!jobId;
  const subscribe = isEnabled ? store.subscribe : subscribeToNothing;
  const snapshot = useSyncExternalStore(subscribe, store.getSnapshot, store.getSnapshot);
  // A smaller maxEvents takes effect at once, before the next snapshot.
  return useMemo(() => {
    const shown = trim(snapshot, maxEvents);
    const { jobStatus, cursor, isCaughtUp } = shown.state;
    const closed = { ...CONNECTING, status: "closed" as const, jobStatus, cursor, isCaughtUp };
    const state = isEnabled ? shown.state : closed;
    return {
      ...shown,
      state,
      error: state.error,
      jobStatus,
      isCaughtUp,
      retryAt: state.retryAt,
      reconnect: store.reconnect,
    };
  }, [snapshot, maxEvents, isEnabled, store]);
}
