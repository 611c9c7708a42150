// A stream of a list of jobs. Each job has a stream of its own, and these share a connection as all streams of a page do
// (together.ts).

import { JobStream, type JobStreamState } from "./core.js";
import type { InnerStream, Shared } from "./inner.js";
import { CONNECTING, isOver, type View } from "./state.js";

/** The statuses that one job is enough to show, the most important first. */
const SHOWN = ["retrying", "connecting", "polling", "open"];

export class List implements Shared {
  readonly #list: InnerStream;
  readonly #members: JobStream[];
  readonly #stopListening: (() => void)[] = [];
  /** The news of this turn: a job has another state, or only events have come. */
  #news: "none" | "events" | "state" = "none";

  constructor(list: InnerStream, members: JobStream[]) {
    this.#list = list;
    this.#members = members;
    if (members.length === 0) this.#makeMembers();
    else for (const member of members) member.reconnect();
    for (const member of members) {
      this.#stopListening.push(
        member.on("event", (event) => {
          list.emit(event);
          this.#showSoon("events");
        }),
        member.on("reset", (reset) => list.handlers.onReset({ ...reset, jobId: member.jobId })),
        member.on("state", () => this.#onState(member)),
      );
      list.jobs.set(member.jobId, member.state);
    }
    this.#showSoon("state");
  }

  #makeMembers(): void {
    const { signal, share, ...options } = this.#list.options;
    const cursor = this.#list.now().cursor;
    for (const jobId of this.#list.jobs.keys()) {
      try {
        const member = new JobStream(jobId, {
          ...options,
          maxBuffered: 0,
          resumeAt: cursor,
          goesOn: true,
          // Without sharing the list has a connection of its own, for all of its jobs.
          ...(share === false && { scope: this.#list }),
        });
        this.#members.push(member);
      } catch (error) {
        // This job has no address. It fails alone.
        const failed = { ...CONNECTING, status: "failed", error, cursor, retryAt: null } as JobStreamState;
        this.#list.jobs.set(jobId, failed);
      }
    }
  }

  reconnect(): void {
    for (const member of this.#members) member.reconnect();
  }

  close(): undefined {
    for (const stop of this.#stopListening) stop();
    for (const member of this.#members) {
      member.close();
      this.#list.jobs.set(member.jobId, member.state);
    }
  }

  broadcastEvents(): void {}
  broadcastView(): void {}

  #onState(member: JobStream): void {
    this.#list.jobs.set(member.jobId, member.state);
    this.#showSoon("state");
  }

  /** Shows of the jobs that have not ended what matters most. When all have, it shows their end. */
  #show(): void {
    const { handlers } = this.#list;
    const states = [...this.#list.jobs.values()];
    const running = states.filter((state) => !isOver(state));
    handlers.dispatch({
      type: "caughtUp",
      isCaughtUp: states.every(({ isCaughtUp, status }) => isCaughtUp || status === "failed"),
    });
    const shown = SHOWN.flatMap((status) => running.find((state) => state.status === status) ?? [])[0];
    if (shown) return handlers.dispatch({ type: "carried", view: viewOf(shown) });
    const failed = states.find(({ status }) => status === "failed");
    if (failed && states.every(({ status }) => status !== "complete"))
      return handlers.dispatch({ type: "carried", view: viewOf(failed) });
    handlers.dispatch({ type: "complete", jobStatus: null });
  }

  /** Shows what happens to many jobs at once as one change. */
  #showSoon(news: "events" | "state"): void {
    const isFirst = this.#news === "none";
    if (this.#news !== "state") this.#news = news;
    if (!isFirst) return;
    queueMicrotask(() => {
      if (this.#list.shared !== this) return;
      const isState = this.#news === "state";
      this.#news = "none";
      this.#tellCursor();
      if (isState) this.#show();
    });
  }

  /** A list has a place of its own where all of its jobs stand at one. */
  #tellCursor(): void {
    const { handlers } = this.#list;
    const cursor = this.#members[0]?.state.cursor ?? "";
    if (this.#members.every(({ state }) => state.cursor === cursor)) handlers.onCursor(cursor);
  }
}

const viewOf = ({ cursor, retryAt, ...view }: View & { cursor: unknown; retryAt: unknown }): View => view as View;
