// One answer of the JSON address, for where streams do not get through. This is loaded when it is needed.

import { type ConnectionRequest, type StreamHandlers, toReset } from "./connection.js";
import { type Failure, failureFromAnswer, failureFromControlEvent } from "./error.js";
import { asRecord, asString, type JobStatus, parseJson, toJobEvent, type UnknownRecord } from "./event.js";
import type { State } from "./state.js";

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
/** The time for which a poll is held open. It is below the idle time-outs of proxies. */
const POLL_WAIT_S = 25;

/** Makes the request of a query. */
type MakeRequest = (query: Record<string, string>) => ConnectionRequest;

/** Asks the JSON address once, as the state of the stream wants it. */
export function poll(request: MakeRequest, state: State, handlers: StreamHandlers): Promise<Failure | PollResult> {
  const { task, view, rules } = state;
  // Only a poll that is known to get through is held open, and never so long that it would pass for dead.
  const isHeld = task === "poll" && view.status === "polling";
  return ask(request, isHeld ? Math.min(POLL_WAIT_S, Math.floor(rules.heartbeatTimeoutMs / 2000)) : 0, handlers);
}

/** Asks once, by a request that may be held open for `waitS`. */
async function ask(request: MakeRequest, waitS: number, handlers: StreamHandlers): Promise<Failure | PollResult> {
  const { fetch, url, jobId, signal } = request({ limit: `${MAX_EVENTS_PER_POLL}`, wait: `${waitS}` });
  const response = await fetch(url, "application/json");
  if ("error" in response) return response;
  // A job that is not there yet is waited for where the request may be held, and only there.
  if (response.status === 404 && waitS === 0) {
    await response.body?.cancel();
    return ask(request, APPEAR_WAIT_S, handlers);
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
