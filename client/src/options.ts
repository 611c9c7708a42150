// What may be chosen, and what is meant when nothing is.

import type { Rules } from "./state.js";

export interface RetryOptions {
  /** The first wait, until the stream names another by `retry:`. Default 1000. */
  initialMs?: number;
  /** Default 30000. */
  maxMs?: number;
  /** Default 2. */
  factor?: number;
  /** How much of a wait is left to chance: 1 all of it, 0 nothing. Default 1. */
  jitter?: number;
  /** Tries in a row after which it gives up. Default Infinity. */
  maxAttempts?: number;
}

export interface JobStreamOptions {
  /** Where Jobcast is; default: this page's origin. In Node it must be given. */
  baseUrl?: string;
  /** `"start"` (default): the whole history; `"now"`: only what comes; else a cursor or an event's id to go on after. */
  from?: string;
  /** Sent as `Authorization: Bearer`. A function is asked once, and again after a 401. */
  token?: string | (() => string | Promise<string>);
  /** As for `fetch`; `"include"` sends cookies to another origin. Default `"same-origin"`. */
  credentials?: RequestCredentials;
  retry?: RetryOptions;
  /** Nothing at all for so long: the connection is dead. Jobcast says something every 15 s. Default 40000. */
  heartbeatTimeoutMs?: number;
  /** What to do where streams do not get through. Default `"poll"`. */
  fallback?: "poll" | "none";
  /** A stream that shows nothing for so long does not get through. Default 8000. */
  fallbackAfterMs?: number;
  /** `"session"`: go on after a reload of the page, where it had come to. Default `"none"`. */
  persist?: "session" | "none";
  /** One connection for all tabs of this origin that watch the same job. Default false. */
  share?: boolean;
  /** Closes the stream when aborted. */
  signal?: AbortSignal;
  /** As `http.stream_path` of Jobcast. */
  streamPath?: string;
  /** As `http.events_path` of Jobcast. */
  eventsPath?: string;
}

// Jobcast puts its own settings in the place of these two as it serves /jobcast.js.
const STREAM_PATH = "/runner-jobs/{job_id}/events/stream";
const EVENTS_PATH = "/runner-jobs/{job_id}/events";

/** Throws at once for an address that can be none, rather than trying it for ever. */
export function addresses(jobId: string, options: JobStreamOptions): { stream: string; events: string } {
  const address = (path: string) => {
    const url = (options.baseUrl ?? "").replace(/\/$/, "") + path.replace("{job_id}", encodeURIComponent(jobId));
    try {
      return new URL(url, globalThis.location?.href).href;
    } catch {
      throw new TypeError(`${url} is no address: give baseUrl`);
    }
  };
  return { stream: address(options.streamPath ?? STREAM_PATH), events: address(options.eventsPath ?? EVENTS_PATH) };
}

export function rules({
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
