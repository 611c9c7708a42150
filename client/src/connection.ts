// One connection: a stream until its end, or one answer of the JSON address. It reports to its handlers and decides
// nothing; the decisions are made in state.ts.

import { createParser, type EventSourceMessage } from "eventsource-parser";
import { clientFailure, type Failure, failureFromAnswer, failureFromControlEvent, mediaType } from "./error.js";
import {
  asRecord,
  asString,
  asUniquePart,
  type JobEvent,
  type JobStatus,
  parseJson,
  type Reset,
  toJobEvent,
  type UniquePart,
  type UnknownRecord,
} from "./event.js";

/** The handlers of everything that arrives on a connection, called in the order of arrival. */
export interface StreamHandlers {
  /** The answer is Jobcast's; its events are told apart by this part of theirs. */
  onUnique(part: UniquePart): void;
  /** The stream now stands at `cursor`; the empty cursor is the beginning. */
  onCursor(cursor: string): void;
  onRetry(ms: number): void;
  onReset(reset: Reset): void;
  /** All events of one chunk. Returns the number of those that are no repeats. */
  onEvents(events: JobEvent[]): number;
  onStatus(status: JobStatus | null): void;
  /** All events that there were when the connection was made have arrived. */
  onCaughtUp(): void;
  /** A `stream.error`: Jobcast has a fault, and the stream stays open. */
  onWarning(failure: Failure): void;
  /** A chunk has arrived and was handled. */
  onBytes(hasHeartbeat: boolean): void;
  onComplete(status: JobStatus | null): void;
}

/** A request of one connection. */
export interface ConnectionRequest {
  /** Fetches with the credentials of the stream. */
  readonly fetch: (url: string, accept: string) => Promise<Response>;
  /** The address, with its query. */
  readonly url: string;
  readonly jobId: string;
  /** Nothing is reported any more once it is aborted. */
  readonly signal: AbortSignal;
}

export interface PollResult {
  /** The answer brought nothing new. */
  readonly isEmpty: boolean;
  /** The answer held all events that there were. */
  readonly isCaughtUp: boolean;
  readonly isComplete: boolean;
  readonly jobStatus: JobStatus | null;
}

/** The most events in one answer of the JSON address; Jobcast gives no more. */
export const MAX_EVENTS_PER_POLL = 1000;
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
  if (response.status === 204) return "noContent";
  if (!response.ok || mediaType(response) !== "text/event-stream") return failureFromAnswer(response);
  const reader = response.body?.getReader?.();
  if (!reader) return clientFailure("client.content_type", "fetch cannot stream here", { isBlocked: true });
  handlers.onUnique(asUniquePart(response.headers.get("X-Jobcast-Unique")));

  const parser = new StreamParser(jobId, signal, handlers);
  for (;;) {
    const { done, value } = await reader.read();
    if (signal.aborted || done) break;
    parser.feed(value);
    if (signal.aborted) break;
    handlers.onBytes(parser.hasHeartbeat);
    if (parser.bye) return parser.bye;
  }
  return clientFailure("client.ended", "the stream ended before the job");
}

