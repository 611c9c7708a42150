// What a stream does next: one pure function. No timer, no fetch, no clock in here; the shell (core.ts) does what the
// new state asks for: it runs `task` whenever `run` is a new number, and says `time` when `dueMs` has come.

import type { JobStreamError, Lost } from "./error.js";
import type { JobStatus } from "./event.js";

interface Common {
  /** Failed tries in a row; 0 again after a stream that stayed open. */
  readonly attempt: number;
  /** As far as it is known. */
  readonly jobStatus: JobStatus | null;
}

/** The state of a stream, without its cursor. */
export type View = Common &
  (
    | {
        readonly status: "connecting" | "open" | "polling";
        readonly retryInMs: null;
        /** Of the try before, or what Jobcast tells of its source while the stream stays open. */
        readonly error: JobStreamError | null;
      }
    | { readonly status: "retrying"; readonly retryInMs: number; readonly error: JobStreamError }
    | { readonly status: "failed"; readonly retryInMs: null; readonly error: JobStreamError }
    | { readonly status: "complete" | "closed"; readonly retryInMs: null; readonly error: null }
  );

export interface Rules {
  readonly initialMs: number;
  readonly maxMs: number;
  readonly factor: number;
  readonly jitter: number;
  readonly maxAttempts: number;
  readonly heartbeatTimeoutMs: number;
  /** A stream that shows nothing for so long is taken for blocked. */
  readonly fallbackAfterMs: number;
  readonly canStream: boolean;
  readonly canPoll: boolean;
}

/** `level` reads what there is and then rests: another tab has the connection. `lead` takes it from that tab. */
export type Task = "none" | "stream" | "poll" | "level" | "lead";

export interface Machine {
  readonly rules: Rules;
  readonly view: View;
  readonly task: Task;
  /** A new number: the old task is to be ended, the new one begun. */
  readonly run: number;
  /** When to say `time`. */
  readonly dueMs: number;
  /** Silence until then is death. */
  readonly deadlineMs: number;
  readonly startedMs: number;
  /** The `retry:` of the stream; takes the place of `initialMs`. */
  readonly retryMs: number | null;
  /** The server asked for peace until then. */
  readonly notBeforeMs: number;
  /** The wait before this try. A stream that stays open as long, and at least `initialMs`, has stayed open. */
  readonly waitedMs: number;
  readonly openedMs: number;
  /** 1: this stream has told an error; 2: and what came with it is read. It counts as open with what comes next. */
  readonly warning: 0 | 1 | 2;
  /** The address is right: it has answered as a Jobcast does. */
  readonly wasOpen: boolean;
  /** How often streaming was tried again while polling. */
  readonly probes: number;
  readonly probeMs: number;
  /** What the leading tab says; we follow. */
  readonly leader: View | null;
  readonly isFollower: boolean;
}

export type Input =
  | { readonly type: "start" | "follow" | "level" | "close" }
  | { readonly type: "time"; readonly random: number; readonly timedOut: (isBlocked: boolean) => Lost }
  /** Something came; with news it was an event, not only a sign of life. */
  | { readonly type: "bytes"; readonly isNews: boolean }
  | {
      readonly type: "polled";
      readonly isEmpty: boolean;
      readonly isLevel: boolean;
      readonly jobStatus: JobStatus | null;
    }
  | { readonly type: "retry"; readonly ms: number }
  | ({ readonly type: "warned" } & Lost)
  | ({ readonly type: "lost"; readonly random: number } & Lost)
  | { readonly type: "complete"; readonly jobStatus: JobStatus | null }
  /** `isCut`: whatever was open cannot be trusted any more. */
  | { readonly type: "wake"; readonly isCut: boolean }
  | { readonly type: "leader"; readonly view: View }
  | { readonly type: "beat" };

/** Streaming is tried again after so many times `fallbackAfterMs`, then after twice as many, … */
const PROBE_FIRST = 2;
const PROBE_MOST = 40;

export function initial(rules: Rules): Machine {
  return {
    rules,
    view: { status: "connecting", attempt: 0, jobStatus: null, retryInMs: null, error: null },
    task: "none",
    run: 0,
    dueMs: Infinity,
    deadlineMs: Infinity,
    startedMs: 0,
    retryMs: null,
    notBeforeMs: 0,
    waitedMs: 0,
    openedMs: 0,
    warning: 0,
    wasOpen: false,
    probes: 0,
    probeMs: Infinity,
    leader: null,
    isFollower: false,
  };
}

export const isOver = ({ status }: View): boolean =>
  status === "complete" || status === "failed" || status === "closed";

/** It is not level with its leader, and does not rest until it is. */
export const isReadingUp = ({ isFollower, task, view, dueMs }: Machine): boolean =>
  isFollower && (task === "level" || (view.status === "retrying" && dueMs < Infinity));

