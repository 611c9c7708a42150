// The state of a stream and the one pure function that changes it. There is no timer, no fetch and no clock in here.
// The shell (core.ts) does what the new state asks for: it runs `task` whenever `taskId` has changed, and dispatches
// `timer` when `timerAtMs` has come.

import { clientFailure, type Failure, JobStreamError, tokenFailure } from "./error.js";
import type { JobStatus } from "./event.js";

interface Common {
  /** The number of failed tries in a row; 0 while events come. */
  readonly attempt: number;
  /** The job's status, as far as it is known. */
  readonly jobStatus: JobStatus | null;
  /** The events that there were at the beginning were delivered: those that follow are new. */
  readonly isCaughtUp: boolean;
}

/** The public state of a stream, without its cursor. */
export type View = Common &
  (
    | {
        readonly status: "connecting" | "open" | "polling";
        readonly retryInMs: null;
        /** The error of the last try, or a fault that Jobcast reports while the stream stays open. */
        readonly error: JobStreamError | null;
      }
    | { readonly status: "retrying"; readonly retryInMs: number; readonly error: JobStreamError }
    | { readonly status: "failed"; readonly retryInMs: null; readonly error: JobStreamError }
    | { readonly status: "complete" | "closed"; readonly retryInMs: null; readonly error: null }
  );

/** Limits and possibilities of a stream, from its options. */
export interface Rules {
  readonly initialMs: number;
  readonly maxMs: number;
  readonly factor: number;
  readonly jitter: number;
  readonly maxAttempts: number;
  readonly heartbeatTimeoutMs: number;
  /** A stream that shows nothing for so long counts as blocked. */
  readonly fallbackAfterMs: number;
  readonly canStream: boolean;
  readonly canPoll: boolean;
}

/**
 * The work that the shell is to do. `catchUp` reads all events that there are and then rests, because another tab has
 * the connection. `takeOver` takes the connection from that tab.
 */
export type Task = "none" | "stream" | "poll" | "catchUp" | "takeOver";

/**
 * The faults that the current stream has reported by `stream.error`. `reported`: the rest of the chunk that held the
 * report has still to come, and says nothing about the stream. `settled`: the next bytes show that it is open.
 */
type Warning = "none" | "reported" | "settled";

/**
 * The sign that the current stream gets through. `none`: no byte has come. `opened`: its first bytes have, and nothing new
 * after them. `news`: it has brought events.
 */
type Flow = "none" | "opened" | "news";

export interface State {
  readonly rules: Rules;
  readonly view: View;
  readonly task: Task;
  /** The number of the task. When it changes, the shell ends the old task and begins the new one. */
  readonly taskId: number;
  /** The time at which the shell dispatches `timer`. */
  readonly timerAtMs: number;
  /** The time until which silence is allowed. After that the connection is lost. */
  readonly deadlineMs: number;
  /** The time at which the task began. */
  readonly startedMs: number;
  /** The `retry:` of the stream, which replaces `initialMs`. */
  readonly toldRetryMs: number | null;
  /** The time before which the server does not want another try. */
  readonly notBeforeMs: number;
  /** The wait before the current try. A stream must stay open as long, and at least `initialMs`, to count as stable. */
  readonly lastWaitMs: number;
  readonly openedMs: number;
  readonly warning: Warning;
  /** The address has answered as a Jobcast does, so it is the right one. */
  readonly hasAnswered: boolean;
  /** The number of failed tries in a row. It is 0 again after a stream that stayed open. */
  readonly failures: number;
  /** The code of the last failure, and how many with that code came in a row. */
  readonly lastCode: string;
  readonly lastCodeCount: number;
  readonly flow: Flow;
  /** The number of streams in a row that looked as if something in between ended or held them. */
  readonly suspectStreams: number;
  /** The task waits for the token function, not for the server. */
  readonly isTokenAsked: boolean;
  /** The number of times that streaming was tried again while polling. */
  readonly probes: number;
  /** The time of the next such try. */
  readonly probeAtMs: number;
  /** The view of the leading tab, as far as it was told to this follower. */
  readonly leaderView: View | null;
  readonly isFollower: boolean;
}

/** The job that an action is of, on a connection of several. */
interface OfJob {
  readonly jobId?: string | null;
}

