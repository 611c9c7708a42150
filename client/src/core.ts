// The shell around the state (state.ts): it runs the connection that the state asks for, has the one timer, remembers
// where it stands, and tells its listeners.

import { type Heard, PAGE, poll, stream } from "./connection.js";
import { type Lost, lost } from "./error.js";
import type { JobEvent, Reset } from "./event.js";
import { addresses, type JobStreamOptions, rules } from "./options.js";
import { store, stored } from "./persist.js";
import type { Share } from "./share.js";
import { type Input, initial, isOver, type Machine, next, type View } from "./state.js";
import { onWake } from "./wake.js";

/** What a stream is doing, and where it stands. */
export type JobStreamState = View & {
  /** Where it would go on: after the last event that was delivered. */
  readonly cursor: string | null;
};

type Listener<T> = (said: T) => void;

/** Ids of the newest events, to know a repeat by. */
const REMEMBERED = 20_000;
const timedOut = (isBlocked: boolean): Lost => lost("client.timeout", "nothing came for too long", { isBlocked });
/** An event of such a type is heard as `event` only. */
const OURS = new Set(["event", "state", "reset"]);
/** A poll is held open so long, below the idle time-outs of proxies. */
const POLL_WAIT_S = 25;

/** Watches one job from construction on, each event once and in order, until the job ends or `close()`. */
export class JobStream {
  readonly jobId: string;
  readonly #options: JobStreamOptions;
  readonly #urls: { stream: string; events: string };
  readonly #listeners = new Map<string, Set<Listener<never>>>();
  readonly #seen = new Set<string>();
  #machine: Machine;
  #cursor: string | null;
  #lastId: string | null = null;
  #token: string | null = null;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #connection = new AbortController();
  #share: Share | null = null;
  #stopWaking: (() => void) | null = null;

  constructor(jobId: string, options: JobStreamOptions = {}) {
    const { from = "start", persist } = options;
    this.jobId = jobId;
    this.#options = options;
    this.#urls = addresses(jobId, options);
    this.#machine = initial(rules(options));
    const asked = from === "start" || from === "now" ? null : from;
    this.#cursor = (persist === "session" && stored(this.#key)) || asked;
    this.#begin();
  }

