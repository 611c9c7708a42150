// The composable for Vue.

import {
  type MaybeRefOrGetter,
  onScopeDispose,
  type ShallowRef,
  shallowRef,
  toValue,
  watch as watchSources,
} from "vue";
import { before, type Snapshot, type Watch, type WatchOptions, watch } from "./watch.js";

export type { JobEvent, JobStatus, JobStreamState } from "./index.js";
export type { Snapshot, WatchOptions } from "./watch.js";

export interface UseJobStream {
  /** The events, the state, and what else is shown of the job; changes at most 16 times a second. */
  readonly job: Readonly<ShallowRef<Snapshot>>;
  reconnect(): void;
}

/**
 * Watches a job until the component unmounts. Another job id, or other options, make another stream; `null` watches
 * nothing. On the server nothing is watched.
 */
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