export type Action =
  | { readonly type: "start" | "follow" | "close" }
  /** The connection is to be made anew, for what is missing or for other jobs. */
  | { readonly type: "again" }
  /** Another stream of this page has the connection, and this view of it. */
  | { readonly type: "carried"; readonly view: View }
  /** All events that there were when the connection was made have arrived, or the stream begins anew. */
  | { readonly type: "caughtUp"; readonly isCaughtUp: boolean }
  /** The time `timerAtMs` has come. */
  | { readonly type: "timer"; readonly random: number }
  /** The token function was called, or has answered. */
  | { readonly type: "token"; readonly isAsked: boolean }
  /** Bytes have arrived, and perhaps new events or a heartbeat in them. */
  | { readonly type: "bytes"; readonly hasEvents: boolean; readonly hasHeartbeat?: boolean }
  | ({ readonly type: "status"; readonly jobStatus: JobStatus | null } & OfJob)
  | {
      readonly type: "polled";
      readonly isEmpty: boolean;
      readonly isCaughtUp: boolean;
      readonly jobStatus: JobStatus | null;
    }
  | { readonly type: "retry"; readonly ms: number }
  | ({ readonly type: "warned" } & Failure & OfJob)
  | ({ readonly type: "lost"; readonly random: number } & Failure)
  | ({ readonly type: "complete"; readonly jobStatus: JobStatus | null } & OfJob)
  /** The browser woke the page, or the machine has slept. With `isCut` no open connection can be trusted. */
  | { readonly type: "wake"; readonly isCut: boolean; readonly sleptMs?: number }
  /** The leading tab has a new view. */
  | { readonly type: "leader"; readonly view: View }
  /** The leading tab is alive. */
  | { readonly type: "leaderAlive" };

/** The first try to stream again comes after so many times `fallbackAfterMs`, the next after twice as many, … */
const FIRST_PROBE_FACTOR = 2;
const MAX_PROBE_FACTOR = 40;
/** Least time between two tries of a stream that is woken. */
const MIN_WAKE_MS = 1000;
/** The shortest time from one poll to the next, unless there is more to read at once. */
const MIN_POLL_MS = 250;
/** The shortest `retry:` that is heeded. Without it a server that says 0 would be asked without a pause. */
const MIN_RETRY_MS = 100;
/** After so many suspect streams in a row events are polled. */
const MAX_SUSPECT_STREAMS = 3;

/** The view of a stream that begins. */
export const CONNECTING: View = {
  status: "connecting",
  attempt: 0,
  jobStatus: null,
  isCaughtUp: false,
  retryInMs: null,
  error: null,
};

export function initialState(rules: Rules): State {
  return {
    rules,
    view: CONNECTING,
    task: "none",
    taskId: 0,
    timerAtMs: Infinity,
    deadlineMs: Infinity,
    startedMs: 0,
    toldRetryMs: null,
    notBeforeMs: 0,
    lastWaitMs: 0,
    openedMs: 0,
    warning: "none",
    hasAnswered: false,
    failures: 0,
    lastCode: "",
    lastCodeCount: 0,
    flow: "none",
    suspectStreams: 0,
    isTokenAsked: false,
    probes: 0,
    probeAtMs: Infinity,
    leaderView: null,
    isFollower: false,
  };
}

/** True once a stream has ended. Only a new start, or a leader that goes on, leads out of it. */
export const isOver = ({ status }: View): boolean =>
  status === "complete" || status === "failed" || status === "closed";

/** True while a follower reads the events that its leader has and it has not, or waits to try that again. */
export const isCatchingUp = ({ isFollower, task, view, timerAtMs }: State): boolean =>
  isFollower && (task === "catchUp" || (view.status === "retrying" && timerAtMs < Infinity));

/** Returns the state after `action`. */
export function reduce(state: State, action: Action, nowMs: number): State {
  if (isOver(state.view) && !isHeardAfterEnd(state, action)) return state;
  const draft: Draft = { ...state };
  apply(draft, action, nowMs);
  return draft;
}

/** Returns the wait before try number `attempt` (from 1). `random`, from 0 to 1, chooses within the jitter. */
export function backoffMs(rules: Rules, retryMs: number | null, attempt: number, random: number): number {
  const firstMs = retryMs ?? rules.initialMs;
  const longestMs = Math.min(firstMs * rules.factor ** (attempt - 1), Math.max(rules.maxMs, firstMs));
  return longestMs * (1 - rules.jitter + rules.jitter * random);
}

/** A copy of the state that `reduce` changes before anybody sees it. */
type Draft = { -readonly [Field in keyof State]: State[Field] };

const isHeardAfterEnd = ({ view }: State, { type }: Action): boolean =>
  /^(start|follow|carried|close)$/.test(type) || (type === "leader" && view.status === "failed");