/** The parser of one stream: bytes in, calls of the handlers out. */
class StreamParser {
  /** The `stream.bye` after which the stream is left. */
  bye: Failure | null = null;
  /** The newest chunk held a heartbeat. */
  hasHeartbeat = false;
  readonly #jobId: string;
  readonly #signal: AbortSignal;
  readonly #handlers: StreamHandlers;
  // The parser takes one BOM off, and the decoder must not take another.
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #parser = createParser({
    onEvent: (message) => this.#onMessage(message),
    onId: (id) => {
      this.#cursor = id;
    },
    onRetry: (ms) => this.#handlers.onRetry(ms),
    onComment: (text) => {
      this.hasHeartbeat ||= text === HEARTBEAT;
      if (text !== LIVE || this.#isOver) return;
      this.#flush();
      this.#handlers.onCaughtUp();
    },
  });
  /** Events of the current chunk that were not handed on yet. */
  #events: JobEvent[] = [];
  /** The newest id of the stream, and the one that was handed on. */
  #cursor: string | null = null;
  #toldCursor: string | null = null;
  #isComplete = false;

  constructor(jobId: string, signal: AbortSignal, handlers: StreamHandlers) {
    this.#jobId = jobId;
    this.#signal = signal;
    this.#handlers = handlers;
  }

  get #isOver(): boolean {
    return this.#isComplete || this.#signal.aborted;
  }

  /** Parses a chunk and hands its events on. */
  feed(bytes: Uint8Array): void {
    this.hasHeartbeat = false;
    this.#parser.feed(this.#decoder.decode(bytes, { stream: true }));
    if (!this.#isOver) this.#flush();
  }

  /** Hands on the events, and a place that came without an event. */
  #flush(): void {
    const events = this.#events;
    this.#events = [];
    if (events.length > 0) this.#handlers.onEvents(events);
    if (this.#signal.aborted || this.#cursor === null || this.#cursor === this.#toldCursor) return;
    this.#toldCursor = this.#cursor;
    this.#handlers.onCursor(this.#cursor);
  }

  #onMessage({ id, event: type = "message", data }: EventSourceMessage): void {
    if (this.#isOver) return;
    const value = parseJson(data);
    // By the standard an empty id clears the place: the next connection starts from the beginning.
    if (id === "") this.#flush();
    if (type.startsWith("stream.")) this.#onControlEvent(type, asRecord(value));
    // An event without an id of its own gets an empty one: it cannot be told from a repeat.
    else this.#events.push(toJobEvent(this.#jobId, type, value, this.#cursor ?? "", id ?? ""));
  }

  /** Handles an event of Jobcast itself, after all events that came before it. Unknown ones are ignored. */
  #onControlEvent(type: string, data: UnknownRecord): void {
    this.#flush();
    switch (type) {
      case "stream.complete":
        this.#isComplete = true;
        return this.#handlers.onComplete(asString(data.status));
      case "stream.status":
        return this.#handlers.onStatus(asString(data.status));
      case "stream.reset":
        return this.#handlers.onReset(toReset(data));
      case "stream.bye":
        this.bye = failureFromControlEvent(type, data);
        return;
      case "stream.error":
        return this.#handlers.onWarning(failureFromControlEvent(type, data));
    }
  }
}

const toReset = ({ reason, cursor }: UnknownRecord): Reset => ({
  reason: asString(reason) ?? "unknown",
  cursor: asString(cursor),
});

/** Asks the JSON address once. */
export async function poll(
  { fetch, url, jobId, signal }: ConnectionRequest,
  handlers: StreamHandlers,
): Promise<Failure | PollResult> {
  const response = await fetch(url, "application/json");
  if (!response.ok) return failureFromAnswer(response);
  const text = await response.text();
  const answer = asRecord(parseJson(text));
  if (!Array.isArray(answer.events) || typeof answer.cursor !== "string") return failureFromAnswer(response, text);
  const { cursor, retryMs, reset, complete } = answer;
  const jobStatus = asString(answer.status);
  const events = answer.events.map((data: unknown) =>
    toJobEvent(jobId, "message", data, asString(asRecord(data).cursor) ?? cursor),
  );
  let news = 0;
  if (!signal.aborted) {
    handlers.onUnique(asUniquePart(answer.unique));
    if (typeof retryMs === "number") handlers.onRetry(retryMs);
    if (reset) handlers.onReset(toReset(asRecord(reset)));
    if (events.length > 0) news = handlers.onEvents(events);
    handlers.onCursor(cursor);
    if (complete === true) handlers.onComplete(jobStatus);
  }
  return {
    // After a reset all events are new; an answer that always has one must not be asked for again and again.
    isEmpty: news === 0 || !!reset,
    isCaughtUp: events.length < MAX_EVENTS_PER_POLL,
    isComplete: complete === true,
    jobStatus,
  };
}