export function next(before: Machine, input: Input, nowMs: number): Machine {
  const m: Draft = { ...before };
  const { type } = input;
  const counts =
    !isOver(m.view) ||
    type === "start" ||
    type === "follow" ||
    type === "close" ||
    (type === "leader" && m.view.status === "failed");
  if (counts) step(m, input, nowMs);
  return m;
}

/** How long to wait before try number `attempt` (from 1), `random` of 0 to 1 deciding within the jitter. */
export function backoffMs(rules: Rules, retryMs: number | null, attempt: number, random: number): number {
  const first = retryMs ?? rules.initialMs;
  const most = Math.min(first * rules.factor ** (attempt - 1), Math.max(rules.maxMs, first));
  return most * (1 - rules.jitter + rules.jitter * random);
}

/** A copy that `next` fills in. */
type Draft = { -readonly [Field in keyof Machine]: Machine[Field] };

function step(m: Draft, input: Input, nowMs: number): void {
  const { view, task } = m;
  switch (input.type) {
    case "start":
    case "follow":
      m.isFollower = input.type === "follow";
      m.leader = null;
      m.notBeforeMs = m.waitedMs = 0;
      show(m, "connecting", { attempt: 0 });
      return connect(m, nowMs);
    case "level":
      return connect(m, nowMs);
    case "close":
      return rest(m, "closed");
    case "complete":
      return rest(m, "complete", { attempt: 0, jobStatus: input.jobStatus ?? view.jobStatus });
    case "retry":
      m.retryMs = input.ms;
      return;
    case "bytes":
      return heard(m, input.isNews, nowMs);
    case "polled":
      return polled(m, input, nowMs);
    case "warned":
      if (!input.error.retryable) return rest(m, "failed", { error: input.error });
      m.warning = 1;
      m.notBeforeMs = nowMs + (input.waitMs ?? 0);
      return show(m, view.status, { error: input.error });
    case "lost":
      return lose(m, input, input.random, nowMs);
    case "wake":
      return wake(m, input.isCut, nowMs);
    case "leader":
      m.leader = input.view;
      return mirror(m, nowMs);
    case "beat":
      return mirror(m, nowMs);
    case "time":
      if (nowMs >= m.deadlineMs && task !== "lead") {
        return lose(m, input.timedOut(task === "stream" && view.status !== "open"), input.random, nowMs);
      }
      if (nowMs < m.dueMs) return;
      if (view.status === "open" && !m.isFollower) {
        forgive(m, nowMs);
        return schedule(m);
      }
      // a wait is over, or a leader has been silent for too long
      return connect(m, nowMs, view.status === "retrying" ? undefined : m.isFollower ? "lead" : "poll");
  }
}

/** Shows a status; what it does not say of itself is nothing, or as before. */
function show(m: Draft, status: View["status"], more?: Partial<View>): void {
  m.view = { ...m.view, retryInMs: null, error: null, ...more, status } as View;
}

function rest(m: Draft, status: View["status"], more?: Partial<View>): void {
  show(m, status, more);
  pause(m, Infinity);
}

function pause(m: Draft, dueMs: number): void {
  m.task = "none";
  m.run += 1;
  m.dueMs = dueMs;
  m.deadlineMs = Infinity;
}

function connect(m: Draft, nowMs: number, task = home(m)): void {
  const { rules, view } = m;
  const isPolling = view.status === "polling" && task !== "level";
  // while it polls, a try whether streams get through again shows nowhere
  if (!isPolling && task !== "lead") show(m, "connecting", { error: view.error });
  const isLong = task === "lead" || !rules.canPoll || (task === "poll" && isPolling);
  const patienceMs = isLong ? Infinity : rules.fallbackAfterMs * (task === "stream" ? 1 : 2);
  pause(m, 0);
  m.task = task;
  m.startedMs = nowMs;
  m.warning = 0;
  m.deadlineMs = nowMs + Math.min(patienceMs, rules.heartbeatTimeoutMs);
  schedule(m);
}

const home = ({ isFollower, rules }: Machine): Task => (isFollower ? "level" : rules.canStream ? "stream" : "poll");

/** The one timer is for whatever comes first. */
function schedule(m: Draft): void {
  m.dueMs = Math.min(m.deadlineMs, stayedMs(m));
}

/** When an open stream has stayed open; never, where there is no failed try to forget. */
const stayedMs = ({ openedMs, rules, view, waitedMs }: Machine): number =>
  view.status === "open" && view.attempt > 0 ? openedMs + Math.max(rules.initialMs, waitedMs) : Infinity;