function apply(d: Draft, action: Action, nowMs: number): void {
  switch (action.type) {
    case "start":
    case "follow":
      return start(d, action.type === "follow", nowMs);
    case "again":
      return connect(d, nowMs, !d.isFollower && d.view.status === "polling" ? "poll" : defaultTask(d));
    case "carried": {
      const { jobStatus, isCaughtUp } = d.view;
      d.isFollower = true;
      d.view = { ...action.view, jobStatus, isCaughtUp };
      return endTask(d, Infinity);
    }
    case "close":
      // The state that a stream has ended with stays.
      return isOver(d.view) ? endTask(d, Infinity) : end(d, "closed");
    case "complete":
      return end(d, "complete", { attempt: 0, jobStatus: action.jobStatus ?? d.view.jobStatus, isCaughtUp: true });
    case "status":
      if (action.jobStatus && action.jobStatus !== d.view.jobStatus)
        d.view = { ...d.view, jobStatus: action.jobStatus };
      return;
    case "caughtUp":
      return setCaughtUp(d, action.isCaughtUp);
    case "token":
      d.isTokenAsked = action.isAsked;
      d.deadlineMs = nowMs + patienceMs(d);
      return setTimer(d);
    case "retry":
      d.toldRetryMs = Math.max(action.ms, MIN_RETRY_MS);
      return;
    case "bytes":
      return onBytes(d, action, nowMs);
    case "polled":
      return onPolled(d, action, nowMs);
    case "warned":
      return onWarned(d, action, nowMs);
    case "lost":
      return onLost(d, action, action.random, nowMs);
    case "wake":
      d.notBeforeMs -= action.sleptMs ?? 0;
      return onWake(d, action.isCut, nowMs);
    case "leader":
      d.leaderView = action.view;
      return followLeader(d, nowMs);
    case "leaderAlive":
      return followLeader(d, nowMs);
    case "timer":
      return onTimer(d, action.random, nowMs);
  }
}

// ---- steps that the cases share

/** Sets the view. Fields that `changes` leaves out stay, but for the error and the wait, which are cleared. */
function setView(d: Draft, status: View["status"], changes?: Partial<View>): void {
  d.view = { ...d.view, retryInMs: null, error: null, ...changes, status } as View;
}

function end(d: Draft, status: View["status"], changes?: Partial<View>): void {
  setView(d, status, changes);
  endTask(d, Infinity);
}

function endTask(d: Draft, timerAtMs: number): void {
  d.task = "none";
  d.taskId += 1;
  d.timerAtMs = timerAtMs;
  d.deadlineMs = Infinity;
}

function setCaughtUp(d: Draft, isCaughtUp: boolean): void {
  if (d.view.isCaughtUp !== isCaughtUp) d.view = { ...d.view, isCaughtUp };
}

function start(d: Draft, isFollower: boolean, nowMs: number): void {
  d.isFollower = isFollower;
  d.leaderView = null;
  d.notBeforeMs = d.lastWaitMs = 0;
  forgetFailures(d);
  setView(d, "connecting", { attempt: 0 });
  connect(d, nowMs);
}

const defaultTask = ({ isFollower, rules }: State): Task =>
  isFollower ? "catchUp" : rules.canStream ? "stream" : "poll";

/** Begins a task that connects, with a deadline for its first sign of life. */
function connect(d: Draft, nowMs: number, task = defaultTask(d)): void {
  const { view } = d;
  const isPolling = view.status === "polling" && task !== "catchUp";
  // A try to stream again while polling does not show in the view.
  if (!isPolling && task !== "takeOver") setView(d, "connecting", { error: view.error, attempt: d.failures });
  endTask(d, 0);
  d.task = task;
  d.startedMs = nowMs;
  d.warning = "none";
  d.flow = "none";
  d.isTokenAsked = false;
  d.deadlineMs = nowMs + patienceMs(d);
  setTimer(d);
}

/** Returns how long the task may be silent at its beginning. */
function patienceMs({ rules, view, task }: State): number {
  const mayBeSilent = task === "takeOver" || !rules.canPoll || (task === "poll" && view.status === "polling");
  const patienceMs = mayBeSilent ? Infinity : rules.fallbackAfterMs * (task === "stream" ? 1 : 2);
  return Math.min(patienceMs, rules.heartbeatTimeoutMs);
}

/** Sets the one timer to whatever comes first. */
function setTimer(d: Draft): void {
  d.timerAtMs = Math.min(d.deadlineMs, d.view.status === "open" && d.failures > 0 ? stableAtMs(d) : Infinity);
}

/** Returns the time at which an open stream counts as stable. */
const stableAtMs = ({ openedMs, rules, lastWaitMs }: State): number => openedMs + Math.max(rules.initialMs, lastWaitMs);

