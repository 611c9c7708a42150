// One connection: a stream until its end, or one answer of the JSON address. It reports to its handlers and decides
// nothing; the decisions are made in state.ts.

import { createParser, type EventSourceMessage } from "eventsource-parser";
import { clientFailure, type Failure, failureFromAnswer, failureFromControlEvent } from "./error.js";
import { asRecord, asString, type JobEvent, parseJson, type Reset, toJobEvent, type UnknownRecord } from "./event.js";
import type { Action } from "./state.js";

/** A reset of one job, or of all jobs of the connection. */
export type ToldReset = Omit<Reset, "jobId"> & { readonly jobId: string | null };

/** The handlers of everything that arrives on a connection, called in the order of arrival. */
export interface StreamHandlers {
  /** The answer is Jobcast's; `uniquePart` names the part of its events that tells them apart. */
  onAnswer(uniquePart: unknown): void;
  /** The stream now stands at `cursor`; the empty cursor is the beginning. */
  onCursor(cursor: string): void;
  onReset(reset: ToldReset): void;
  /** All events of one chunk. Returns the number of those that are no repeats. */
  onEvents(events: JobEvent[]): number;
  /** A chunk has arrived and was handled. */
  onBytes(hasHeartbeat: boolean): void;
  /** Anything else that changes the state and nothing beside it. */
  dispatch(action: Action): void;
}

/** A request of one connection. */
export interface ConnectionRequest {
  /** Fetches with the credentials of the stream. */
  readonly fetch: (url: string, accept: string) => Promise<Response | Failure>;
  /** The address, with its query. */
  readonly url: string;
  readonly jobId: string;
  /** Nothing is reported any more once it is aborted. */
  readonly signal: AbortSignal;
}

const EVENT_STREAM = /^\s*text\/event-stream\s*(;|$)/i;
/** The beginning of the types of Jobcast's own events. */
const CONTROL = "stream.";
/** The comments after which a stream is live, and by which a silent one shows that it lives. */
const LIVE = "live";
const HEARTBEAT = "heartbeat";

/**
 * Reads a stream until it ends, and returns why it ended. `"noContent"` is the answer 204: the job has ended, and the
 * cursor is at its end.
 */
export async function readStream(
  { fetch, url, jobId, signal }: ConnectionRequest,
  handlers: StreamHandlers,
): Promise<Failure | "noContent"> {
  const response = await fetch(url, "text/event-stream");
  if ("error" in response) return response;
  if (response.status === 204) return "noContent";
  if (!response.ok || !EVENT_STREAM.test(response.headers.get("Content-Type") ?? ""))
    return failureFromAnswer(response);
  const reader = response.body?.getReader?.();
  if (!reader) return clientFailure("client.content_type", "fetch cannot stream", { isBlocked: true });
  handlers.onAnswer(response.headers.get("X-Jobcast-Unique"));

  const parse = streamParser(jobId, signal, handlers);
  for (;;) {
    const { done, value } = await reader.read();
    if (signal.aborted || done) break;
    const bye = parse(value);
    if (bye) return bye;
  }
  return clientFailure("client.ended", "it ended early");
}

/**
 * Returns the parser of one stream, a function that takes bytes and calls the handlers. It returns the `stream.bye`
 * after which the stream is left.
 */
function streamParser(
  jobId: string,
  signal: AbortSignal,
  handlers: StreamHandlers,
): (bytes: Uint8Array) => Failure | null {
  // The parser takes one BOM off, and the decoder must not take another.
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  /** Events of the current chunk that were not handed on yet. */
  let events: JobEvent[] = [];
  /** The newest id of the stream, and the one that was handed on. */
  let cursor: string | null = null;
  let toldCursor: string | null = null;
  let bye: Failure | null = null;
  let hasHeartbeat = false;

  /** Hands on the events, and a place that came without an event. */
  const flush = () => {
    const batch = events;
    events = [];
    if (batch.length > 0) handlers.onEvents(batch);
    if (signal.aborted || cursor === null || cursor === toldCursor) return;
    toldCursor = cursor;
    handlers.onCursor(cursor);
  };
  const onMessage = ({ id, event: type = "message", data }: EventSourceMessage) => {
    // After the end of the job the signal is aborted.
    if (signal.aborted) return;
    const value = parseJson(data);
    const isControl = type.startsWith(CONTROL);
    // By the standard an empty id clears the place: the next connection starts from the beginning.
    if (isControl || id === "") flush();
    // An event without an id of its own gets an empty one: it cannot be told from a repeat.
    if (!isControl) events.push(toJobEvent(jobId, type, value, cursor ?? "", id ?? ""));
    else if (type === "stream.bye") bye = failureFromControlEvent(type, asRecord(value));
    else onControlEvent(type, asRecord(value), handlers);
  };
  const parser = createParser({
    onEvent: onMessage,
    onId: (id) => {
      cursor = id;
    },
    onRetry: (ms) => handlers.dispatch({ type: "retry", ms }),
    onComment: (text) => {
      hasHeartbeat ||= text === HEARTBEAT;
      if (text !== LIVE || signal.aborted) return;
      flush();
      handlers.dispatch({ type: "caughtUp", isCaughtUp: true });
    },
  });
  return (bytes) => {
    hasHeartbeat = false;
    parser.feed(decoder.decode(bytes, { stream: true }));
    if (!signal.aborted) flush();
    if (!signal.aborted) handlers.onBytes(hasHeartbeat);
    return bye;
  };
}

/** Handles an event of Jobcast itself, after all events that came before it. Unknown ones are ignored. */
function onControlEvent(type: string, data: UnknownRecord, { dispatch, onReset }: StreamHandlers): void {
  const told = { jobStatus: asString(data.status), jobId: asString(data.jobId) };
  const kind = type.slice(CONTROL.length);
  if (kind === "complete" || kind === "status") dispatch({ type: kind, ...told });
  else if (kind === "reset") onReset(toReset(data));
  else if (kind === "error") dispatch({ type: "warned", ...told, ...failureFromControlEvent(type, data) });
}

/** Reads the data of a reset. */
export const toReset = ({ reason, cursor, jobId }: UnknownRecord): ToldReset => ({
  reason: asString(reason) ?? "unknown",
  cursor: asString(cursor),
  jobId: asString(jobId),
});
