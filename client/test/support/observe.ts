// An observer that watches a job and records everything, in Node and in a page alike.
import { type JobEvent, JobStream, JobStreamError, type JobStreamOptions } from "../../src/index.js";

export interface Observed {
  events: JobEvent[];
  /** The events of the type `listenFor`. */
  heard: string[];
  /** The statuses in order, without repeats in a row. */
  statuses: string[];
  /** The job's statuses in order, without repeats in a row. */
  jobStatuses: (string | null)[];
  attempts: number[];
  waits: number[];
  errors: { code: string; status: number | null; retryable: boolean; message: string }[];
  resets: string[];
  status: string;
  attempt: number;
  jobStatus: string | null;
  cursor: string | null;
  retryAt: number | null;
  isCaughtUp: boolean;
  /** The number of events that had come when it was caught up first. */
  caughtUpAfter: number | null;
  tokensAsked: number;
}

/** Options that can be passed to a page. */
export interface ObserveOptions extends Omit<JobStreamOptions, "token" | "signal"> {
  /** The results of the token function, one after the other. The last one is repeated. */
  tokens?: (string | "throws" | "is final" | "hangs")[];
  /** A type of events to listen for. */
  listenFor?: string;
  /** Replaces fetch by one as in browsers that cannot stream: its answers have no body to read from. */
  isBodiless?: boolean;
}

export class Observer {
  readonly stream: JobStream;
  readonly #abort = new AbortController();
  readonly #seen: Omit<Observed, keyof ReturnType<Observer["current"]>> = {
    events: [],
    heard: [],
    statuses: [],
    jobStatuses: [null],
    attempts: [],
    waits: [],
    errors: [],
    resets: [],
    caughtUpAfter: null,
    tokensAsked: 0,
  };

  constructor(jobs: string | readonly string[], { tokens, listenFor, isBodiless, ...options }: ObserveOptions) {
    const { fetch } = globalThis;
    if (isBodiless)
      globalThis.fetch = async (...args) => Object.defineProperty(await fetch(...args), "body", { value: null });
    const token = async () => {
      const index = Math.min(this.#seen.tokensAsked, (tokens?.length ?? 1) - 1);
      this.#seen.tokensAsked += 1;
      const result = tokens?.[index] ?? "";
      if (result === "throws") throw new Error("the API is down");
      if (result === "is final") throw new JobStreamError("app.signed_out", "sign in again", false);
      return result === "hangs" ? new Promise<string>(() => {}) : result;
    };
    this.stream = new JobStream(jobs, { ...options, signal: this.#abort.signal, ...(tokens && { token }) });
    const seen = this.#seen;
    seen.statuses.push(this.stream.state.status);
    this.stream.on("event", (event) => seen.events.push(event));
    if (listenFor) this.stream.on(listenFor, (event) => seen.heard.push(event.type));
    this.stream.on("reset", ({ reason }) => seen.resets.push(reason));
    this.stream.on("state", ({ status, attempt, retryInMs, error, isCaughtUp, jobStatus }) => {
      if (seen.jobStatuses.at(-1) !== jobStatus) seen.jobStatuses.push(jobStatus);
      if (isCaughtUp) seen.caughtUpAfter ??= seen.events.length;
      if (seen.statuses.at(-1) !== status) seen.statuses.push(status);
      if (status === "retrying") {
        seen.attempts.push(attempt);
        seen.waits.push(retryInMs);
      }
      if (error)
        seen.errors.push({
          code: error.code,
          status: error.status,
          retryable: error.retryable,
          message: error.message,
        });
    });
  }

  /** The state of the moment, in parts that can be cloned. */
  current() {
    const { status, attempt, jobStatus, cursor, retryAt, isCaughtUp } = this.stream.state;
    return { status, attempt, jobStatus, cursor, retryAt, isCaughtUp };
  }

  now(): Observed {
    // A page returns a copy, so this does, too.
    return structuredClone({ ...this.#seen, ...this.current() });
  }

  abort(): void {
    this.#abort.abort();
  }
}