const isStable = (d: State, nowMs: number): boolean => d.view.status === "open" && nowMs >= stableAtMs(d);

/** Counts the tries in a row anew. */
function forgetFailures(d: Draft): void {
  d.failures = d.lastCodeCount = 0;
}

// ---- the cases

function onBytes(d: Draft, bytes: Extract<Action, { type: "bytes" }>, nowMs: number): void {
  if (d.task !== "stream") return;
  const { hasEvents, hasHeartbeat } = bytes;
  const { status, error } = d.view;
  d.deadlineMs = nowMs + d.rules.heartbeatTimeoutMs;
  if (hasEvents) d.flow = "news";
  if (status === "open") {
    // A fault that Jobcast has reported is over with the next event.
    if (hasEvents && error) setView(d, "open");
    // A heartbeat, or anything after a while, gets through only where streams do.
    if (hasHeartbeat || isStable(d, nowMs)) d.suspectStreams = d.probes = 0;
    // A heartbeat comes when there is nothing else to say.
    if (hasHeartbeat) setCaughtUp(d, true);
  } else if (d.warning === "reported" && !hasEvents) {
    d.warning = "settled";
  } else {
    d.openedMs = nowMs;
    d.hasAnswered = true;
    if (d.flow === "none") d.flow = "opened";
    d.probeAtMs = Infinity;
    setView(d, "open", { attempt: 0, error: d.warning !== "none" && !hasEvents ? error : null });
  }
  setTimer(d);
}

function onPolled(d: Draft, result: Extract<Action, { type: "polled" }>, nowMs: number): void {
  const { view, rules, task } = d;
  const jobStatus = result.jobStatus ?? view.jobStatus;
  if (task === "catchUp") {
    if (!result.isCaughtUp && !result.isEmpty) return connect(d, nowMs);
    end(d, "connecting", { attempt: 0, jobStatus, isCaughtUp: true });
    return followLeader(d, nowMs);
  }
  forgetFailures(d);
  d.hasAnswered = true;
  if (view.status !== "polling" && rules.canStream) d.probeAtMs = nowMs + probeDelayMs(d);
  if (view.status !== "polling" || view.jobStatus !== jobStatus || view.attempt > 0)
    setView(d, "polling", { attempt: 0, jobStatus });
  if (result.isCaughtUp) setCaughtUp(d, true);
  if (nowMs >= d.probeAtMs) return probe(d, nowMs);
  // A server that does not hold the request would otherwise be asked without a pause, and one of a busy job for each event.
  const pauseMs = result.isEmpty
    ? Math.max(d.toldRetryMs ?? rules.initialMs, MIN_POLL_MS)
    : result.isCaughtUp
      ? MIN_POLL_MS
      : 0;
  const nextMs = d.startedMs + pauseMs;
  if (nextMs > nowMs) endTask(d, nextMs);
  else connect(d, nowMs, "poll");
}

/** Tries while polling whether streams get through again. */
function probe(d: Draft, nowMs: number): void {
  d.probes += 1;
  d.probeAtMs = nowMs + probeDelayMs(d);
  connect(d, nowMs, "stream");
}

const probeDelayMs = ({ rules, probes }: State): number =>
  rules.fallbackAfterMs * Math.min(FIRST_PROBE_FACTOR * 2 ** probes, MAX_PROBE_FACTOR);

function onWarned(d: Draft, { error, waitMs = 0 }: Failure, nowMs: number): void {
  if (!error.retryable) return end(d, "failed", { error });
  d.warning = "reported";
  d.hasAnswered = true;
  d.notBeforeMs = nowMs + waitMs;
  setView(d, d.view.status, { error });
}

