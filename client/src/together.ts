// The streams of one page that are alike share one connection. A stream that begins joins it; one that has its history from
// elsewhere comes as soon as it has seen all that the connection has brought of its job. This is loaded when a page has
// more than one stream, or a list.

import { Carrier, type Connections, OF_SET } from "./carrier.js";
import { type InnerStream, type Join, type Shared, streams } from "./inner.js";
import { List } from "./list.js";
import type { JobStreamOptions } from "./options.js";
import { isOver } from "./state.js";

/** Jobcast takes no more jobs on one connection. */
const MAX_JOBS = 200;
/** The pages, or parts of one, whose streams are alike. */
const pages = new Set<Page>();

/** Makes a stream one of those that share, or a list of such streams. */
export const join: Join = (stream) => {
  if (stream.members) return new List(stream, stream.members);
  const others = [...streams].filter((other) => other !== stream && isAlone(other) && areAlike(other, stream));
  let page = [...pages].find(({ like }) => areAlike(like, stream));
  if (!page && others.length === 0) return null;
  if (!page) pages.add((page = new Page(stream)));
  for (const other of others) page.adopt(other);
  return page.add(stream);
};

const isAlone = ({ shared, options, members }: InnerStream): boolean =>
  !shared && !members && !options.carry && options.share === undefined;

/**
 * Tells if a set of jobs can begin where a stream stands: at its beginning, or at a place that Jobcast has told. Other text
 * that a caller begins at may be the id of an event.
 */
function isPortable(stream: InnerStream): boolean {
  const { cursor, lastId } = stream.now();
  return cursor === null ? lastId === null : cursor !== stream.options.from || OF_SET.test(cursor);
}

/** The options in which streams must be alike. */
const ALIKE = [
  ...["baseUrl", "credentials", "retry", "heartbeatTimeoutMs", "fallback", "fallbackAfterMs"],
  ...["types", "streamPath", "eventsPath"],
] as (keyof JobStreamOptions)[];

function areAlike(one: InnerStream, other: InnerStream): boolean {
  const [a, b] = [one.options, other.options];
  const text = (options: JobStreamOptions) => JSON.stringify(ALIKE.map((name) => options[name]));
  return (a.sameToken ?? a.token) === (b.sameToken ?? b.token) && a.scope === b.scope && text(a) === text(b);
}

/** A stream of a page. */
export class Member implements Shared {
  /** The connection that it shares; `null` while it has its own. */
  carrier: Carrier | null = null;
  /** It has its own connection because of its beginning, until it can do without. */
  hasOwn = false;

  constructor(
    readonly page: Page,
    readonly inner: InnerStream,
  ) {}

  reconnect(): void {
    if (this.carrier) this.carrier.reconnect();
    else if (this.hasOwn) this.connectAlone();
    else this.page.beginAnew(this);
  }

  connectAlone(): void {
    this.carrier = null;
    this.hasOwn = true;
    this.inner.handlers.dispatch({ type: "start" });
  }

  close(): Member | undefined {
    return this.page.remove(this);
  }

  broadcastEvents(): void {
    this.page.merge(this);
  }

  broadcastView(): void {
    const { view } = this.inner.now().state;
    if (!isOver(view)) this.page.merge(this);
    // One that has failed begins anew as any other.
    if (view.status !== "failed") return;
    this.page.remove(this);
    this.inner.shared = null;
  }
}

export class Page implements Connections {
  readonly like: InnerStream;
  readonly #members = new Set<Member>();
  /** Streams that are complete, and go on should their job do so. */
  readonly #ended = new Set<Member>();
  #carriers: Carrier[] = [];
  /** The connection that the others are given up for. It can let in others. */
  #main: Carrier | undefined;
  /** The streams that have another one. */
  #others: Member[] = [];
  /** Jobcast is of a version that knows no sets of jobs: each stream has its own connection. */
  #isRefused = false;
  #isUpdating = false;
  maxJobs = MAX_JOBS;

  constructor(like: InnerStream) {
    this.like = like;
  }

