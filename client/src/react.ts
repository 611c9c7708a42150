// The hook: a store outside of React for each job, which opens its stream with the first subscriber and closes it with
// the last.

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
  /** The newest so many are kept. Default 1000. */
  maxEvents?: number;
  /** `false` holds no connection; what was shown stays. Default true. */
  enabled?: boolean;
}

interface Shown {
  readonly events: readonly JobEvent[];
  readonly lastEvent: JobEvent | null;
  readonly state: JobStreamState;
}

export interface UseJobStream extends Shown {
  readonly error: JobStreamError | null;
  readonly jobStatus: JobStatus | null;
  readonly reconnect: () => void;
}

/** A burst is shown at most so often: 1,000 events a second must not freeze a page. */
const RENDER_MS = 64;
const CONNECTING: JobStreamState = {
  status: "connecting",
  attempt: 0,
  retryInMs: null,
  error: null,
  jobStatus: null,
  cursor: null,
};
const IDLE: JobStreamState = { ...CONNECTING, status: "closed", error: null };
const never = () => () => {};
const newest = (events: readonly JobEvent[], count = 1000) =>
  events.length > count ? events.slice(events.length - count) : events;

class Store {
  options: UseJobStreamOptions = {};
  shown: Shown = { events: [], lastEvent: null, state: CONNECTING };
  #stream: JobStream | null = null;
  #state = CONNECTING;
  #news: JobEvent[] = [];
  #timer: ReturnType<typeof setTimeout> | undefined;
  #drawnMs = 0;
  readonly #redraws = new Set<() => void>();

  constructor(readonly jobId: string) {}

  readonly snapshot = (): Shown => this.shown;

  readonly reconnect = (): void => this.#stream?.reconnect();

  readonly subscribe = (redraw: () => void): (() => void) => {
    this.#redraws.add(redraw);
    // StrictMode subscribes twice and leaves once in between: only what is still wanted afterwards connects
    queueMicrotask(() => this.#open());
    return () => {
      this.#redraws.delete(redraw);
      if (this.#redraws.size > 0) return;
      clearTimeout(this.#timer);
      this.#timer = undefined;
      this.#stream?.close();
      this.#stream = null;
    };
  };

  #open(): void {
    if (this.#stream || this.#redraws.size === 0) return;
    const { options } = this;
    const { token } = options;
    const stream = new JobStream(this.jobId, {
      ...options,
      // whoever comes back goes on where it was
      ...(this.#state.cursor && { from: this.#state.cursor }),
      // the newest one that was rendered
      ...(token !== undefined && {
        token: () => (typeof this.options.token === "function" ? this.options.token() : (this.options.token ?? "")),
      }),
    });
    this.#stream = stream;
    const take = () => {
      if (this.#stream !== stream) return;
      this.#state = stream.state;
      this.#timer ??= setTimeout(() => this.#draw(), Math.max(0, this.#drawnMs + RENDER_MS - Date.now()));
    };
    stream.on("state", take);
    stream.on("event", (event) => {
      this.#news.push(event);
      take();
    });
    stream.on("reset", () => {
      this.#news = [];
      this.shown = { ...this.shown, events: [], lastEvent: null };
      take();
    });
    take();
  }

  #draw(): void {
    this.#timer = undefined;
    this.#drawnMs = Date.now();
    const { shown } = this;
    const news = this.#news;
    this.#news = [];
    this.shown = {
      events: news.length > 0 ? newest([...shown.events, ...news], this.options.maxEvents) : shown.events,
      lastEvent: news.at(-1) ?? shown.lastEvent,
      state: this.#state,
    };
    for (const redraw of this.#redraws) redraw();
  }
}

/** Watches a job from mounting to unmounting; `null` watches nothing. */
export function useJobStream(jobId: string | null | undefined, options: UseJobStreamOptions = {}): UseJobStream {
  const { maxEvents, enabled = true, token, signal, ...rest } = options;
  // functions and limits may be new with every render; whatever else changes is another stream
  const key = JSON.stringify(rest);
  const store = useMemo(() => new Store(jobId ?? ""), [jobId, key]);
  useEffect(() => {
    store.options = options;
  });
  const isOn = enabled && !!jobId;
  const shown = useSyncExternalStore(isOn ? store.subscribe : never, store.snapshot, store.snapshot);
  const state = isOn ? shown.state : IDLE;
  // fewer are wanted than were drawn
  const events = useMemo(() => newest(shown.events, maxEvents), [shown.events, maxEvents]);
  return { ...shown, events, state, error: state.error, jobStatus: state.jobStatus, reconnect: store.reconnect };
}
