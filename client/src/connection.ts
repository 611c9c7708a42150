// One connection: a stream until its end, or one answer of the JSON address. It reports to its handlers and decides
// nothing; the decisions are made in state.ts.

import { createParser, type EventSourceMessage } from "eventsource-parser";
import { clientFailure, type Failure, failureFromControlEvent, failureFromResponse } from "./error.js";
import {
  asRecord,
  asString,
  type JobEvent,
  type JobStatus,
  parseJson,
  type Reset,
  toJobEvent,
  type UnknownRecord,
} from "./event.js";

/** The handlers of everything that arrives on a connection, called in the order of arrival. */
export interface StreamHandlers {
  /** The stream now stands at `cursor`; the empty cursor is the beginning. */
  onCursor(cursor: string): void;
  onRetry(ms: number): void;
  onReset(reset: Reset): void;
  /** All events of one chunk. */
  onEvents(events: JobEvent[]): void;
  /** A `stream.error`: Jobcast has a fault, and the stream stays open. */
  onWarning(failure: Failure): void;
  /** A chunk has arrived and was handled. It may have held no more than a comment. */
  onBytes(): void;
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
  readonly isEmpty: boolean;
  /** The answer held all events that there were. */
  readonly isCaughtUp: boolean;
  readonly jobStatus: JobStatus | null;
}

/** The most events in one answer of the JSON address; Jobcast gives no more. */
export const MAX_EVENTS_PER_POLL = 1000;

const notJobcast = () => clientFailure("client.content_type", "no answer of Jobcast", { isBlocked: true });

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
  if (!response.ok) return failureFromResponse(response);
  const contentType = response.headers.get("Content-Type") ?? "";
  if (!/^text\/event-stream\s*(;|$)/i.test(contentType) || !response.body?.getReader) return notJobcast();
  const cursor = response.headers.get("X-Jobcast-Cursor");
  if (cursor) handlers.onCursor(cursor);

  const parser = new StreamParser(jobId, signal, handlers);
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (signal.aborted || done) break;
    parser.feed(value);
    if (signal.aborted) break;
    handlers.onBytes();
    if (parser.bye) return parser.bye;
  }
  return clientFailure("client.ended", "the stream ended before the job");
}

/** The parser of one stream: bytes in, calls of the handlers out. */
class StreamParser {
  /** The `stream.bye` after which the stream is left. */
  bye: Failure | null = null;
  readonly #jobId: string;
  readonly #signal: AbortSignal;
  readonly #handlers: StreamHandlers;
  readonly #decoder = new TextDecoder();
  readonly #parser = createParser({
    onEvent: (message) => this.#onMessage(message),
    onRetry: (ms) => this.#handlers.onRetry(ms),
  });
  /** Events of the current chunk that were not handed on yet. */
  #events: JobEvent[] = [];
  #cursor = "";
  #isComplete = false;
  #isLfLent = false;

  constructor(jobId: string, signal: AbortSignal, handlers: StreamHandlers) {
    this.#jobId = jobId;
    this.#signal = signal;
    this.#handlers = handlers;
  }

  /**
   * Parses a chunk and hands its events on.
   *
   * The library holds a CR at the end of a chunk back, since it may be half a CRLF. It ends a line already, so an LF is
   * lent to it, and an LF at the start of the next chunk is taken off again.
   */
  feed(bytes: Uint8Array): void {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (this.#isLfLent && text.startsWith("\n")) text = text.slice(1);
    if (text !== "") this.#isLfLent = text.endsWith("\r");
    this.#parser.feed(this.#isLfLent ? `${text}\n` : text);
    if (!this.#signal.aborted) this.#flush();
  }

  #flush(): void {
    if (this.#events.length > 0) this.#handlers.onEvents(this.#events);
    this.#events = [];
  }

  #onMessage({ id, event: type = "message", data }: EventSourceMessage): void {
    if (this.#isComplete || this.#signal.aborted) return;
    const value = parseJson(data);
    if (id !== undefined) this.#cursor = id;
    // By the standard an empty id clears the place: the next connection starts from the beginning.
    if (id === "") {
      this.#flush();
      this.#handlers.onCursor("");
    }
    if (type.startsWith("stream.")) this.#onControlEvent(type, asRecord(value), id);
    // An event without an id of its own gets an empty one: it cannot be told from a repeat.
    else this.#events.push(toJobEvent(this.#jobId, type, value, this.#cursor, id ?? ""));
  }

  /** Handles an event of Jobcast itself, after all events that came before it. Unknown ones are ignored. */
  #onControlEvent(type: string, data: UnknownRecord, id: string | undefined): void {
    this.#flush();
    if (id) this.#handlers.onCursor(id);
    switch (type) {
      case "stream.complete":
        this.#isComplete = true;
        return this.#handlers.onComplete(asString(data.status));
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
  if (!response.ok) return failureFromResponse(response);
  const answer = asRecord(parseJson(await response.text()));
  if (!Array.isArray(answer.events) || typeof answer.cursor !== "string") return notJobcast();
  const { cursor, retryMs } = answer;
  const jobStatus = asString(answer.status);
  const events = answer.events.map((data: unknown) =>
    toJobEvent(jobId, "message", data, asString(asRecord(data).cursor) ?? cursor),
  );
  if (!signal.aborted) {
    if (typeof retryMs === "number") handlers.onRetry(retryMs);
    if (answer.reset) handlers.onReset(toReset(asRecord(answer.reset)));
    if (events.length > 0) handlers.onEvents(events);
    handlers.onCursor(cursor);
    if (answer.complete === true) handlers.onComplete(jobStatus);
  }
  return { isEmpty: events.length === 0, isCaughtUp: events.length < MAX_EVENTS_PER_POLL, jobStatus };
}
