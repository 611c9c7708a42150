/// <reference lib="esnext.disposable" preserve="true" />
// The shell around the state (state.ts). It runs the task that the state asks for, has the one timer, keeps the cursor
// and the ids of delivered events, and calls the listeners.

import { type ConnectionRequest, readStream, type StreamHandlers } from "./connection.js";
import { type Failure, failureFromSilence, offline } from "./error.js";
import type { AnyEvents, EventOf, JobEvent, Reset, UniquePart } from "./event.js";
import { type InnerStream, type Join, type Place, type Shared, streams } from "./inner.js";
import type { Backlog } from "./loop.js";
import { type JobStreamOptions, type JobUrls, jobUrls, rulesFrom } from "./options.js";
import { kept } from "./persist.js";
import type { PollResult } from "./poll.js";
import { type Requests, requests } from "./request.js";
import { type Action, initialState, isOver, reduce, type State, type View } from "./state.js";
import { aheadMs, now, onWake } from "./wake.js";

/** The state of a stream and the place that it has reached. */
export type JobStreamState = View & {
  /** The place after the last delivered event, from which the stream would go on. */
  readonly cursor: string | null;
  /** The time of the next try, as `Date.now()` counts; `null` unless `retrying`. */
  readonly retryAt: number | null;
} & (
    | { readonly status: "retrying"; readonly retryAt: number }
    | { readonly status: Exclude<View["status"], "retrying">; readonly retryAt: null }
  );

type Listener<T> = (value: T) => void;

/** The number of delivered ids that are kept to recognise repeats. */
const MAX_SEEN_IDS = 20_000;
/** The names that `on` gives the stream's own notifications. */
type OwnName = "event" | "state" | "reset";
/** Precedes the types of events among the names of listeners, so that no type is taken for a name of the stream's own. */
const TYPE = "type:";
const OWN_NAME = /^(event|state|reset)$/;
/** The events that are kept for a loop that begins later. */
const MAX_BUFFERED = 10_000;
const MIN_TIMER_MS = 9;
/** The longest timer, so that sleep is noticed soon after it. */
const MAX_TIMER_MS = 10_000;
/** A shorter sleep ends no connection. */
const LEAST_SLEEP_MS = 20_000;
/**
 * Watches one job, or a list of jobs, from construction on. Delivers each event once, and those of a job in their order,
 * until the jobs end or `close()`.
 *
 * `Events` names the types of the job's events and their payloads: `new JobStream<{ "step.output": { line: string } }>`.
 * It is a promise of the writer's, and is not checked.
 */
export class JobStream<Events extends object = AnyEvents> {
  /** The job; of a list the jobs, with commas between them. */
  readonly jobId: string;
  /** The state of each job of a list. Empty for one job. */
  readonly jobs: ReadonlyMap<string, JobStreamState> = new Map();
  /** @internal */
  readonly options: JobStreamOptions;
  /** @internal */
  readonly urls: JobUrls;
  /** @internal */
  readonly handlers: StreamHandlers;
  /** @internal */
  readonly seenIds = new Set<string>();
  /** @internal */
  readonly members: JobStream[] | null;
  /** @internal */
  shared: Shared | null = null;
  readonly #listeners = new Map<string, Set<Listener<never>>>();
  #state: State;
  #cursor: string | null;
  /** The id of the newest event. Other tabs compare it with theirs. */
  #lastId: string | null = null;
  #uniquePart: UniquePart = "id";
  #retryAt: number | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Aborts the connection of the current task. */
  #connection = new AbortController();
  readonly #requests: Requests;
  /** Events since construction, for the first loop. */
  #backlog: Backlog = [];
  #aheadMs = aheadMs();
  #stopWaking: (() => void) | null = null;

