// Options of a stream and their defaults.

import type { Rules } from "./state.js";

export interface RetryOptions {
  /** The first wait, until the stream names another by `retry:`. Default 1000. */
  initialMs?: number;
  /** The longest wait. Default 30000. */
  maxMs?: number;
  /** The factor from one wait to the next. Default 2. */
  factor?: number;
  /** The random part of each wait: 1 is all of it, 0 nothing. Default 1. */
  jitter?: number;
  /** The number of failed tries in a row after which the stream gives up. Default Infinity. */
  maxAttempts?: number;
}

export interface JobStreamOptions {
  /** The address of Jobcast. Default: this page's origin. In Node it must be given. */
  baseUrl?: string;
  /** `"start"` (default): the whole history; `"now"`: new events only; else a cursor or event id to go on after. */
  from?: string;
  /** The token that is sent as `Authorization: Bearer`. A function is called once, and again after a 401. */
  token?: string | (() => string | Promise<string>);
  /** As for `fetch`; `"include"` sends cookies to another origin. Default `"same-origin"`. */
  credentials?: RequestCredentials;
  retry?: RetryOptions;
  /** Silence for so long means that the connection is dead. Jobcast sends something every 15 s. Default 40000. */
  heartbeatTimeoutMs?: number;
  /** The way out where streams do not get through. Default `"poll"`. */
  fallback?: "poll" | "none";
  /** A stream that shows nothing for so long does not get through. Default 8000. */
  fallbackAfterMs?: number;
  /** `"session"`: after a reload of the page the stream goes on where it was. Default `"none"`. */
  persist?: "session" | "none";
  /** One connection for all tabs of this origin that watch the same job. Default false. */
  share?: boolean;
  /** Closes the stream when aborted. */
  signal?: AbortSignal;
  /** The `http.stream_path` of Jobcast, if it was changed. */
  streamPath?: string;
  /** The `http.events_path` of Jobcast, if it was changed. */
  eventsPath?: string;
}

// Jobcast replaces these two strings with its own settings when it serves /jobcast.js.
const STREAM_PATH = "/runner-jobs/{job_id}/events/stream";
const EVENTS_PATH = "/runner-jobs/{job_id}/events";

/** Returns the two addresses of a job. Throws for an impossible address, which would be tried for ever otherwise. */
export function jobUrls(jobId: string, options: JobStreamOptions): { stream: string; events: string } {
  const toUrl = (path: string) => {
    const url = (options.baseUrl ?? "").replace(/\/$/, "") + path.replace("{job_id}", encodeURIComponent(jobId));
    try {
      return new URL(url, globalThis.location?.href).href;
    } catch {
      throw new TypeError(`${url} is no address: give baseUrl`);
    }
  };
  return { stream: toUrl(options.streamPath ?? STREAM_PATH), events: toUrl(options.eventsPath ?? EVENTS_PATH) };
}

/** Returns the rules of the state for these options. */
export function rulesFrom({
  retry,
  fallback,
  heartbeatTimeoutMs = 40_000,
  fallbackAfterMs = 8000,
}: JobStreamOptions): Rules {
  const canPoll = fallback !== "none";
  return {
    initialMs: 1000,
    maxMs: 30_000,
    factor: 2,
    jitter: 1,
    maxAttempts: Infinity,
    ...retry,
    heartbeatTimeoutMs,
    fallbackAfterMs,
    canPoll,
    canStream: !canPoll || !!globalThis.ReadableStream,
  };
}
