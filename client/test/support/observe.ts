// Watches a job and writes down all that it is told: the same in Node and in a page.
import { type JobEvent, JobStream, type JobStreamOptions } from "../../src/index.js";

export interface Observed {
  events: JobEvent[];
  /** By their own type. */
  heard: string[];
  /** Statuses, each once in a row. */
  statuses: string[];
  attempts: number[];
  waits: number[];
  errors: { code: string; status: number | null; retryable: boolean; message: string }[];
  resets: string[];
  status: string;
  attempt: number;
  jobStatus: string | null;
  cursor: string | null;
  tokensAsked: number;
}

/** What can be told to a page. */
export interface ObserveOptions extends Omit<JobStreamOptions, "token" | "signal"> {
  /** What the token function answers, one after the other; the last one again and again. */
  tokens?: string[];
  hear?: string;
  /** A fetch as in browsers that cannot stream: answers have no body to read from. */
  isBodiless?: boolean;
}

export class Observer {
  readonly stream: JobStream;
  readonly #abort = new AbortController();
  readonly #seen: Omit<Observed, "status" | "attempt" | "jobStatus" | "cursor"> = {
    events: [],
    heard: [],
    statuses: [],
    attempts: [],
    waits: [],
    errors: [],
    resets: [],
    tokensAsked: 0,
  };

  constructor(jobId: string, { tokens, hear, isBodiless, ...options }: ObserveOptions) {
    const { fetch } = globalThis;
    if (isBodiless)
      globalThis.fetch = async (...asked) => Object.defineProperty(await fetch(...asked), "body", { value: null });
    const token = async () => {
      const at = Math.min(this.#seen.tokensAsked, (tokens?.length ?? 1) - 1);
      this.#seen.tokensAsked += 1;
      return tokens?.[at] ?? "";
    };
    this.stream = new JobStream(jobId, { ...options, signal: this.#abort.signal, ...(tokens && { token }) });
    const seen = this.#seen;
    seen.statuses.push(this.stream.state.status);
    this.stream.on("event", (event) => seen.events.push(event));
    if (hear) this.stream.on(hear, (event) => seen.heard.push(event.type));
    this.stream.on("reset", ({ reason }) => seen.resets.push(reason));
    this.stream.on("state", ({ status, attempt, retryInMs, error }) => {
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

  now(): Observed {
    const { status, attempt, jobStatus, cursor } = this.stream.state;
    // a copy, as a page gives it
    return structuredClone({ ...this.#seen, status, attempt, jobStatus, cursor });
  }

  abort(): void {
    this.#abort.abort();
  }
}
