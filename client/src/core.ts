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
import type { JobEvent, Reset } from "./event.js";
import { type JobStreamOptions, jobUrls, rulesFrom } from "./options.js";
import { loadCursor, saveCursor } from "./persist.js";
import type { Share } from "./share.js";
import { type Action, initialState, isOver, reduce, type State, type View } from "./state.js";
import { onWake } from "./wake.js";

/** The state of a stream and the place that it has reached. */
export type JobStreamState = View & {
  /** The place after the last delivered event, from which the stream would go on. */
  readonly cursor: string | null;
};

type Listener<T> = (value: T) => void;

/** The number of delivered ids that are kept to recognise repeats. */
const MAX_SEEN_IDS = 20_000;
/** Names of the stream's own notifications. An event whose type is one of them reaches the `event` listeners only. */
const RESERVED_NAMES = new Set(["event", "state", "reset"]);
/** The time for which a poll is held open. It is below the idle time-outs of proxies. */
const POLL_WAIT_S = 25;
const MIN_TIMER_MS = 9;
/** A timer for more than 2 ** 31 ms would fire at once. */
const MAX_TIMER_MS = 2e9;

/** Watches one job from construction on. Delivers each event once and in order, until the job ends or `close()`. */
export class JobStream {
  readonly jobId: string;
  readonly #options: JobStreamOptions;
  readonly #urls: { stream: string; events: string };
  readonly #listeners = new Map<string, Set<Listener<never>>>();
  readonly #seenIds = new Set<string>();
  #state: State;
  #cursor: string | null;
  /** The id of the newest event. Other tabs compare it with theirs. */
  #lastId: string | null = null;
  #token: string | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  /** Aborts the connection of the current task. */
  #connection = new AbortController();
  #share: Share | null = null;
  #stopWaking: (() => void) | null = null;

  constructor(jobId: string, options: JobStreamOptions = {}) {
    const { from = "start", persist } = options;
    this.jobId = jobId;
    this.#options = options;
    this.#urls = jobUrls(jobId, options);
    this.#state = initialState(rulesFrom(options));
    const given = from === "start" || from === "now" ? null : from;
    this.#cursor = (persist === "session" && loadCursor(this.#key)) || given;
    this.#start();
  }

