// The primitives for Solid.

import { type Accessor, createEffect, createMemo, createSignal, onCleanup } from "solid-js";
import type { AnyEvents } from "./index.js";
import { before, type Snapshot, type Snapshots, type Watch, type WatchOptions, watch, watchAll } from "./watch.js";

export type { AnyEvents, EventOf, JobEvent, JobStatus, JobStreamState } from "./index.js";
export type { Snapshot, Snapshots, WatchOptions } from "./watch.js";

export interface CreateJobStream<Events extends object = AnyEvents> {
  /** The events, the state, and what else is shown of the job; changes at most 16 times a second. */
  readonly job: Accessor<Snapshot<Events>>;
  reconnect(): void;
}

/**
 * Watches a job until its owner is disposed of. Another job id makes another stream; `null` watches nothing. On the
 * server nothing is watched.
 */
export function createJobStream<Events extends object = AnyEvents>(
  jobId: Accessor<string | null | undefined>,
  options?: WatchOptions<Events>,
): CreateJobStream<Events>;
export function createJobStream(
  jobId: Accessor<string | null | undefined>,
  options: WatchOptions = {},
): CreateJobStream {
  const [job, setJob] = createSignal(before("connecting"));
  const id = createMemo(() => jobId() || null);
  let current: Watch | null = null;
  createEffect(() => {
    const watched = id();
    setJob(before(watched ? "connecting" : "closed"));
    if (!watched) return;
    current = watch(watched, options, (snapshot) => setJob(snapshot));
    onCleanup(() => {
      current?.close();
      current = null;
    });
  });
  return { job, reconnect: () => current?.reconnect() };
}

export interface CreateJobStreams<Events extends object = AnyEvents> {
  /** The snapshot of each job, by the job; changes at most 16 times a second. */
  readonly jobs: Accessor<Snapshots<Events>>;
  reconnect(): void;
}

/**
 * Watches several jobs on one connection until its owner is disposed of. The list may change; jobs that stay in it go on. On
 * the server nothing is watched.
 */
export function createJobStreams<Events extends object = AnyEvents>(
  jobIds: Accessor<readonly string[]>,
  options?: WatchOptions<Events>,
): CreateJobStreams<Events>;
export function createJobStreams(jobIds: Accessor<readonly string[]>, options: WatchOptions = {}): CreateJobStreams {
  const [jobs, setJobs] = createSignal<Snapshots>(new Map());
  const all = watchAll(options, (snapshots) => setJobs(snapshots));
  createEffect(() => all.update(jobIds()));
  onCleanup(all.close);
  return { jobs, reconnect: all.reconnect };
}
