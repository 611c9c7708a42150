// Options of a stream and their defaults.

import { JobStreamError } from "./error.js";
import type { Carry } from "./inner.js";
import type { Rules } from "./state.js";

export interface RetryOptions {
  /** The first wait, until the stream names another by `retry:`. Default 1000. */
  initialMs?: number | undefined;
  /** The longest wait. Default 30000. */
  maxMs?: number | undefined;
  /** The factor from one wait to the next. Default 2. */
  factor?: number | undefined;
  /** The random part of each wait: 1 is all of it, 0 nothing. Default 1. */
  jitter?: number | undefined;
  /** The number of failed tries in a row after which the stream gives up. Default Infinity. */
  maxAttempts?: number | undefined;
}

export interface JobStreamOptions {
  /** The address of Jobcast. Default: this page's origin. In Node it must be given. */
  baseUrl?: string | undefined;
  /** `"start"` (default): the whole history; `"now"`: new events only; else a cursor or event id to go on after. */
  from?: string | undefined;
  /**
   * The token that is sent as `Authorization: Bearer`. A function is called once, and again when its token has run out
   * or was refused. If it throws it is called again later; a `JobStreamError` that is not retryable ends the stream.
   */
  token?: string | (() => string | Promise<string>) | undefined;
  /** As for `fetch`; `"include"` sends cookies to another origin. Default `"same-origin"`. */
  credentials?: "omit" | "same-origin" | "include" | undefined;
  retry?: RetryOptions | undefined;
  /** Silence for so long means that the connection is dead. Jobcast sends something every 15 s. Default 40000. */
  heartbeatTimeoutMs?: number | undefined;
  /** The way out where streams do not get through. Default `"poll"`. */
  fallback?: "poll" | "none" | undefined;
  /**
   * A stream that shows nothing for so long does not get through. Default 12000, which is longer than Jobcast waits for
   * a job that is not there yet.
   */
  fallbackAfterMs?: number | undefined;
  /** `"session"`: after a reload of the page the stream goes on where it was. Default `"none"`. */
  persist?: "session" | "none" | undefined;
  /**
   * By default the streams of a page that have the same options share one connection. `true`: one connection for all tabs of
   * this origin that watch the same job. `false`: a connection of its own; for a list one of its own for all its jobs.
   */
  share?: boolean | undefined;
  /** The number of events that are kept from construction on for a `for await` that begins later. Default 10000. */
  maxBuffered?: number | undefined;
  /** Closes the stream when aborted. */
  signal?: AbortSignal | undefined;
  /** Logs what the stream does: to the console, or to a function. Default false. */
  debug?: boolean | ((...data: unknown[]) => void) | undefined;
  /** The types of events to hear, such as `step.output` or `job.*`; 50 at most. Default: all. */
  types?: readonly string[] | undefined;
  /** The number of newest events to begin with, 1000 at most, of each job. Default: all, as `from` says. */
  last?: number | undefined;
  /** @internal The cursor to begin at, whatever `from` and the session say, and the id of the event before it. */
  resumeAt?: string | null;
  resumeAfter?: string | undefined;
  /** @internal Streams share a connection only if they have the same token and scope. */
  sameToken?: unknown;
  /** @internal */
  scope?: object | undefined;
  /** @internal The stream goes on by itself when its job does, as long as it is not closed and shares a connection. */
  goesOn?: boolean;
  /** @internal The set of jobs that this stream reads for others. */
  carry?: Carry;
  /** The `http.stream_path` of Jobcast, if it was changed. */
  streamPath?: string | undefined;
  /** The `http.events_path` of Jobcast, if it was changed. */
  eventsPath?: string | undefined;
}

// Jobcast replaces these two strings with its own settings when it serves /jobcast.js.
export const STREAM_PATH = "/runner-jobs/{job_id}/events/stream";
export const EVENTS_PATH = "/runner-jobs/{job_id}/events";

/** The addresses of a job, and the origin that they belong to. */
export interface JobUrls {
  readonly stream: string;
  readonly events: string;
  readonly origin: string;
}

/** An address that others can be appended to: of a host, without a user, a query or a hash. */
const BASE = /^https?:\/\/[^/@]*\/[^?#]*$/;
/** Job ids that are no segment of a path: they lead to other addresses. */
const NO_SEGMENT = /^\.\.?$/;

/**
 * Returns the two addresses of a job. Throws a `JobStreamError` where the options and the job make none, which would be
 * tried for ever otherwise.
 */
export function jobUrls(jobId: string, options: JobStreamOptions): JobUrls {
  const { baseUrl = "", streamPath = STREAM_PATH, eventsPath = EVENTS_PATH } = options;
  const base = baseUrl.replace(/\/$/, "");
  const toUrl = (path: string) => new URL(base + path, globalThis.location?.href);
  const toHref = (path: string) => toUrl(path.replace("{job_id}", encodeURIComponent(jobId))).href;
  try {
    const { href, origin } = toUrl("/");
    if (BASE.test(href) && !NO_SEGMENT.test(jobId))
      return { stream: toHref(streamPath), events: toHref(eventsPath), origin };
  } catch {}
  const why = `"${baseUrl}" and job "${jobId}" make no http address: give baseUrl`;
  throw new JobStreamError("client.address", why, false);
}

/** Returns the rules of the state for these options. */
export function rulesFrom(options: JobStreamOptions): Rules {
  const { retry = {}, fallback, heartbeatTimeoutMs = 40_000, fallbackAfterMs = 12_000 } = options;
  const { initialMs = 1000, maxMs = 30_000, factor = 2, jitter = 1, maxAttempts = Infinity } = retry;
  const canPoll = fallback !== "none";
  return {
    initialMs,
    maxMs,
    factor,
    jitter,
    maxAttempts,
    heartbeatTimeoutMs,
    fallbackAfterMs,
    canPoll,
    canStream: !canPoll || !!globalThis.ReadableStream,
  };
}
