// One try to read: a stream until its end, or one answer of the JSON address. Says what it hears, decides nothing.

import { createParser } from "eventsource-parser";
import { type Lost, lost, refusal, told } from "./error.js";
import { type Fields, fields, type JobEvent, type JobStatus, jobEvent, parsed, type Reset, text } from "./event.js";

/** What a connection tells. */
export interface Heard {
  /** Where it stands before its first event. */
  position(cursor: string): void;
  retry(ms: number): void;
  reset(reset: Reset): void;
  /** What arrived together, in order. */
  events(events: JobEvent[]): void;
  warned(why: Lost): void;
  /** Something came, be it only a comment. */
  bytes(): void;
  complete(status: JobStatus | null): void;
}

export interface Polled {
  readonly isEmpty: boolean;
  /** The answer had all there is. */
  readonly isLevel: boolean;
  readonly jobStatus: JobStatus | null;
}

export type Ask = (url: string, accept: string) => Promise<Response>;

/** Events of one answer: as many as Jobcast gives. */
export const PAGE = 1000;

/** Resolves with why it ended; never while it lives. */
export async function stream(
  ask: Ask,
  url: string,
  jobId: string,
  signal: AbortSignal,
  heard: Heard,
): Promise<Lost | 204> {
  const response = await ask(url, "text/event-stream");
  if (response.status === 204) return 204;
  if (!response.ok) return refusal(response);
  const type = response.headers.get("Content-Type") ?? "";
  if (!/^text\/event-stream\s*(;|$)/i.test(type) || !response.body?.getReader) {
    return lost("client.content_type", "no answer of Jobcast", { isBlocked: true });
  }
  const position = response.headers.get("X-Jobcast-Cursor");
  if (position) heard.position(position);

  let ended: Lost | null = null;
  let isOver = false;
  let events: JobEvent[] = [];
  let cursor = "";
  const flush = () => {
    if (events.length > 0) heard.events(events);
    events = [];
  };
  const own = (type: string, data: Fields, id?: string) => {
    // in order: what came before goes first
    flush();
    if (id) heard.position(id);
    if (type === "stream.complete") {
      isOver = true;
      heard.complete(text(data.status));
    } else if (type === "stream.reset") heard.reset(resetBy(data));
    else if (type === "stream.bye") ended = told(type, data);
    else if (type === "stream.error") heard.warned(told(type, data));
  };
  const parser = createParser({
    onEvent({ id, event: type = "message", data }) {
      if (isOver || signal.aborted) return;
      const value = parsed(data);
      if (id !== undefined) cursor = id;
      // an empty id says: forget where you stood
      if (id === "") {
        flush();
        heard.position("");
      }
      if (type.startsWith("stream.")) own(type, fields(value), id);
      // without an id of its own it cannot be told from a repeat
      else events.push(jobEvent(jobId, type, value, cursor, id ?? ""));
    },
    onRetry: (ms) => heard.retry(ms),
  });
  const decoder = new TextDecoder();
  // The parser holds a CR at the end back, which may be half a CRLF. It is a line's end already: an LF is lent to it, and
  // taken off what comes next.
  let isLent = false;
  const reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (signal.aborted || done) break;
    let text = decoder.decode(value, { stream: true });
    if (isLent && text.startsWith("\n")) text = text.slice(1);
    isLent = text === "" ? isLent : text.endsWith("\r");
    parser.feed(isLent ? `${text}\n` : text);
    if (signal.aborted) break;
    flush();
    heard.bytes();
    if (ended) break;
  }
  return ended ?? lost("client.ended", "the stream ended before the job");
}

const resetBy = ({ reason, cursor }: Fields): Reset => ({ reason: text(reason) ?? "unknown", cursor: text(cursor) });

/** `url` with its query. */
export async function poll(
  ask: Ask,
  url: string,
  jobId: string,
  signal: AbortSignal,
  heard: Heard,
): Promise<Lost | Polled> {
  const response = await ask(url, "application/json");
  if (!response.ok) return refusal(response);
  const answer = fields(parsed(await response.text()));
  if (!Array.isArray(answer.events) || typeof answer.cursor !== "string") {
    return lost("client.content_type", "no answer of Jobcast", { isBlocked: true });
  }
  const { cursor, retryMs } = answer;
  const status = text(answer.status);
  const events = answer.events.map((one: unknown) =>
    jobEvent(jobId, "message", one, text(fields(one).cursor) ?? cursor),
  );
  if (!signal.aborted) {
    if (typeof retryMs === "number") heard.retry(retryMs);
    if (answer.reset) heard.reset(resetBy(fields(answer.reset)));
    if (events.length > 0) heard.events(events);
    heard.position(cursor);
    if (answer.complete === true) heard.complete(status);
  }
  return { isEmpty: events.length === 0, isLevel: events.length < PAGE, jobStatus: status };
}