function onLost(d: Draft, failure: Failure, random: number, nowMs: number): void {
  const { rules, task, view } = d;
  if (failure.from === "jobcast") d.hasAnswered = true;
  // A new token is at hand. One that lasts no longer than a moment waits as after any other loss.
  if (failure.isTokenOver && isStable(d, nowMs)) return connect(d, nowMs);
  const isSuspected = isSuspect(d, failure, nowMs);
  if (isSuspected) d.suspectStreams += 1;
  const isHeld = isSuspected && d.suspectStreams >= MAX_SUSPECT_STREAMS;
  const isBlocked = view.status === "polling" || failure.isBlocked || isHeld;
  if (task === "stream" && isBlocked && rules.canPoll && failure.error.retryable) {
    if (view.status !== "polling") setView(d, "connecting", { error: failure.error });
    return connect(d, nowMs, "poll");
  }
  // The stream's own report says more than the loss that followed it.
  const error = ((d.warning !== "none" || view.status === "open") && view.error) || failure.error;
  if (isStable(d, nowMs)) forgetFailures(d);
  d.failures += 1;
  d.lastCodeCount = error.code === d.lastCode ? d.lastCodeCount + 1 : 1;
  d.lastCode = error.code;
  const attempt = d.failures;
  if (!error.retryable || attempt > rules.maxAttempts) return end(d, "failed", { attempt, error });
  if (isHopeless(d, failure)) {
    const final = new JobStreamError(error.code, error.message, false, error.status);
    return end(d, "failed", { attempt, error: final });
  }
  const ownMs = backoffMs(rules, d.toldRetryMs, attempt, random);
  const serverMs = Math.max(failure.waitMs ?? 0, d.notBeforeMs - nowMs);
  const retryInMs = Math.round(failure.isShared ? serverMs + ownMs : Math.max(serverMs, ownMs));
  setView(d, "retrying", { attempt, retryInMs, error });
  endTask(d, nowMs + retryInMs);
  d.lastWaitMs = retryInMs;
  d.notBeforeMs = nowMs + serverMs;
}

/**
 * Tells if something in between seems to have ended or held the stream: it fell silent, it ended before it was stable,
 * it broke before it brought anything, or a strange answer came in its place.
 */
function isSuspect(d: State, { error, from }: Failure, nowMs: number): boolean {
  if (d.task !== "stream" || d.warning !== "none" || from === "jobcast") return false;
  if (isStable(d, nowMs)) return error.code === "client.timeout";
  const isStrange = from === "between" && (error.status ?? 500) < 500;
  return isStrange || d.flow === "opened" || error.code === "client.ended";
}

/** Tells if so many tries have failed alike that another would, too. */
const isHopeless = ({ lastCodeCount, hasAnswered }: State, { giveUpAfter = Infinity, from }: Failure): boolean =>
  lastCodeCount >= giveUpAfter && !(from === "between" && hasAnswered);

function onWake(d: Draft, isCut: boolean, nowMs: number): void {
  const { view, rules, task, isFollower } = d;
  if (isFollower && !isCatchingUp(d)) return;
  if (view.status === "retrying") {
    // The waits begin anew. Failures of one kind are counted on, so that they have an end.
    d.failures = 0;
    // The wait that the server asked for holds even now. So does a pause since the last try: many streams wake each other.
    d.timerAtMs = Math.min(d.timerAtMs, Math.max(d.notBeforeMs, d.startedMs + MIN_WAKE_MS));
    if (nowMs >= d.timerAtMs) return connect(d, nowMs);
    d.view = { ...view, attempt: 0, retryInMs: Math.round(d.timerAtMs - nowMs) };
  } else if (view.status === "polling") {
    if (isCut && rules.canStream) probe(d, nowMs);
    else if (task === "none") connect(d, nowMs, "poll");
  } else if (isCut) connect(d, nowMs);
  else if (view.status === "open") {
    // The stream may have died while the page slept. A living one has a heartbeat well within half the time-out.
    d.deadlineMs = Math.min(d.deadlineMs, Math.max(nowMs, d.deadlineMs - rules.heartbeatTimeoutMs / 2));
    setTimer(d);
  }
}

function onTimer(d: Draft, random: number, nowMs: number): void {
  const { view, task } = d;
  if (nowMs >= d.deadlineMs && task !== "takeOver") {
    const isBlocked = task === "stream" && view.status !== "open";
    const silence = clientFailure("client.timeout", "nothing came", { isBlocked });
    return onLost(d, d.isTokenAsked ? tokenFailure("no answer") : silence, random, nowMs);
  }
  if (nowMs < d.timerAtMs) return;
  if (view.status === "open" && !d.isFollower) {
    forgetFailures(d);
    return setTimer(d);
  }
  if (view.status === "retrying") return connect(d, nowMs);
  // A follower's leader has been silent for too long, or the pause between two polls is over.
  connect(d, nowMs, d.isFollower ? "takeOver" : "poll");
}

/** Shows the view of the leading tab, and sets the time after which its silence is doubted. */
function followLeader(d: Draft, nowMs: number): void {
  const { leaderView, rules } = d;
  if (!d.isFollower || isCatchingUp(d)) return;
  const isLeaderIdle = leaderView?.status === "retrying" || leaderView?.status === "failed";
  d.timerAtMs = isLeaderIdle ? Infinity : nowMs + rules.heartbeatTimeoutMs * 1.5;
  if (leaderView && leaderView.status !== "closed") d.view = leaderView;
}