  get state(): JobStreamState {
    return { ...this.#machine.view, cursor: this.#cursor };
  }

  /** Hears `event`, `state`, `reset`, or the events of one type, such as `step.output`. Returns how to stop hearing. */
  on(name: "event", listener: Listener<JobEvent>): () => void;
  on(name: "state", listener: Listener<JobStreamState>): () => void;
  on(name: "reset", listener: Listener<Reset>): () => void;
  on(type: string, listener: Listener<JobEvent>): () => void;
  on(name: string, listener: Listener<never>): () => void {
    let heard = this.#listeners.get(name);
    if (!heard) this.#listeners.set(name, (heard = new Set()));
    heard.add(listener);
    return () => heard.delete(listener);
  }

  /** Leaves no timer, listener or connection behind. */
  close(): void {
    this.#hear({ type: "close" });
  }

  /** Tries anew at once, also after `failed` or `close()`; goes on where it was. */
  reconnect(): void {
    if (this.#share) this.#share.reconnect();
    else this.#begin();
  }

  /** Ends with the job or `close()`; throws a `JobStreamError` when the stream fails. Leaving the loop closes the stream. */
  async *[Symbol.asyncIterator](): AsyncGenerator<JobEvent, void, undefined> {
    let events: JobEvent[] = [];
    let news = () => {};
    const stops = [
      this.on("event", (event) => {
        events.push(event);
        news();
      }),
      this.on("state", () => news()),
    ];
    try {
      for (;;) {
        const taken = events;
        events = [];
        yield* taken;
        if (events.length > 0) continue;
        const { view } = this.#machine;
        if (view.status === "failed") throw view.error;
        if (isOver(view)) return;
        await new Promise<void>((resolve) => {
          news = resolve;
        });
      }
    } finally {
      for (const stop of stops) stop();
      this.close();
    }
  }

  get #key(): string {
    return `jobcast:${this.#urls.stream}`;
  }

  readonly #abort = (): void => this.close();

  #begin(): void {
    const { share, signal } = this.#options;
    if (signal?.aborted) return this.close();
    signal?.addEventListener("abort", this.#abort);
    if (share) void this.#join();
    else this.#hear({ type: "start" });
  }

  /** Loaded by those who want it; whoever cannot share has a connection of its own. */
  async #join(): Promise<void> {
    const { run } = this.#machine;
    const share = await import("./share.js").then(
      ({ Share }) => Share,
      () => null,
    );
    // closed, or joined by another call, meanwhile
    if (this.#share || this.#machine.run !== run) return;
    if (!share?.isPossible()) return this.#hear({ type: "start" });
    this.#share = new share(this.#key, {
      machine: () => this.#machine,
      lastId: () => this.#lastId,
      has: (id) => this.#seen.has(id),
      hear: (input) => this.#hear(input),
      take: (events) => this.#take(events, true),
      reset: (reset) => this.#reset(reset),
    });
  }

  // ---- the state, and what follows from it

  #hear(input: Input): void {
    const before = this.#machine;
    const after = next(before, input, Date.now());
    this.#machine = after;
    if (after.run !== before.run) {
      this.#connection.abort();
      this.#connection = new AbortController();
      if (after.task !== "none") void this.#run(after, this.#connection.signal);
    }
    if (after.dueMs !== before.dueMs) this.#arm();
    if (after.view === before.view) return;
    this.#share?.view();
    if (isOver(after.view)) this.#rest(after.view);
    else this.#stopWaking ??= onWake((isCut) => this.#wake(isCut));
    this.#emit("state", this.state);
  }

  #arm(): void {
    const { dueMs } = this.#machine;
    clearTimeout(this.#timer);
    // more than a timer can hold would fire at once; one that fires early must not spin
    if (dueMs < Infinity) this.#timer = setTimeout(() => this.#tick(), Math.min(Math.max(dueMs - Date.now(), 9), 2e9));
  }

  #tick(): void {
    this.#hear({ type: "time", random: Math.random(), timedOut });
    this.#arm();
  }

  #wake(isCut: boolean): void {
    // a timer may have slept with the page
    this.#tick();
    this.#hear({ type: "wake", isCut });
  }

  #rest({ status }: View): void {
    this.#stopWaking?.();
    this.#stopWaking = null;
    // one that failed keeps its lock: the next tab would only fail, too
    if (status === "failed") return;
    this.#options.signal?.removeEventListener("abort", this.#abort);
    this.#share?.close();
    this.#share = null;
  }

  // ---- connections

  async #run({ task, view, rules }: Machine, signal: AbortSignal): Promise<void> {
    if (task === "lead") return this.#share?.takeOver();
    const ask = (url: string, accept: string) => this.#ask(url, accept, signal);
    const at = (url: string, cursorName: string, query: Record<string, string> = {}) => {
      // The cursor goes in the query: as a header it would cost a preflight at every try of another origin.
      if (this.#cursor) query[cursorName] = this.#cursor;
      else if (this.#options.from === "now") query.from = "now";
      return `${url}${url.includes("?") ? "&" : "?"}${new URLSearchParams(query)}`;
    };
    const page = (wait: number) =>
      poll(ask, at(this.#urls.events, "after", { limit: `${PAGE}`, wait: `${wait}` }), this.jobId, signal, this.#heard);
    try {
      if (task !== "stream") {
        const waitS =
          task === "poll" && view.status === "polling"
            ? Math.min(POLL_WAIT_S, (rules.heartbeatTimeoutMs / 2000) | 0)
            : 0;
        const answer = await page(waitS);
        if (signal.aborted) return;
        if ("error" in answer) return this.#lose(answer);
        this.#hear({ type: "polled", ...answer });
        if (answer.isEmpty) this.#share?.beat();
        if (task === "level") this.#share?.catchUp();
        return;
      }
      const end = await stream(ask, at(this.#urls.stream, "lastEventId"), this.jobId, signal, this.#heard);
      if (signal.aborted) return;
      if (end !== 204) return this.#lose(end);
      // the end, and nothing new: only how it ended is not said, which the other address knows
      const answer = rules.canPoll ? await page(0).catch(() => null) : null;
      if (!signal.aborted)
        this.#hear({ type: "complete", jobStatus: answer && "jobStatus" in answer ? answer.jobStatus : null });
    } catch (error) {
      if (signal.aborted) return;
      // no answer, or no token
      this.#lose(lost("client.network", String(error)));
    }
  }

  #lose(why: Lost): void {
    // what no Jobcast ever answered from is no Jobcast; after that it is something between, which may pass
    const isWrong = why.error.code === "client.content_type" && !this.#machine.wasOpen;
    const { error } = isWrong ? lost(why.error.code, why.error.message, {}, false) : why;
    this.#hear({ type: "lost", random: Math.random(), ...why, error });
  }

  async #ask(url: string, accept: string, signal: AbortSignal): Promise<Response> {
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

  readonly #heard: Heard = {
    position: (cursor) => this.#stand(cursor),
    retry: (ms) => this.#hear({ type: "retry", ms }),
    reset: (reset) => this.#reset(reset),
    events: (events) => {
      this.#hear({ type: "bytes", isNews: true });
      this.#take(events);
    },
    warned: (why) => this.#hear({ type: "warned", ...why }),
    bytes: () => {
      this.#hear({ type: "bytes", isNews: false });
      this.#share?.beat();
    },
    complete: (jobStatus) => this.#hear({ type: "complete", jobStatus }),
  };

  // ---- events

  /** `isOld`: a repeat among them was told before what we have read since, and says nothing of where we stand. */
  #take(events: readonly JobEvent[], isOld = false): void {
    const after = this.#lastId;
    const fresh: JobEvent[] = [];
    for (const event of events) {
      const isRepeat = this.#seen.has(event.id);
      if (event.cursor && !(isRepeat && isOld)) this.#cursor = event.cursor;
      if (isRepeat) continue;
      if (event.id) this.#remember(event.id);
      fresh.push(event);
      this.#emit("event", event);
      if (!OURS.has(event.type)) this.#emit(event.type, event);
      // closed by a listener: what follows is for whoever goes on from here
      if (isOver(this.#machine.view)) break;
    }
    if (this.#cursor) this.#stand(this.#cursor);
    if (fresh.length > 0) this.#share?.events(after, fresh);
  }

  #remember(id: string): void {
    this.#lastId = id;
    this.#seen.add(id);
    if (this.#seen.size > REMEMBERED) for (const oldest of this.#seen) return void this.#seen.delete(oldest);
  }

  #stand(cursor: string): void {
    this.#cursor = cursor || null;
    if (this.#options.persist === "session") store(this.#key, cursor);
  }

  #reset(reset: Reset): void {
    this.#seen.clear();
    this.#lastId = null;
    this.#cursor = reset.cursor;
    this.#share?.reset(reset);
    this.#emit("reset", reset);
  }

  /** A listener's own fault is told as an event target's is, and keeps nothing from the others. */
  #emit<T>(name: string, said: T): void {
    for (const listener of [...(this.#listeners.get(name) ?? [])]) {
      try {
        (listener as Listener<T>)(said);
      } catch (error) {
        queueMicrotask(() => {
          throw error;
        });
      }
    }
  }
}
