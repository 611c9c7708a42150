// One connection for several jobs, and the streams that it is for. It is a stream itself (core.ts), of a set of jobs that
// changes: then it connects anew from where it stands, and nothing is lost or repeated.

import type { StreamHandlers, ToldReset } from "./connection.js";
import { JobStream, type JobStreamState } from "./core.js";
import { asString, type JobEvent, type JobStatus, type UniquePart } from "./event.js";
import type { Carry, InnerStream } from "./inner.js";
import { EVENTS_PATH, type JobStreamOptions, type JobUrls, jobUrls, STREAM_PATH } from "./options.js";
import { type Action, CONNECTING, type View } from "./state.js";
import type { Member } from "./together.js";

/**
 * The part of a job that has come. `added`: nothing yet. `replaying`: some of its history. `live`: all that there was.
 * `empty`: all that there was, which is nothing. `over`: it has ended, or may not be watched.
 */
type Phase = "added" | "replaying" | "live" | "empty" | "over";

/** One job of a connection. */
interface Carried {
  phase: Phase;
  /** The job was added for streams that have their history already. They come when they have seen its newest event. */
  isGuest: boolean;
  /** The id of its newest event on this connection. */
  lastId: string | null;
  status: JobStatus | null;
  readonly members: Set<Member>;
}

/** The parts of a page that its connections call. */
export interface Connections {
  /** A stream may have come so far that it can do without its own connection. */
  onProgress(carrier: Carrier, jobId: string): void;
  /** Other streams may be let in. */
  onSettled(): void;
  /** The connection is over. */
  onOver(carrier: Carrier): void;
  /** There is no address for sets of jobs. */
  onRefused(): void;
  /** Tells if streams of this job have another connection, or wait for it to go on after its end. */
  isAwaited(jobId: string): boolean;
  /** Lets the streams of the job that have ended go on, if something is news to them. */
  goOn(jobId: string, isNews: (stream: InnerStream) => boolean): void;
  /** The jobs that one connection may have. Fewer, where so many are refused. */
  maxJobs: number;
}

/** A job that nobody watches any more is heard for so long. */
const SHRINK_AFTER_MS = 1000;
/** Answers of a Jobcast that knows no sets. */
const UNKNOWN = [404, 405];
/** Answers of one to which the jobs are too many, or their address too long. */
const TOO_LARGE = [400, 414, 431];
/** A place in a set of jobs. */
export const OF_SET = /^m[\w-]{16,}$/;

export class Carrier implements Carry {
  /** The beginning with which jobs are asked for that the cursor does not know. */
  readonly beginning: string;
  readonly jobs = new Map<string, Carried>();
  unique: UniquePart = "id";
  /** The jobs that the current request names. */
  #asked: ReadonlySet<string> = new Set();
  /** The jobs that the cursor names; `null` while nobody can tell. */
  #known: ReadonlySet<string> | null;
  /** The same, of the cursor that the current request has. */
  #sent: ReadonlySet<string> | null = null;
  readonly #page: Connections;
  readonly #options: JobStreamOptions;
  readonly #resumeAt: string | null;
  #stream: JobStream | null = null;
  #base: StreamHandlers | null = null;
  #hasOpened = false;
  #shrinkTimer: ReturnType<typeof setTimeout> | undefined;

  /** Begins where `member` is to begin. */
  constructor(page: Connections, { inner }: Member) {
    this.#page = page;
    this.#options = inner.options;
    this.#resumeAt = inner.now().cursor;
    // The place of a stream that was alone is one of its job alone.
    const isOfOne = this.#resumeAt !== null && !OF_SET.test(this.#resumeAt);
    this.#known = isOfOne ? new Set([inner.jobId]) : this.#resumeAt === null ? new Set() : null;
    this.beginning = beginningOf(inner.options);
  }

  get cursor(): string | null {
    return this.#stream ? this.#stream.state.cursor : this.#resumeAt;
  }

  // ---- the jobs

  /** Tells if a stream that begins gets from this connection what it is to get. */
  takes({ inner }: Member): boolean {
    const job = this.jobs.get(inner.jobId);
    if (job?.phase === "over") return false;
    if (inner.now().cursor !== null)
      return inner.now().cursor === this.cursor && (job ? job.lastId === inner.now().lastId : this.#hasRoom);
    if (this.beginning !== beginningOf(inner.options)) return false;
    if (job) return job.phase === "added" && !job.isGuest;
    return this.#known?.has(inner.jobId) === false && this.#hasRoom;
  }

  get #hasRoom(): boolean {
    return this.#wanted().length < this.#page.maxJobs;
  }