  get state(): JobStreamState {
    return { ...this.#state.view, cursor: this.#cursor };
  }

  /** Listens for `event`, `state`, `reset`, or events of one type such as `step.output`. Returns how to stop. */
  on(name: "event", listener: Listener<JobEvent>): () => void;
  on(name: "state", listener: Listener<JobStreamState>): () => void;
  on(name: "reset", listener: Listener<Reset>): () => void;
  on(type: string, listener: Listener<JobEvent>): () => void;
  on(name: string, listener: Listener<never>): () => void {
    let listeners = this.#listeners.get(name);
    if (!listeners) this.#listeners.set(name, (listeners = new Set()));
    listeners.add(listener);
    return () => listeners.delete(listener);
  }

  /** Closes the stream and leaves no timer, listener or connection behind. */
  close(): void {
    this.#dispatch({ type: "close" });
  }

  /** Connects anew at once, also after `failed` or `close()`, and goes on where the stream was. */
  reconnect(): void {
    if (this.#share) this.#share.reconnect();
    else this.#start();
  }

  /**
   * Yields each event until the job ends or `close()`, and throws a `JobStreamError` when the stream fails. Leaving the
   * loop closes the stream.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<JobEvent, void, undefined> {
    let waiting: JobEvent[] = [];
    let resume = () => {};
    const unsubscribes = [
      this.on("event", (event) => {
        waiting.push(event);
        resume();
      }),
      this.on("state", () => resume()),
    ];
    try {
      for (;;) {
        const batch = waiting;
        waiting = [];
        yield* batch;
        if (waiting.length > 0) continue;
        const { view } = this.#state;
        if (view.status === "failed") throw view.error;
        if (isOver(view)) return;
        await new Promise<void>((resolve) => {
          resume = resolve;
        });
      }
    } finally {
      for (const unsubscribe of unsubscribes) unsubscribe();
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
    const after = reduce(before, action, Date.now());
    this.#state = after;
    if (after.taskId !== before.taskId) {
      this.#connection.abort();
      this.#connection = new AbortController();
      if (after.task !== "none") void this.#runTask(after, this.#connection.signal);
    }
    if (after.timerAtMs !== before.timerAtMs) this.#setTimer();
    // Object identity means "changed": the reducer keeps the `view` object as long as nothing in it changes.
    if (after.view === before.view) return;
    this.#share?.broadcastView();
    if (isOver(after.view)) this.#cleanUp(after.view);
    else this.#stopWaking ??= onWake((isCut) => this.#onWake(isCut));
    this.#emit("state", this.state);
  }

  #setTimer(): void {
    const { timerAtMs } = this.#state;
    clearTimeout(this.#timer);
    if (timerAtMs === Infinity) return;
    // A timer may fire early. The least wait keeps it from firing again and again until its time.
    const waitMs = Math.min(Math.max(timerAtMs - Date.now(), MIN_TIMER_MS), MAX_TIMER_MS);
    this.#timer = setTimeout(() => this.#onTimer(), waitMs);
  }

  #onTimer(): void {
    this.#dispatch({ type: "timer", random: Math.random() });
    this.#setTimer();
  }

  #onWake(isCut: boolean): void {
    // The timer may have slept with the page.
    this.#onTimer();
    this.#dispatch({ type: "wake", isCut });
  }

  #cleanUp({ status }: View): void {
    this.#stopWaking?.();
    this.#stopWaking = null;
    // A failed stream keeps its lock: the next tab would only fail, too.
    if (status === "failed") return;
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
      // There was no answer, or the token function failed.
      if (!signal.aborted) this.#onLost(clientFailure("client.network", String(error)));
    }
  }

  async #runStream(canPoll: boolean, signal: AbortSignal): Promise<void> {
    const end = await readStream(this.#request(this.#urls.stream, "lastEventId", {}, signal), this.#handlers);
    if (signal.aborted) return;
    if (end !== "noContent") return this.#onLost(end);
    // The job has ended and nothing is new. Only the JSON address says how it ended.
    const result = canPoll ? await this.#poll(0, signal).catch(() => null) : null;
    if (signal.aborted) return;
    this.#dispatch({ type: "complete", jobStatus: result && "jobStatus" in result ? result.jobStatus : null });
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
    return {
      fetch: (url, accept) => this.#fetch(url, accept, signal),
      url: `${address}${address.includes("?") ? "&" : "?"}${new URLSearchParams(query)}`,
      jobId: this.jobId,
      signal,
    };
  }

  #onLost(failure: Failure): void {
    const { code, message } = failure.error;
    // An address that never answered as Jobcast does is a wrong one. Later it is something in between, which may pass.
    const isWrongAddress = code === "client.content_type" && !this.#state.hasAnswered;
    const { error } = isWrongAddress ? clientFailure(code, message, {}, false) : failure;
    this.#dispatch({ type: "lost", random: Math.random(), ...failure, error });
  }

  /** Fetches with the token. After a 401 the token function is called once more. */
  async #fetch(url: string, accept: string, signal: AbortSignal): Promise<Response> {
    const { credentials = "same-origin", token } = this.#options;
    const send = async () => {
      const headers: Record<string, string> = { Accept: accept };
      if (token !== undefined)
        headers.Authorization = `Bearer ${(this.#token ??= typeof token === "function" ? await token() : token)}`;
      return fetch(url, { headers, credentials, cache: "no-store", signal });
    };
    const response = await send();
    if (response.status !== 401 || typeof token !== "function") return response;
    this.#token = null;
    await response.body?.cancel();
    return send();
  }

  readonly #handlers: StreamHandlers = {
    onCursor: (cursor) => this.#setCursor(cursor),
    onRetry: (ms) => this.#dispatch({ type: "retry", ms }),
    onReset: (reset) => this.#reset(reset),
    onEvents: (events) => {
      this.#dispatch({ type: "bytes", hasEvents: true });
      this.#deliver(events);
    },
    onWarning: (failure) => this.#dispatch({ type: "warned", ...failure }),
    onBytes: () => {
      this.#dispatch({ type: "bytes", hasEvents: false });
      this.#share?.broadcastAlive();
    },
    onComplete: (jobStatus) => this.#dispatch({ type: "complete", jobStatus }),
  };

  // ---- events

  /**
   * Delivers the events that were not delivered yet.
   *
   * `areFromLeader`: a repeat among them may lie before events that this tab has read itself, so it must not move the
   * cursor back.
   */
  #deliver(events: readonly JobEvent[], areFromLeader = false): void {
    const previousId = this.#lastId;
    const fresh: JobEvent[] = [];
    for (const event of events) {
      const isRepeat = this.#seenIds.has(event.id);
      if (event.cursor && !(isRepeat && areFromLeader)) this.#cursor = event.cursor;
      if (isRepeat) continue;
      if (event.id) this.#remember(event.id);
      fresh.push(event);
      this.#emit("event", event);
      if (!RESERVED_NAMES.has(event.type)) this.#emit(event.type, event);
      // A listener has closed the stream. The rest is read again if it goes on from here.
      if (isOver(this.#state.view)) break;
    }
    if (this.#cursor) this.#setCursor(this.#cursor);
    if (fresh.length > 0) this.#share?.broadcastEvents(previousId, fresh);
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
