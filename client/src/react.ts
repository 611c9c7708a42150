// The React hook. Each job has a store outside of React, which opens its stream with the first subscriber and closes it
// with the last.

import { useEffect, useMemo, useSyncExternalStore } from "react";
import {
  type JobEvent,
  type JobStatus,
  JobStream,
  type JobStreamError,
  type JobStreamOptions,
  type JobStreamState,
} from "./index.js";

export type { JobEvent, JobStatus, JobStreamState } from "./index.js";

export interface UseJobStreamOptions extends JobStreamOptions {
  /** The number of newest events that are kept. Default 1000. */
  maxEvents?: number;
  /** `false` holds no connection, and keeps what was shown. Default true. */
  enabled?: boolean;
}

interface Snapshot {
  readonly events: readonly JobEvent[];
  readonly lastEvent: JobEvent | null;
  readonly state: JobStreamState;
}

export interface UseJobStream extends Snapshot {
  readonly error: JobStreamError | null;
  readonly jobStatus: JobStatus | null;
  readonly reconnect: () => void;
}

/** The least time between two renders, so that 1,000 events a second do not freeze a page. */
const RENDER_INTERVAL_MS = 64;
const CONNECTING: JobStreamState = {
  status: "connecting",
  attempt: 0,
  retryInMs: null,
  error: null,
  jobStatus: null,
  cursor: null,
};
const DISABLED: JobStreamState = { ...CONNECTING, status: "closed", error: null };
const subscribeToNothing = () => () => {};
const newest = (events: readonly JobEvent[], count = 1000) =>
  events.length > count ? events.slice(events.length - count) : events;

/** The store of one job: a stream and the snapshot of it that is rendered. */
class Store {
  /** The options of the newest render. */
  options: UseJobStreamOptions = {};
  #snapshot: Snapshot = { events: [], lastEvent: null, state: CONNECTING };
  #stream: JobStream | null = null;
  /** The state and the events that are not in the snapshot yet. */
  #state = CONNECTING;
  #newEvents: JobEvent[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #publishedMs = 0;
  readonly #subscribers = new Set<() => void>();

  constructor(readonly jobId: string) {}

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
      this.#stream?.close();
      this.#stream = null;
    };
  };

  #open(): void {
    if (this.#stream || this.#subscribers.size === 0) return;
    const { options } = this;
    const { token } = options;
    const stream = new JobStream(this.jobId, {
      ...options,
      // A store that had a stream before goes on where that one was.
      ...(this.#state.cursor && { from: this.#state.cursor }),
      // A render may bring a new token function; the newest one is called.
      ...(token !== undefined && {
        token: () => (typeof this.options.token === "function" ? this.options.token() : (this.options.token ?? "")),
      }),
    });
    this.#stream = stream;
    const schedule = () => {
      if (this.#stream !== stream) return;
      this.#state = stream.state;
      const waitMs = Math.max(0, this.#publishedMs + RENDER_INTERVAL_MS - Date.now());
      this.#timer ??= setTimeout(() => this.#publish(), waitMs);
    };
    stream.on("state", schedule);
    stream.on("event", (event) => {
      this.#newEvents.push(event);
      schedule();
    });
    stream.on("reset", () => {
      this.#newEvents = [];
      this.#snapshot = { ...this.#snapshot, events: [], lastEvent: null };
      schedule();
    });
    schedule();
  }

  /** Makes a new snapshot and lets React render it. */
  #publish(): void {
    this.#timer = undefined;
    this.#publishedMs = Date.now();
    const { events, lastEvent } = this.#snapshot;
    const newEvents = this.#newEvents;
    this.#newEvents = [];
    this.#snapshot = {
      events: newEvents.length > 0 ? newest([...events, ...newEvents], this.options.maxEvents) : events,
      lastEvent: newEvents.at(-1) ?? lastEvent,
      state: this.#state,
    };
    for (const onChange of this.#subscribers) onChange();
  }
}

/** Watches a job from mounting to unmounting. With `null` it watches nothing. */
export function useJobStream(jobId: string | null | undefined, options: UseJobStreamOptions = {}): UseJobStream {
  const { maxEvents, enabled = true, token, signal, ...rest } = options;
  // Functions and limits may be new with every render. Any other change means another stream.
  const key = JSON.stringify(rest);
  const store = useMemo(() => new Store(jobId ?? ""), [jobId, key]);
  useEffect(() => {
    store.options = options;
  });
  const isEnabled = enabled && !!jobId;
  const subscribe = isEnabled ? store.subscribe : subscribeToNothing;
  const snapshot = useSyncExternalStore(subscribe, store.getSnapshot, store.getSnapshot);
  const state = isEnabled ? snapshot.state : DISABLED;
  // A smaller maxEvents takes effect at once, before the next snapshot.
  const events = useMemo(() => newest(snapshot.events, maxEvents), [snapshot.events, maxEvents]);
  return { ...snapshot, events, state, error: state.error, jobStatus: state.jobStatus, reconnect: store.reconnect };
}
