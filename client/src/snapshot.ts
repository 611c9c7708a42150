// Snapshots of a job, as all bindings show them, and the stream that they are of.

import {
  type AnyEvents,
  CONNECTING,
  type EventOf,
  type JobEvent,
  JobStream,
  JobStreamError,
  type JobStreamOptions,
  type JobStreamState,
} from "./index.js";

export { JobStreamError };

/** What is shown of a job. Each change makes a new object. */
export interface Snapshot<Events extends object = AnyEvents> {
  /** The newest events, `maxEvents` at most. */
  readonly events: readonly EventOf<Events>[];
  /** The number of events before those in `events`. */
  readonly dropped: number;
  readonly lastEvent: EventOf<Events> | null;
  readonly state: JobStreamState;
}

/** The least time between two snapshots, so that 1,000 events a second do not freeze a page. */
export const INTERVAL_MS = 64;

/** Returns what is shown before a stream is there; `closed` where there is no job to watch. */
export const before = (status: "connecting" | "closed"): Snapshot => ({
  events: [],
  dropped: 0,
  lastEvent: null,
  state: { ...CONNECTING, retryAt: null, cursor: null, status } as JobStreamState,
});

/** Opens a stream. Where the options make no address, it calls `onFailed` and returns `null`. */
export function open(
  jobId: string,
  options: JobStreamOptions,
  onFailed: (error: JobStreamError) => void,
): JobStream | null {
  try {
    return new JobStream(jobId, { ...options, maxBuffered: 0, goesOn: true });
  } catch (error) {
    // What failed for another reason is for the caller to see.
    if (!(error instanceof JobStreamError)) throw error;
    onFailed(error);
    return null;
  }
}

/** Shows why no stream was opened. */
export const failed = <Shown extends Snapshot>(shown: Shown, error: JobStreamError): Shown => ({
  ...shown,
  state: { ...shown.state, status: "failed", error },
});

/** Returns `shown` with new events and without the oldest that are too many, or the same object where nothing changes. */
export function append<Shown extends Snapshot>(shown: Shown, newEvents: readonly JobEvent[], maxEvents = 1000): Shown {
  const all = [...shown.events, ...newEvents];
  const extra = Math.max(0, all.length - maxEvents);
  if (extra + newEvents.length === 0) return shown;
  const lastEvent = newEvents.at(-1) ?? shown.lastEvent;
  return { ...shown, events: all.slice(extra), dropped: shown.dropped + extra, lastEvent };
}
