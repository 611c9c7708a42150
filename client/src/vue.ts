// The composables for Vue.

import {
  type MaybeRefOrGetter,
  onScopeDispose,
  type ShallowRef,
  shallowRef,
  toValue,
  watch as watchSources,
} from "vue";
import type { AnyEvents } from "./index.js";
import {
  before,
  type Snapshot,
  type Snapshots,
  type Watch,
  type WatchAll,
  type WatchOptions,
  watch,
  watchAll,
} from "./watch.js";

export type { AnyEvents, EventOf, JobEvent, JobStatus, JobStreamState } from "./index.js";
export type { Snapshot, Snapshots, WatchOptions } from "./watch.js";

export interface UseJobStream<Events extends object = AnyEvents> {
  /** The events, the state, and what else is shown of the job; changes at most 16 times a second. */
  readonly job: Readonly<ShallowRef<Snapshot<Events>>>;
  reconnect(): void;
}

/**
 * Watches a job until the component unmounts. Another job id, or other options, make another stream; `null` watches
 * nothing. On the server nothing is watched.
 */
export function useJobStream<Events extends object = AnyEvents>(
  jobId: MaybeRefOrGetter<string | null | undefined>,
  options?: MaybeRefOrGetter<WatchOptions<Events>>,
): UseJobStream<Events>;
export function useJobStream(
  jobId: MaybeRefOrGetter<string | null | undefined>,
  options: MaybeRefOrGetter<WatchOptions> = {},
): UseJobStream {
  const job = shallowRef(before("connecting"));
  let current: Watch | null = null;
  const close = () => {
    current?.close();
    current = null;
  };
  const open = () => {
    close();
    const id = toValue(jobId);
    job.value = before(id ? "connecting" : "closed");
    if (!id || !globalThis.document) return;
    current = watch(id, toValue(options), (snapshot) => {
      job.value = snapshot;
    });
  };
  watchSources([() => toValue(jobId), () => JSON.stringify(toValue(options))], open, { immediate: true });
  onScopeDispose(close);
  return { job, reconnect: () => current?.reconnect() };
}

export interface UseJobStreams<Events extends object = AnyEvents> {
  /** The snapshot of each job, by the job; changes at most 16 times a second. */
  readonly jobs: Readonly<ShallowRef<Snapshots<Events>>>;
  reconnect(): void;
}

/**
 * Watches several jobs on one connection until the component unmounts. The list may change; jobs that stay in it go on.
 * Other options make other streams. On the server nothing is watched.
 */
export function useJobStreams<Events extends object = AnyEvents>(
  jobIds: MaybeRefOrGetter<readonly string[]>,
  options?: MaybeRefOrGetter<WatchOptions<Events>>,
): UseJobStreams<Events>;
export function useJobStreams(
  jobIds: MaybeRefOrGetter<readonly string[]>,
  options: MaybeRefOrGetter<WatchOptions> = {},
): UseJobStreams {
  const jobs = shallowRef<Snapshots>(new Map());
  let current: WatchAll | null = null;
  const close = () => current?.close();
  const open = () => {
    close();
    if (!globalThis.document) return;
    current = watchAll(toValue(options), (snapshots) => {
      jobs.value = snapshots;
    });
  };
  watchSources(() => JSON.stringify(toValue(options)), open, { immediate: true });
  watchSources(
    [() => JSON.stringify(toValue(options)), () => [...toValue(jobIds)].join("\n")],
    () => current?.update([...toValue(jobIds)]),
    { immediate: true },
  );
  onScopeDispose(close);
  return { jobs, reconnect: () => current?.reconnect() };
}