  add(member: Member): void {
    const { inner } = member;
    // One that comes with a cursor of this connection goes on; what would be lost is told to it.
    const phase = inner.now().cursor === null ? "added" : "replaying";
    const job = this.jobs.get(inner.jobId) ?? this.#addJob(inner.jobId, { phase, lastId: inner.now().lastId });
    const isAsked = this.#asked.has(inner.jobId);
    if (!isAsked) job.phase = phase;
    job.isGuest = false;
    // One that was open so far does not show that it has another connection now.
    const { view } = inner.now().state;
    const isShown = isAsked || this.#view.status === "retrying" || this.#view.status === "polling";
    this.#follow(member, job, isShown ? this.#view : view.status === "open" ? view : CONNECTING);
  }

  #addJob(jobId: string, more: Partial<Carried>): Carried {
    const job: Carried = { phase: "added", isGuest: false, lastId: null, status: null, members: new Set(), ...more };
    this.jobs.set(jobId, job);
    return job;
  }

  /** Adds a job for streams that have their history from elsewhere, once the place of every other job is known. */
  invite(jobId: string): void {
    const job = this.jobs.get(jobId);
    const isThere = this.#asked.has(jobId) || (job && (job.isGuest || job.members.size > 0));
    if (isThere || !this.isSettled || !this.#hasRoom) return;
    // The cursor may know the job from before. Then it goes on where it stood.
    this.#addJob(jobId, { isGuest: true, ...(job && { phase: "replaying", lastId: job.lastId }) });
  }

  /** The cursor names all jobs but guests, so that it can be asked for others. */
  get isSettled(): boolean {
    const known = this.#known;
    return known !== null && [...this.jobs].every(([id, job]) => job.phase === "over" || job.isGuest || known.has(id));
  }

  /** Takes a stream over that has its own connection so far, if it has seen all that this one has brought of its job. */
  takeOver(member: Member): boolean {
    const { inner } = member;
    const job = this.jobs.get(inner.jobId);
    const { status } = this.#view;
    if (!job || !this.#asked.has(inner.jobId) || !(status === "open" || status === "polling")) return false;
    const hasAll = job.phase === "live" && inner.seenIds.has(job.lastId ?? "");
    if (!hasAll && !(job.phase === "empty" && inner.now().lastId === null)) return false;
    // Places of two connections cannot be compared, as they are where ids are not unique.
    if (this.unique !== "id" || inner.now().uniquePart !== "id") return false;
    job.isGuest = false;
    this.#follow(member, job, this.#view);
    return true;
  }

  #follow(member: Member, job: Carried, view: View): void {
    const { handlers } = member.inner;
    member.carrier?.leave(member);
    member.carrier = this;
    member.hasOwn = false;
    job.members.add(member);
    handlers.dispatch({ type: "carried", view });
    if (job.status !== null) handlers.dispatch({ type: "status", jobStatus: job.status });
    if (isCaughtUp(job)) handlers.dispatch({ type: "caughtUp", isCaughtUp: true });
  }

  leave(member: Member): void {
    this.jobs.get(member.inner.jobId)?.members.delete(member);
  }

  *#members(): Generator<Member> {
    for (const { members } of [...this.jobs.values()]) yield* [...members];
  }

  get #view(): View {
    return this.#stream ? viewOf(this.#stream.state) : CONNECTING;
  }

  // ---- the connection

  /** Connects anew if other jobs are wanted than were asked for. */
  update(): void {
    const wanted = this.#wanted();
    const isRunning = (id: string) => this.jobs.get(id)?.phase !== "over";
    const running = wanted.filter(isRunning);
    if (running.length === 0) this.close();
    else if (wanted.some((id) => !this.#asked.has(id))) this.#connect(wanted);
    else if (running.length === [...this.#asked].filter(isRunning).length) clearTimeout(this.#shrinkTimer);
    else {
      clearTimeout(this.#shrinkTimer);
      this.#shrinkTimer = setTimeout(() => this.#connect(this.#wanted()), SHRINK_AFTER_MS);
    }
  }

  #wanted(): string[] {
    const isWanted = ([id, { phase, members, isGuest }]: [string, Carried]) =>
      members.size > 0 || ((isGuest || phase === "over") && this.#page.isAwaited(id));
    return [...this.jobs].filter(isWanted).map(([id]) => id);
  }

  #connect(wanted: string[]): void {
    clearTimeout(this.#shrinkTimer);
    this.#asked = new Set(wanted);
    for (const [id, job] of this.jobs) job.isGuest &&= this.#asked.has(id);
    this.#forgetOthers();
    if (!this.#stream) return this.#open();
    this.#base?.dispatch({ type: "caughtUp", isCaughtUp: false });
    // One that waits for its next try asks for the new jobs then.
    if (this.#stream.state.status !== "retrying") this.#base?.dispatch({ type: "again" });
  }

  /** Forgets jobs that are not asked for any more, once the cursor does not know them either. */
  #forgetOthers(): void {
    for (const [id, { members, isGuest }] of [...this.jobs]) {
      if (members.size > 0 || isGuest || this.#asked.has(id) || this.#known?.has(id)) continue;
      this.jobs.delete(id);
    }
  }

  #open(): void {
    const { signal, persist, ...options } = this.#options;
    this.#stream = new JobStream("", {
      ...options,
      share: false,
      maxBuffered: 0,
      from: "start",
      last: undefined,
      resumeAt: this.#resumeAt,
      carry: this,
    });
    this.#stream.on("state", (state) => this.#onState(state));
  }

  /** The newest events, but none of them, are new ones only. */
  get #showsHistory(): boolean {
    const { from, last } = this.#options;
    return from !== "now" && last !== 0;
  }

  reconnect(): void {
    this.#stream?.reconnect();
  }

  close(): void {
    clearTimeout(this.#shrinkTimer);
    this.#stream?.close();
    this.#page.onOver(this);
  }

  urls(): JobUrls {
    const { streamPath = STREAM_PATH, eventsPath = EVENTS_PATH } = this.#options;
    const [toStream, toEvents] = [streamPath, eventsPath].map((path) => path.replace("/{job_id}", ""));
    const { stream, events, origin } = jobUrls("", { ...this.#options, streamPath: toStream, eventsPath: toEvents });
    const query = `?${[...this.#asked].map(parameter).join("&")}`;
    return { stream: stream + query, events: events + query, origin };
  }

  query(): Record<string, string> {
    this.#sent = this.#known;
    const { last } = this.#options;
    const added = [...this.#asked].map((id) => this.jobs.get(id)).filter((job) => job?.phase === "added");
    const areGuests = added.length > 0 && added.every((job) => job?.isGuest);
    if (areGuests) return { ids: "full", last: "1" };
    if (!this.#showsHistory) return { ids: "full", from: "now" };
    return { ids: "full", ...(last !== undefined && { last: `${last}` }) };
  }

  // ---- what arrives

  wrap(base: StreamHandlers): StreamHandlers {
    this.#base = base;
    return {
      ...base,
      onAnswer: (part) => {
        base.onAnswer(part);
        this.#hasOpened = true;
        this.unique = part === "cursor" ? part : "id";
        for (const { inner } of this.#members()) inner.handlers.onAnswer(part);
      },
      onCursor: (cursor) => this.#onCursor(cursor),
      onReset: (reset) => this.#onReset(reset),
      onEvents: (events) => {
        base.dispatch({ type: "bytes", hasEvents: true });
        return this.#onEvents(events);
      },
      dispatch: (action) => {
        const jobId = "jobId" in action ? asString(action.jobId) : null;
        if (jobId === null) base.dispatch(action);
        else this.#onJob(jobId, action);
      },
    };
  }

  #onCursor(cursor: string): void {
    this.#base?.onCursor(cursor);
    const wasSettled = this.isSettled;
    // An empty place is the beginning.
    this.#known = cursor ? this.#asked : new Set();
    this.#forgetOthers();
    for (const job of this.jobs.values())
      for (const { inner } of [...job.members]) if (inner.now().lastId === job.lastId) inner.handlers.onCursor(cursor);
    if (!wasSettled && this.isSettled) this.#page.onSettled();
  }

  /** Hands events on in their order, those of one job that follow each other together. */
  #onEvents(events: readonly JobEvent[]): number {
    for (let from = 0, to = 0; from < events.length; from = to) {
      const { jobId } = events[from]!;
      while (events[to]?.jobId === jobId) to += 1;
      const job = this.jobs.get(jobId);
      if (!job) continue;
      if (job.phase === "added") job.phase = "replaying";
      else if (job.phase === "empty") job.phase = "live";
      const batch = events.slice(from, to);
      const lastId = batch.at(-1)![this.unique];
      job.lastId = lastId;
      // A listener may close the next stream.
      for (const member of [...job.members]) if (job.members.has(member)) member.inner.deliver(batch);
      if (job.phase === "over") goOn(job);
      this.#page.goOn(jobId, ({ seenIds }) => !seenIds.has(lastId));
      this.#page.onProgress(this, jobId);
    }
    return events.length;
  }

  /** A job that the request's cursor did not name has no history here that could be lost. */
  #onReset(reset: ToldReset): void {
    if (reset.jobId === null) this.#base?.onReset(reset);
    for (const [id, job] of this.jobs) {
      const isNew = this.#sent?.has(id) === false;
      if (isNew || job.phase === "over" || (reset.jobId ?? id) !== id) continue;
      job.lastId = null;
      job.phase = "replaying";
      for (const { inner } of [...job.members]) inner.handlers.onReset({ ...reset, jobId: id });
    }
  }

  #onJob(jobId: string, action: Action): void {
    const job = this.jobs.get(jobId);
    if (!job) return;
    const isOver = action.type === "complete" || (action.type === "warned" && !action.error.retryable);
    if (action.type === "status" || action.type === "complete") this.#onStatus(jobId, job, action.jobStatus);
    if (isOver) job.phase = "over";
    for (const { inner } of [...job.members]) inner.handlers.dispatch(action);
    if (isOver && [...this.jobs.values()].every(({ phase }) => phase === "over")) this.close();
  }

  #onStatus(jobId: string, job: Carried, jobStatus: JobStatus | null): void {
    if (jobStatus === null || jobStatus === job.status) return;
    job.status = jobStatus;
    if (job.phase === "over") goOn(job);
    this.#page.goOn(jobId, (stream) => stream.now().state.view.jobStatus !== jobStatus);
  }

  #onState(state: JobStreamState): void {
    const { status, error, isCaughtUp, attempt } = state;
    const refusal = error?.code === "job.not_found" ? 0 : (error?.status ?? 0);
    if (TOO_LARGE.includes(refusal) && this.#asked.size > 1) {
      this.#page.maxJobs = Math.ceil(this.#asked.size / 2);
      return this.close();
    }
    if (UNKNOWN.includes(refusal) && !this.#hasOpened) return this.#page.onRefused();
    if (status === "closed") return;
    if (status === "complete" || status === "failed") return this.#end(state);
    for (const { inner } of this.#members()) {
      const { view } = inner.now().state;
      const isSame = view.status === status && view.error === error && view.attempt === attempt;
      // A hand-over does not show.
      const isHidden = status === "connecting" && attempt === 0 && error === null;
      if (!isSame && !isHidden) inner.handlers.dispatch({ type: "carried", view: viewOf(state) });
    }
    if (isCaughtUp) this.#onCaughtUp();
  }

  /** Ends the streams whose jobs were asked for. Those that wait for the next request find another connection. */
  #end(state: JobStreamState): void {
    const end: Action =
      state.status === "failed" ? { type: "carried", view: viewOf(state) } : { type: "complete", jobStatus: null };
    for (const { inner } of this.#members()) if (this.#asked.has(inner.jobId)) inner.handlers.dispatch(end);
    this.#page.onOver(this);
  }

  #onCaughtUp(): void {
    for (const id of this.#asked) {
      const job = this.jobs.get(id);
      if (!job || isCaughtUp(job) || job.phase === "over") continue;
      // Only new events were asked for with these beginnings: they do not show whether there were any.
      const isEmpty = job.phase === "added" && (job.isGuest || this.#showsHistory);
      job.phase = isEmpty ? "empty" : "live";
      for (const { inner } of [...job.members]) inner.handlers.dispatch({ type: "caughtUp", isCaughtUp: true });
    }
    this.#page.onSettled();
  }
}

/** A job goes on after its end. Its streams come when they have seen what they had not. */
function goOn(job: Carried): void {
  job.phase = "live";
  job.isGuest = true;
}

const isCaughtUp = ({ phase }: Carried): boolean => phase === "live" || phase === "empty";

const parameter = (jobId: string): string => `job=${encodeURIComponent(jobId)}`;

/** Streams of one beginning can be asked for together. */
export const beginningOf = ({ from, last }: JobStreamOptions): string => `${from ?? "start"} ${last ?? ""}`;

const viewOf = ({ cursor, retryAt, ...view }: JobStreamState): View => view as View;
