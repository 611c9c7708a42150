/// <reference lib="esnext.disposable" preserve="true" />
// The shell around the state (state.ts). It runs the task that the state asks for, has the one timer, keeps the cursor
// and the ids of delivered events, and calls the listeners.

import {
  type ConnectionRequest,
  MAX_EVENTS_PER_POLL,
  type PollResult,
  poll,
  readStream,
  type StreamHandlers,
} from "./connection.js";
import { clientFailure, type Failure } from "./error.js";
import type { AnyEvents, EventOf, JobEvent, Reset, UniquePart } from "./event.js";
import { Backlog, loop } from "./loop.js";
import { type JobStreamOptions, jobUrls, rulesFrom } from "./options.js";
import { loadCursor, saveCursor } from "./persist.js";
import { failureFromThrown, Requests } from "./request.js";
import type { Share } from "./share.js";
import { type Action, initialState, isOver, reduce, type State, type View } from "./state.js";
import { now, onWake, SleepMeter } from "./wake.js";

/** The state of a stream and the place that it has reached. */
export type JobStreamState = View & {
  /** The place after the last delivered event, from which the stream would go on. */
  readonly cursor: string | null;
  /** The time of the next try, as `Date.now()` counts; `null` unless `retrying`. */
  readonly retryAt: number | null;
};

type Listener<T> = (value: T) => void;

/** The number of delivered ids that are kept to recognise repeats. */
const MAX_SEEN_IDS = 20_000;
/** The names that `on` gives the stream's own notifications. */
type OwnName = "event" | "state" | "reset";
/** Precedes the types of events among the names of listeners, so that no type is taken for a name of the stream's own. */
const TYPE = "type:";
const OWN_NAMES: readonly string[] = ["event", "state", "reset"] satisfies OwnName[];
/** The time for which a poll is held open. It is below the idle time-outs of proxies. */
const POLL_WAIT_S = 25;
const MIN_TIMER_MS = 9;
/** The longest timer, so that sleep is noticed soon after it. */
const MAX_TIMER_MS = 10_000;
/** The streams of this page that wait for their next try. */
const waitingStreams = new Set<{ wakeFor(origin: string): void }>();
let requestCount = 0;

/**
 * Watches one job from construction on. Delivers each event once and in order, until the job ends or `close()`.
 *
 * `Events` names the types of the job's events and their payloads: `new JobStream<{ "step.output": { line: string } }>`.
 * It is a promise of the writer's, and is not checked.
 */
export class JobStream<Events extends object = AnyEvents> {
  readonly jobId: string;
  readonly #options: JobStreamOptions;
  readonly #urls: { stream: string; events: string };
  readonly #listeners = new Map<string, Set<Listener<never>>>();
  readonly #seenIds = new Set<string>();
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
  readonly #backlog: Backlog;
  readonly #sleepMeter = new SleepMeter();
  #share: Share | null = null;
  #stopWaking: (() => void) | null = null;

  /** Throws a `JobStreamError` with the code `client.address` if the options make no address. */
  constructor(jobId: string, options: JobStreamOptions = {}) {
    const { from = "start", persist, resumeAt, maxBuffered = 10_000 } = options;
    this.jobId = jobId;
    this.#options = options;
    this.#urls = jobUrls(jobId, options);
    this.#state = initialState(rulesFrom(options));
    this.#requests = new Requests(options, (isAsked) => this.#dispatch({ type: "token", isAsked }));
    this.#backlog = new Backlog(maxBuffered);
    const given = from === "start" || from === "now" ? null : from;
    this.#cursor = resumeAt ?? ((persist === "session" && loadCursor(this.#key)) || given);
    this.#start();
  }