  add(inner: InnerStream): Member {
    const member = new Member(this, inner);
    this.#members.add(member);
    this.#updateSoon();
    return member;
  }

  /** Takes a stream in that was alone so far. */
  adopt(inner: InnerStream): void {
    const member = this.add(inner);
    inner.shared = member;
    const { taskId, view } = inner.now().state;
    const isRunning = taskId > 0 && !isOver(view);
    member.hasOwn = isRunning && (this.#isRefused || !isPortable(inner));
  }

  /** Takes a stream out that has ended. Returns it if it may go on. */
  remove(member: Member): Member | undefined {
    const { inner } = member;
    const wasClosed = this.#ended.delete(member);
    const mayGoOn = !wasClosed && inner.options.goesOn && inner.now().state.view.status === "complete";
    this.#members.delete(member);
    this.#others = this.#others.filter((other) => other !== member);
    member.carrier?.leave(member);
    member.carrier = null;
    member.hasOwn = false;
    if (mayGoOn) this.#ended.add(member);
    if (this.#members.size === 0) this.#close();
    else this.#updateSoon();
    return mayGoOn ? member : undefined;
  }

  /** Lets a stream go on after the end of its job. */
  beginAnew(member: Member): void {
    this.#ended.delete(member);
    member.inner.shared = null;
    member.inner.reconnect();
  }

  isAwaited(jobId: string): boolean {
    return [...this.#others, ...this.#ended].some(({ inner }) => inner.jobId === jobId);
  }

  goOn(jobId: string, isNews: (stream: InnerStream) => boolean): void {
    for (const member of [...this.#ended])
      if (member.inner.jobId === jobId && isNews(member.inner)) this.beginAnew(member);
  }

  #close(): void {
    for (const carrier of this.#carriers) carrier.close();
    if (this.#ended.size === 0) pages.delete(this);
  }

  /** Finds a connection for each stream that has none, and lets the connections ask for other jobs, once in a turn. */
  #updateSoon(): void {
    if (this.#isUpdating) return;
    this.#isUpdating = true;
    queueMicrotask(() => {
      this.#isUpdating = false;
      this.#update();
    });
  }

  #update(): void {
    for (const member of this.#members) if (!member.carrier && !member.hasOwn) this.#place(member);
    // Streams of several connections go to the one that they went to before.
    const main = [this.#main, ...this.#carriers].find((carrier) => carrier?.isSettled) ?? this.#carriers[0];
    this.#main = main;
    this.#others = [...this.#members].filter(({ carrier }) => carrier !== main);
    for (const { inner } of [...this.#others, ...this.#ended]) main?.invite(inner.jobId);
    for (const member of [...this.#others]) this.merge(member);
    for (const carrier of [...this.#carriers]) carrier.update();
  }

  #place(member: Member): void {
    const { inner } = member;
    if (this.#isRefused || !isPortable(inner)) return member.connectAlone();
    let carrier = this.#carriers.find((carrier) => carrier.takes(member));
    if (!carrier) this.#carriers.push((carrier = new Carrier(this, member)));
    carrier.add(member);
  }

  /** Lets a stream share the main connection as soon as it can. */
  merge(member: Member): void {
    const main = this.#main;
    if (!main || member.carrier === main || !main.takeOver(member)) return;
    this.#others = this.#others.filter((other) => other !== member);
    this.#updateSoon();
  }

  onProgress(carrier: Carrier, jobId: string): void {
    if (carrier !== this.#main) return;
    for (const member of this.#others) if (member.inner.jobId === jobId) this.merge(member);
  }

  onSettled(): void {
    this.#updateSoon();
  }

  onOver(carrier: Carrier): void {
    this.#carriers = this.#carriers.filter((other) => other !== carrier);
    if (this.#main === carrier) this.#main = undefined;
    for (const member of this.#members) if (member.carrier === carrier) member.carrier = null;
    this.#updateSoon();
  }

  onRefused(): void {
    this.#isRefused = true;
    for (const carrier of [...this.#carriers]) carrier.close();
    for (const member of this.#members) if (!member.hasOwn) member.connectAlone();
  }
}
