// The inside of a stream, for those that share its connection: the tabs of an origin (share.ts), the streams of a page
// (together.ts), and a list of jobs (list.ts).

import type { StreamHandlers, ToldReset } from "./connection.js";
import type { JobStream, JobStreamState } from "./core.js";
import type { JobEvent, UniquePart } from "./event.js";
import type { JobStreamOptions, JobUrls } from "./options.js";
import type { State } from "./state.js";

/** The state of a stream, and the place that it has reached. */
export interface Place {
  readonly state: State;
  readonly cursor: string | null;
  /** The id of the newest event. */
  readonly lastId: string | null;
  readonly uniquePart: UniquePart;
}

/** The part of a stream that sharing needs. */
export interface InnerStream {
  readonly jobId: string;
  readonly options: JobStreamOptions;
  readonly urls: JobUrls;
  /** Handlers of all that arrives for this stream, whoever has the connection. */
  readonly handlers: StreamHandlers;
  /** The state of each job of a list. */
  readonly jobs: Map<string, JobStreamState>;
  /**
   * The streams of a list, one for each of its jobs; `null` for one job. They outlive a `close()`, so that it goes on where it
   * was.
   */
  readonly members: JobStream[] | null;
  /** The way in which the stream shares its connection; `null` while it has its own. */
  shared: Shared | null;
  /** The ids of the newest events. */
  readonly seenIds: ReadonlySet<string>;
  now(): Place;
  reconnect(): void;
  /** Delivers events of another stream that has the connection. Returns the number of those that are no repeats. */
  deliver(events: readonly JobEvent[]): number;
  /** Hands an event on that another stream has delivered once. */
  emit(event: JobEvent): void;
}

/** One of the ways to share. What happens to the stream is told to it. */
export interface Shared {
  reconnect(): void;
  /** Called when the stream has ended, and again when it is closed. Returns itself where it may make the stream go on. */
  close(): Shared | undefined;
  broadcastEvents(after: string | null, events: readonly JobEvent[]): void;
  broadcastReset?(reset: ToldReset): void;
  broadcastAlive?(): void;
  broadcastView(): void;
  takeOver?(): void;
  applyHeldBack?(): void;
}

/** Makes a stream share; `null` where it has a connection of its own. */
export type Join = (stream: InnerStream) => Shared | null;

/** Replaces the job of a stream by a set of jobs, which changes. */
export interface Carry {
  urls(): JobUrls;
  query(): Record<string, string>;
  wrap(handlers: StreamHandlers): StreamHandlers;
}

/** The streams of this page that are under way. */
export const streams = new Set<InnerStream>();