  /** Throws a `JobStreamError` with the code `client.address` if the options make no address. */
  constructor(jobs: string | readonly string[], options: JobStreamOptions = {}) {
    const { from = "start", persist, resumeAt, resumeAfter, carry } = options;
    this.jobId = `${jobs}`;
    this.options = options;
    // A list has no address of its own: this one only names it. Each of its jobs has one, or fails alone.
    this.urls = jobUrls(typeof jobs === "string" ? jobs : JSON.stringify(jobs), options);
    this.#state = initialState(rulesFrom(options));
    this.#requests = requests(options, (isAsked) => this.#dispatch({ type: "token", isAsked }));
    const given = from === "start" || from === "now" ? null : from;
    const reached = resumeAt ?? ((persist === "session" && kept(this.#key)) || null);
    this.#cursor = reached ?? given;
    // The event after which the stream goes on, where it is known.
    const lastId = reached ? resumeAfter : given;
    if (lastId) this.#remember(lastId);
    const handlers = this.#ownHandlers();
    this.handlers = carry?.wrap(handlers) ?? handlers;
    this.members = typeof jobs === "string" ? null : [];
    if (this.members) for (const id of jobs) (this.jobs as Map<string, JobStreamState>).set(id, this.state);
    this.#start();
  }

  get state(): JobStreamState {
    return { ...this.#state.view, cursor: this.#cursor, retryAt: this.#retryAt } as JobStreamState;
  }

  /** Listens for `event`, `state`, `reset`, or events of one type such as `step.output`. Returns how to stop. */
  on(name: "event", listener: Listener<EventOf<Events>>): () => void;
  on(name: "state", listener: Listener<JobStreamState>): () => void;
  on(name: "reset", listener: Listener<Reset>): () => void;
  on<Type extends Exclude<keyof Events & string, OwnName>>(
    type: Type,
    listener: Listener<JobEvent<Type, Events[Type]>>,
  ): () => void;
  on(name: string, listener: Listener<never>): () => void {
    return this.#listen(OWN_NAME.test(name) ? name : TYPE + name, listener);
  }

  /** Listens for events of one type, whatever its name: also for those of the types `event`, `state` and `reset`. */
  onType<Type extends keyof Events & string>(type: Type, listener: Listener<JobEvent<Type, Events[Type]>>): () => void {
    return this.#listen(TYPE + type, listener);
  }

  #listen(name: string, listener: Listener<never>): () => void {
    let listeners = this.#listeners.get(name);
    if (!listeners) this.#listeners.set(name, (listeners = new Set()));
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  /** Closes the stream and leaves no timer, listener or connection behind. One that has ended keeps its state. */
  close(): void {
    this.#dispatch({ type: "close" });
    this.#release();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.close();
  }

  /** Connects anew at once, also after `failed` or `close()`, and goes on where the stream was. */
  reconnect(): void {
    if (this.shared) this.shared.reconnect();
    else this.#start();
  }

  /**
   * Yields each event until the job ends or `close()`, and throws a `JobStreamError` when the stream fails. Leaving the
   * loop closes the stream. The first loop begins with the events since construction, `maxBuffered` at most.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<EventOf<Events>, void, undefined> {
    try {
      const { loop } = await import("./loop.js");
      const listen = (name: OwnName, listener: Listener<never>) => this.#listen(name, listener);
      const backlog = this.#backlog as Backlog<EventOf<Events>>;
      this.#backlog = "begun";
      yield* loop(backlog, () => this.#state.view, listen);
    } finally {
      this.close();
    }
  }

  /** The name of this job's cursor in the session, and of its lock and channel among the tabs. */
  get #key(): string {
    return `jobcast:${this.urls.stream}`;
  }

  readonly #onAbort = (): void => this.close();

  #start(): void {
    const { signal } = this.options;
    if (signal?.aborted) return this.close();
    signal?.addEventListener("abort", this.#onAbort);
    streams.add(this as unknown as InnerStream);
    void this.#join();
  }

  /** Starts as one of those that share a connection, or with a connection of its own. */
  async #join(): Promise<void> {
    const { taskId } = this.#state;
    // Streams that begin in one turn are gathered.
    await null;
    const loaded = await this.#loadJoin()?.catch(() => null);
    // Meanwhile the stream may have been closed, or started by another call.
    if (this.shared || this.#state.taskId !== taskId) return;
    this.shared = loaded?.join(this as unknown as InnerStream) ?? null;
    if (!this.shared) this.#dispatch({ type: "start" });
  }

  /** Loads the way in which this stream shares, if it does. */
  #loadJoin(): Promise<{ join: Join }> | null {
    const { share } = this.options;
    if (!this.members) {
      if (share) return import("./share.js");
      if (share === false || streams.size < 2) return null;
    }
    return import("./together.js");
  }

  /** @internal */
  now(): Place {
    return { state: this.#state, cursor: this.#cursor, lastId: this.#lastId, uniquePart: this.#uniquePart };
  }

  // ---- the state, and what follows from it

  #dispatch(action: Action): void {
    const before = this.#state;
    const after = reduce(before, action, now());
    this.#state = after;
    const { debug } = this.options;
    if (debug) (debug === true ? console.debug : debug)("jobcast", this.jobId, action.type, after.view);
    if (after.taskId !== before.taskId) {
      this.#connection.abort();
      this.#connection = new AbortController();
      if (after.task !== "none") void this.#runTask(after, this.#connection.signal);
    }
    if (after.timerAtMs !== before.timerAtMs) this.#setTimer();
    // The server is back: streams of this page that wait for it try at once.
    if (before.failures > 0 && after.failures === 0 && after.view.retryInMs === null && after.hasAnswered)
      for (const stream of [...streams] as unknown as JobStream[])
        if (stream.#retryAt && stream.urls.origin === this.urls.origin) stream.#onWake(false);
    // Object identity means "changed": the reducer keeps the `view` object as long as nothing in it changes.
    if (after.view === before.view) return;
    this.#onViewChanged(after.view);
  }

  #onViewChanged(view: View): void {
    const { retryInMs } = view;
    this.#retryAt = retryInMs === null ? null : Date.now() + retryInMs;
    this.shared?.broadcastView();
    // A failed stream keeps its lock: the next tab would only fail, too.
    if (view.status === "failed") this.#stopListening();
    else if (isOver(view)) this.#release();
    else
      this.#stopWaking ??= onWake(
        (isCut) => this.#onWake(isCut),
        () => this.#onOffline(),
      );
    this.#emit("state", this.state);
  }

  #setTimer(): void {
    const { timerAtMs } = this.#state;
    clearTimeout(this.#timer);
    if (timerAtMs === Infinity) return;
    // A timer may fire early. The least wait keeps it from firing again and again until its time.
    const waitMs = Math.min(Math.max(timerAtMs - now(), MIN_TIMER_MS), MAX_TIMER_MS);
    this.#timer = setTimeout(() => this.#onTimer(), waitMs);
  }

  #onTimer(): void {
    const sleptMs = -this.#aheadMs + (this.#aheadMs = aheadMs());
    if (sleptMs > LEAST_SLEEP_MS) this.#dispatch({ type: "wake", isCut: true, sleptMs });
    this.#dispatch({ type: "timer", random: Math.random() });
    this.#setTimer();
  }