  get state(): JobStreamState {
    return { ...this.#state.view, cursor: this.#cursor, retryAt: this.#retryAt };
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
    return this.#listen(OWN_NAMES.includes(name) ? name : TYPE + name, listener);
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
    if (this.#share) this.#share.reconnect();
    else this.#start();
  }

  /**
   * Yields each event until the job ends or `close()`, and throws a `JobStreamError` when the stream fails. Leaving the
   * loop closes the stream. The first loop begins with the events since construction, `maxBuffered` at most.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<EventOf<Events>, void, undefined> {
    try {
      yield* loop(
        this.#backlog.take() as EventOf<Events>[],
        () => this.#state.view,
        (onEvent, onState) => {
          const unsubscribes = [this.on("event", onEvent), this.on("state", onState)];
          return () => unsubscribes.forEach((unsubscribe) => void unsubscribe());
        },
      );
    } finally {
      this.close();
    }
  }

  /** The name of this job's cursor in the session, and of its lock and channel among the tabs. */
  get #key(): string {
    return `jobcast:${this.#urls.stream}`;
  }

  readonly #onAbort = (): void => this.close();

  #start(): void {
    const { share, signal } = this.#options;
    if (signal?.aborted) return this.close();
    signal?.addEventListener("abort", this.#onAbort);
    if (share) void this.#startShared();
    else this.#dispatch({ type: "start" });
  }

  /** Starts with the connection shared among tabs, or with one of its own where sharing is impossible. */
  async #startShared(): Promise<void> {
    const { taskId } = this.#state;
    const share = await import("./share.js").then(
      ({ Share }) => Share,
      () => null,
    );
    // Meanwhile the stream may have been closed, or started by another call.
    if (this.#share || this.#state.taskId !== taskId) return;
    if (!share?.isPossible()) return this.#dispatch({ type: "start" });
    this.#share = new share(this.#key, {
      state: () => this.#state,
      lastId: () => this.#lastId,
      hasSeen: (id) => this.#seenIds.has(id),
      dispatch: (action) => this.#dispatch(action),
      deliver: (events) => this.#deliver(events, true),
      reset: (reset) => this.#reset(reset),
    });
  }

  // ---- the state, and what follows from it

  #dispatch(action: Action): void {
    const before = this.#state;
    const after = reduce(before, action, now());
    this.#state = after;
    this.#log(action.type, after.view.status, action, after.view.error);
    if (after.taskId !== before.taskId) {
      this.#connection.abort();
      this.#connection = new AbortController();
      if (after.task !== "none") void this.#runTask(after, this.#connection.signal);
    }
    if (after.timerAtMs !== before.timerAtMs) this.#setTimer();
    if (before.failures > 0 && after.failures === 0 && after.view.status !== "connecting") this.#wakeOthers();
    // Object identity means "changed": the reducer keeps the `view` object as long as nothing in it changes.
    if (after.view === before.view) return;
    this.#onViewChanged(after.view);
  }

  #onViewChanged(view: View): void {
    const { retryInMs } = view;
    this.#retryAt = retryInMs === null ? null : Date.now() + retryInMs;
    if (retryInMs === null) waitingStreams.delete(this);
    else waitingStreams.add(this);
    this.#share?.broadcastView();
    // A failed stream keeps its lock: the next tab would only fail, too.
    if (view.status === "failed") this.#stopListening();
    else if (isOver(view)) this.#release();
    else this.#stopWaking ??= onWake(this);
    this.#emit("state", this.state);
  }

  /** Lets the other streams of this page try at once: the server is back. */
  #wakeOthers(): void {
    for (const stream of [...waitingStreams]) stream.wakeFor(this.#urls.stream);
  }

  /** @internal */
  wakeFor(url: string): void {
    if (new URL(url).origin === new URL(this.#urls.stream).origin) this.onWake(false);
  }

  #log(...data: unknown[]): void {
    const { debug } = this.#options;
    if (debug) (typeof debug === "function" ? debug : console.debug)("jobcast", this.jobId, ...data);
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
    const sleptMs = this.#sleepMeter.sleptMs();
    if (sleptMs > 0) this.#dispatch({ type: "wake", isCut: true, sleptMs });
    this.#dispatch({ type: "timer", random: Math.random() });
    this.#setTimer();
  }

  /** @internal */
  onWake(isCut: boolean): void {
    // The timer may have slept with the page.
    this.#onTimer();
    this.#dispatch({ type: "wake", isCut });
  }

  /** @internal */
  onOffline(): void {
    const { isFollower, view } = this.#state;
    if (!isFollower && view.status !== "retrying")
      this.#onLost(clientFailure("client.offline", "this device is offline"));
  }

  #stopListening(): void {
    this.#stopWaking?.();
    this.#stopWaking = null;
  }

  #release(): void {
    this.#stopListening();
    this.#options.signal?.removeEventListener("abort", this.#onAbort);
    this.#share?.close();
    this.#share = null;
  }

  // ---- connections

  async #runTask(state: State, signal: AbortSignal): Promise<void> {
    try {
      switch (state.task) {
        case "stream":
          return await this.#runStream(state.rules.canPoll, signal);
        case "poll":
        case "catchUp":
          return await this.#runPoll(state, signal);
        case "takeOver":
          return this.#share?.takeOver();
      }
    } catch (error) {
      if (!signal.aborted) this.#onLost(failureFromThrown(error, this.#urls.stream, this.#state.hasAnswered));
    }
  }

  async #runStream(canPoll: boolean, signal: AbortSignal): Promise<void> {
    const end = await readStream(this.#request(this.#urls.stream, "lastEventId", {}, signal), this.#handlers);
    if (signal.aborted) return;
    if (end !== "noContent") return this.#onLost(end);
    // The job has ended and nothing is new. Only the JSON address says how it ended.
    const result = canPoll ? await this.#poll(0, signal).catch(() => null) : null;
    if (signal.aborted) return;
    const isOfJobcast = !result || "error" in result || result.isComplete;
    if (isOfJobcast) return this.#dispatch({ type: "complete", jobStatus: null });
    this.#onLost(
      clientFailure("client.ended", "an empty answer came for a job that has not ended", { isBlocked: true }),
    );
  }

  async #runPoll({ task, view, rules }: State, signal: AbortSignal): Promise<void> {
    // Only a poll that is known to get through is held open, and never so long that it would pass for dead.
    const isHeld = task === "poll" && view.status === "polling";
    const waitS = isHeld ? Math.floor(Math.min(POLL_WAIT_S, rules.heartbeatTimeoutMs / 2000)) : 0;
    const result = await this.#poll(waitS, signal);
    if (signal.aborted) return;
    if ("error" in result) return this.#onLost(result);
    this.#dispatch({ type: "polled", ...result });
    if (result.isEmpty) this.#share?.broadcastAlive();
    if (task === "catchUp") this.#share?.applyHeldBack();
  }

  #poll(waitS: number, signal: AbortSignal): Promise<Failure | PollResult> {
    const query = { limit: `${MAX_EVENTS_PER_POLL}`, wait: `${waitS}` };
    return poll(this.#request(this.#urls.events, "after", query, signal), this.#handlers);
  }

  /** Makes a request from where the stream stands. The cursor is no header: that would cost preflights. */
  #request(address: string, cursorName: string, query: Record<string, string>, signal: AbortSignal): ConnectionRequest {
    if (this.#cursor) query[cursorName] = this.#cursor;
    else if (this.#options.from === "now") query.from = "now";
    // No cache has an answer for this address, whatever it makes of `no-store`.
    query._ = Date.now().toString(36) + (requestCount += 1).toString(36);
    return {
      fetch: (url, accept) => this.#requests.fetch(url, accept, signal),
      url: `${address}${address.includes("?") ? "&" : "?"}${new URLSearchParams(query)}`,
      jobId: this.jobId,
      signal,
    };
  }

  #onLost(failure: Failure): void {
    if (failure.isTokenOver) this.#requests.forgetToken();
    this.#dispatch({ type: "lost", random: Math.random(), ...failure });
  }

  readonly #handlers: StreamHandlers = {
    onUnique: (part) => {
      this.#uniquePart = part;
      this.#dispatch({ type: "answered" });
    },
    onCursor: (cursor) => this.#setCursor(cursor),
    onRetry: (ms) => this.#dispatch({ type: "retry", ms }),
    onReset: (reset) => this.#reset(reset),
    onEvents: (events) => {
      this.#dispatch({ type: "bytes", hasEvents: events.some((event) => !this.#seenIds.has(event[this.#uniquePart])) });
      return this.#deliver(events);
    },
    onStatus: (jobStatus) => this.#dispatch({ type: "status", jobStatus }),
    onCaughtUp: () => this.#dispatch({ type: "caughtUp" }),
    onWarning: (failure) => this.#dispatch({ type: "warned", ...failure }),
    onBytes: (hasHeartbeat) => {
      this.#dispatch({ type: "bytes", hasEvents: false, hasHeartbeat });
      if (hasHeartbeat) this.#dispatch({ type: "caughtUp" });
      this.#share?.broadcastAlive();
    },
    onComplete: (jobStatus) => this.#dispatch({ type: "complete", jobStatus }),
  };

  // ---- events

  /**
   * Delivers the events that were not delivered yet, and returns their number.
   *
   * `areFromLeader`: a repeat among them may lie before events that this tab has read itself, so it must not move the
   * cursor back.
   */
  #deliver(events: readonly JobEvent[], areFromLeader = false): number {
    const previousId = this.#lastId;
    const fresh: JobEvent[] = [];
    for (const event of events) {
      const key = event[this.#uniquePart];
      const isRepeat = this.#seenIds.has(key);
      if (event.cursor && !(isRepeat && areFromLeader)) this.#cursor = event.cursor;
      if (isRepeat) continue;
      if (key) this.#remember(key);
      fresh.push(event);
      this.#backlog.add(event);
      this.#emit("event", event);
      this.#emit(TYPE + event.type, event);
      // A listener has closed the stream. The rest is read again if it goes on from here.
      if (isOver(this.#state.view)) break;
    }
    if (this.#cursor) this.#setCursor(this.#cursor);
    if (fresh.length > 0) this.#share?.broadcastEvents(previousId, fresh);
    return fresh.length;
  }

  #remember(id: string): void {
    this.#lastId = id;
    this.#seenIds.add(id);
    if (this.#seenIds.size > MAX_SEEN_IDS) for (const oldest of this.#seenIds) return void this.#seenIds.delete(oldest);
  }

  #setCursor(cursor: string): void {
    this.#cursor = cursor || null;
    if (this.#options.persist === "session") saveCursor(this.#key, cursor);
  }

  #reset(reset: Reset): void {
    this.#seenIds.clear();
    this.#lastId = null;
    this.#cursor = reset.cursor;
    this.#share?.broadcastReset(reset);
    this.#dispatch({ type: "reset" });
    this.#emit("reset", reset);
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