/** Tries in a row are counted anew once a stream has stayed open. */
function forgive(m: Draft, nowMs: number): void {
  if (nowMs >= stayedMs(m)) show(m, "open", { attempt: 0, error: m.view.error });
}

function heard(m: Draft, isNews: boolean, nowMs: number): void {
  if (m.task !== "stream") return;
  const { status, error } = m.view;
  m.deadlineMs = nowMs + m.rules.heartbeatTimeoutMs;
  // what Jobcast told of its source is over with the next event
  if (status === "open") {
    if (isNews && error) show(m, "open");
  } else if (m.warning === 1 && !isNews) m.warning = 2;
  else {
    m.openedMs = nowMs;
    m.wasOpen = true;
    m.probes = 0;
    m.probeMs = Infinity;
    show(m, "open", { error: m.warning && !isNews ? error : null });
  }
  schedule(m);
}

function polled(m: Draft, input: Extract<Input, { type: "polled" }>, nowMs: number): void {
  const { view, rules, task } = m;
  const jobStatus = input.jobStatus ?? view.jobStatus;
  if (task === "level") {
    if (!input.isLevel) return connect(m, nowMs);
    rest(m, "connecting", { attempt: 0, jobStatus });
    return mirror(m, nowMs);
  }
  m.wasOpen = true;
  if (view.status !== "polling" && rules.canStream) m.probeMs = nowMs + probeAfterMs(m);
  if (view.status !== "polling" || view.jobStatus !== jobStatus || view.attempt > 0)
    show(m, "polling", { attempt: 0, jobStatus });
  if (nowMs >= m.probeMs) return probe(m, nowMs);
  // a server that does not hold the request must not be asked without a pause
  const paceMs = input.isEmpty ? m.startedMs + (m.retryMs ?? rules.initialMs) : nowMs;
  if (paceMs > nowMs) pause(m, paceMs);
  else connect(m, nowMs, "poll");
}

function probe(m: Draft, nowMs: number): void {
  m.probes += 1;
  m.probeMs = nowMs + probeAfterMs(m);
  connect(m, nowMs, "stream");
}

const probeAfterMs = ({ rules, probes }: Machine): number =>
  rules.fallbackAfterMs * Math.min(PROBE_FIRST * 2 ** probes, PROBE_MOST);

function lose(m: Draft, why: Lost, random: number, nowMs: number): void {
  const { rules, task, view } = m;
  const isBlocked = task === "stream" && (view.status === "polling" || (why.isBlocked && rules.canPoll));
  if (isBlocked) {
    if (view.status !== "polling") show(m, "connecting", { error: why.error });
    return connect(m, nowMs, "poll");
  }
  // what the stream itself has said tells more than that it ended
  const error = ((m.warning > 0 || view.status === "open") && view.error) || why.error;
  forgive(m, nowMs);
  const attempt = m.view.attempt + 1;
  if (!error.retryable || attempt > rules.maxAttempts) return rest(m, "failed", { error });
  const byItself = backoffMs(rules, m.retryMs, attempt, random);
  const askedMs = Math.max(why.waitMs ?? 0, m.notBeforeMs - nowMs);
  const retryInMs = Math.round(why.isShared ? askedMs + byItself : Math.max(askedMs, byItself));
  show(m, "retrying", { attempt, retryInMs, error });
  pause(m, nowMs + retryInMs);
  m.waitedMs = retryInMs;
  m.notBeforeMs = nowMs + askedMs;
}

function wake(m: Draft, isCut: boolean, nowMs: number): void {
  const { view, rules, task, isFollower } = m;
  if (isFollower && !isReadingUp(m)) return;
  if (view.status === "retrying") {
    m.view = { ...view, attempt: 0 };
    // what the server asked for holds even now
    if (m.notBeforeMs > nowMs) m.dueMs = Math.min(m.dueMs, m.notBeforeMs);
    else connect(m, nowMs);
  } else if (view.status === "polling") {
    if (isCut && rules.canStream) probe(m, nowMs);
    else if (task === "none") connect(m, nowMs, "poll");
  } else if (isCut) connect(m, nowMs);
  else if (view.status === "open") {
    // It may have died unheard: of a stream that lives there is a heartbeat well within half the time.
    m.deadlineMs = Math.min(m.deadlineMs, Math.max(nowMs, m.deadlineMs - rules.heartbeatTimeoutMs / 2));
    schedule(m);
  }
}

/** A follower shows what its leader shows, and doubts it after a long silence. */
function mirror(m: Draft, nowMs: number): void {
  const { leader, rules } = m;
  if (!m.isFollower || isReadingUp(m)) return;
  m.dueMs =
    leader?.status === "retrying" || leader?.status === "failed" ? Infinity : nowMs + rules.heartbeatTimeoutMs * 1.5;
  if (leader && leader.status !== "closed") m.view = leader;
}