  #onWake(isCut: boolean): void {
    // The timer may have slept with the page.
    this.#onTimer();
    this.#dispatch({ type: "wake", isCut });
  }

  #onOffline(): void {
    const state = this.#state;
    if (!state.isFollower && state.view.status !== "retrying") this.#onLost(offline());
  }

  #stopListening(): void {
    this.#stopWaking?.();
    this.#stopWaking = null;
  }

  #release(): void {
    this.#stopListening();
    this.options.signal?.removeEventListener("abort", this.#onAbort);
    streams.delete(this as unknown as InnerStream);
    this.shared = this.shared?.close() ?? null;
  }

  // ---- connections

  async #runTask(state: State, signal: AbortSignal): Promise<void> {
    try {
      switch (state.task) {
        case "stream":
          return await this.#runStream(state, signal);
        case "poll":
        case "catchUp":
          return await this.#runPoll(state, signal);
        case "takeOver":
          return this.shared?.takeOver?.();
      }
    } catch (error) {
      const failure = await failureFromSilence(error, this.urls.origin, this.#state.hasAnswered);
      if (!signal.aborted) this.#onLost(failure);
    }
  }

  async #runStream(state: State, signal: AbortSignal): Promise<void> {
    const end = await readStream(this.#request("stream", "lastEventId", {}, signal), this.handlers);
    if (signal.aborted) return;
    if (end !== "noContent") return this.#onLost(end);
    // The job has ended and nothing is new. Only the JSON address says how it ended, which completes the stream.
    if (state.rules.canPoll) await this.#poll(state, signal).catch(() => {});
    if (!signal.aborted) this.#dispatch({ type: "complete", jobStatus: null });
  }

  async #runPoll(state: State, signal: AbortSignal): Promise<void> {
    const result = await this.#poll(state, signal);
    if (signal.aborted) return;
    if ("error" in result) return this.#onLost(result);
    this.#dispatch({ type: "polled", ...result });
    if (result.isEmpty) this.shared?.broadcastAlive?.();
    if (state.task === "catchUp") this.shared?.applyHeldBack?.();
  }

  async #poll(state: State, signal: AbortSignal): Promise<Failure | PollResult> {
    const { poll } = await import("./poll.js");
    return poll((query) => this.#request("events", "after", query, signal), state, this.handlers);
  }

  /** Makes a request from where the stream stands. The cursor is no header: that would cost preflights. */
  #request(
    kind: "stream" | "events",
    cursorName: string,
    query: Record<string, string>,
    signal: AbortSignal,
  ): ConnectionRequest {
    const { from, last, types, carry } = this.options;
    const address = (carry?.urls() ?? this.urls)[kind];
    if (types) query.types = `${types}`;
    if (last! >= 0) query.last = `${last}`;
    if (this.#cursor) query[cursorName] = this.#cursor;
    else if (from === "now") query.from = from;
    Object.assign(query, carry?.query());
    // No cache has an answer for this address, whatever it makes of `no-store`.
    query._ = `${Math.random()}`;
    return {
      fetch: (url, accept) => this.#requests.send(url, accept, signal),
      url: `${address}${address.includes("?") ? "&" : "?"}${new URLSearchParams(query)}`,
      jobId: this.jobId,
      signal,
    };
  }

  #onLost(failure: Failure): void {
    const isTokenOver = failure.isTokenOver && this.#requests.forgetToken();
    this.#dispatch({ type: "lost", random: Math.random(), ...failure, isTokenOver });
  }

  #ownHandlers(): StreamHandlers {
    return {
      onAnswer: (part) => {
        this.#uniquePart = part === "cursor" ? part : "id";
      },
      onCursor: (cursor) => this.#setCursor(cursor),
      onReset: (reset) => {
        this.seenIds.clear();
        this.#lastId = null;
        this.#cursor = reset.cursor;
        this.shared?.broadcastReset?.(reset);
        this.#dispatch({ type: "caughtUp", isCaughtUp: false });
        this.#emit("reset", { ...reset, jobId: reset.jobId ?? this.jobId });
      },
      onEvents: (events) => {
        this.#dispatch({
          type: "bytes",
          hasEvents: events.some((event) => !this.seenIds.has(event[this.#uniquePart])),
        });
        return this.deliver(events, false);
      },
      onBytes: (hasHeartbeat) => {
        this.#dispatch({ type: "bytes", hasEvents: false, hasHeartbeat });
        this.shared?.broadcastAlive?.();
      },
      dispatch: (action) => this.#dispatch(action),
    };
  }

  // ---- events

  /**
   * Delivers the events that were not delivered yet, and returns their number.
   *
   * `areFromLeader`: a repeat among them may lie before events that this tab has read itself, so it must not move the
   * cursor back.
   *
   * @internal
   */
  deliver(events: readonly JobEvent[], areFromLeader = true): number {
    const previousId = this.#lastId;
    const fresh: JobEvent[] = [];
    for (const event of events) {
      const key = event[this.#uniquePart];
      const isRepeat = this.seenIds.has(key);
      if (event.cursor && !(isRepeat && areFromLeader)) this.#cursor = event.cursor;
      if (isRepeat) continue;
      if (key) this.#remember(key);
      fresh.push(event);
      this.emit(event);
      // A listener has closed the stream. The rest is read again if it goes on from here.
      if (isOver(this.#state.view)) break;
    }
    if (this.#cursor) this.#setCursor(this.#cursor);
    if (fresh.length > 0) this.shared?.broadcastEvents(previousId, fresh);
    return fresh.length;
  }

  /** @internal */
  emit(event: JobEvent): void {
    const { maxBuffered = MAX_BUFFERED } = this.options;
    if (typeof this.#backlog === "object" && this.#backlog.push(event) > maxBuffered) this.#backlog = "overflown";
    this.#emit("event", event);
    this.#emit(TYPE + event.type, event);
  }

  #remember(id: string): void {
    this.#lastId = id;
    this.seenIds.add(id);
    if (this.seenIds.size > MAX_SEEN_IDS) for (const oldest of this.seenIds) return void this.seenIds.delete(oldest);
  }

  #setCursor(cursor: string): void {
    this.#cursor = cursor || null;
    if (this.options.persist === "session") kept(this.#key, cursor);
  }

  /** Calls the listeners. An error that one throws is reported as uncaught, and does not stop the others. */
  #emit<T>(name: string, value: T): void {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        (listener as Listener<T>)(value);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
