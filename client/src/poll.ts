// One answer of the JSON address, for where streams do not get through. This is loaded when it is needed.

import { type ConnectionRequest, type StreamHandlers, toReset } from "./connection.js";
import { type Failure, failureFromAnswer, failureFromControlEvent } from "./error.js";
import { asRecord, asString, type JobStatus, parseJson, toJobEvent, type UnknownRecord } from "./event.js";

export interface PollResult {
  /** The answer brought nothing new. */
  readonly isEmpty: boolean;
  /** The answer held all events that there were. */
  readonly isCaughtUp: boolean;
  readonly jobStatus: JobStatus | null;
}

/** The most events in one answer of the JSON address; Jobcast gives no more. */
const MAX_EVENTS_PER_POLL = 1000;
/** The time to wait for a job that is not there yet; Jobcast itself may answer sooner. */
const APPEAR_WAIT_S = 10;
/** Asks the JSON address once. `request` makes the request of a query; it may be held open for `waitS`. */
export async function poll(
  request: (query: Record<string, string>) => ConnectionRequest,
  waitS: number,
  handlers: StreamHandlers,
): Promise<Failure | PollResult> {
  const { fetch, url, jobId, signal } = request({ limit: `${MAX_EVENTS_PER_POLL}`, wait: `${waitS}` });
  const response = await fetch(url, "application/json");
  if ("error" in response) return response;
  // A job that is not there yet is waited for where the request may be held, and only there.
  if (response.status === 404 && waitS === 0) {
    await response.body?.cancel();
    return poll(request, APPEAR_WAIT_S, handlers);
  }
  if (!response.ok) return failureFromAnswer(response);
  const text = await response.text();
  const answer = asRecord(parseJson(text));
  if (!Array.isArray(answer.events) || typeof answer.cursor !== "string") return failureFromAnswer(response, text);
  const { cursor, retryMs, reset, resets, complete } = answer;
  const jobStatus = asString(answer.status);
  const events = answer.events.map((data: unknown) =>
    toJobEvent(jobId, "message", data, asString(asRecord(data).cursor) ?? cursor),
  );
  let news = 0;
  if (!signal.aborted) {
    handlers.onAnswer(answer.unique);
    if (typeof retryMs === "number") handlers.dispatch({ type: "retry", ms: retryMs });
    for (const one of Array.isArray(resets) ? resets : [reset]) if (one) handlers.onReset(toReset(asRecord(one)));
    if (events.length > 0) news = handlers.onEvents(events);
    handlers.onCursor(cursor);
    for (const [jobId, job] of Object.entries(asRecord(answer.jobs))) tellJob(jobId, asRecord(job), handlers);
    if (complete === true) handlers.dispatch({ type: "complete", jobStatus });
  }
  return {
    // After a reset all events are new; an answer that always has one must not be asked for again and again.
    isEmpty: news === 0 || !!reset || !!resets,
    isCaughtUp: events.length < MAX_EVENTS_PER_POLL,
    jobStatus,
  };
}

/** Tells how one job of a set stands, after its events. */
function tellJob(jobId: string, { status, complete, error }: UnknownRecord, { dispatch }: StreamHandlers): void {
  const jobStatus = asString(status);
  if (error) {
    const failure = failureFromControlEvent("stream.error", { retryable: false, ...asRecord(error) });
    dispatch({ type: "warned", jobId, ...failure });
  } else dispatch({ type: complete === true ? "complete" : "status", jobStatus, jobId });
}
