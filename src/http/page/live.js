// @ts-check
// The listed jobs as they go: the state, the progress and the last line of each. Each has a stream, and all streams of this
// page share one connection.

import { JobStream } from "../jobcast.js";
import { describe } from "./describe.js";
import { Ended } from "./ended.js";
import { isEnded } from "./job.js";
import { asNumber, asRecord } from "./payload.js";
import { plainText } from "./terminal.js";
import { token } from "./token.js";

/** @typedef {import("../jobcast.js").JobEvent} JobEvent */

/**
 * A job as it is now: its status, where its stream tells one, the progress of its current step, and its last line.
 *
 * @typedef {{status: string | null, percent: number | null, line: string}} Now
 */

/** A longer list is watched in part: its newest jobs. */
const MAX_WATCHED = 200;
/** The newest events in which the last line and the progress of a job are looked for. */
const LAST_EVENTS = 5;
const MAX_LINE_LENGTH = 200;
/** A stream that has failed is tried again after so long. */
const RETRY_MS = 30_000;

export class Live {
  /** @type {Map<string, LiveJob>} */
  #jobs = new Map();
  #onChange;

  /** @param {(jobId: string) => void} onChange */
  constructor(onChange) {
    this.#onChange = onChange;
  }

  /**
   * Watches these jobs and no others.
   *
   * @param {string[]} jobIds the most important first
   */
  watch(jobIds) {
    const watched = new Set([...new Set(jobIds)].slice(0, MAX_WATCHED));
    for (const [jobId, job] of this.#jobs) {
      if (watched.has(jobId)) continue;
      job.leave();
      this.#jobs.delete(jobId);
    }
    for (const jobId of watched) {
      const job = this.#jobs.get(jobId);
      if (job) job.tryAgain();
      else this.#jobs.set(jobId, new LiveJob(jobId, () => this.#onChange(jobId)));
    }
  }

  /**
   * Goes on with a job where the list says so after its end.
   *
   * @param {import("./jobs.js").ListedJob} job
   * @param {boolean} isRunAgain
   */
  onListed({ jobId, lastEventAt }, isRunAgain) {
    this.#jobs.get(jobId)?.onListed(lastEventAt, isRunAgain);
  }

  /**
   * @param {string} jobId
   * @returns {Readonly<Now> | null}
   */
  of(jobId) {
    return this.#jobs.get(jobId)?.now ?? null;
  }
}

/** One listed job. */
class LiveJob {
  /** @type {Now} */
  now = { status: null, percent: null, line: "" };
  #failedMs = 0;
  #ended = new Ended();
  #stream;
  #unsubscribes;

  /**
   * @param {string} jobId
   * @param {() => void} onChange
   */
  constructor(jobId, onChange) {
    const baseUrl = new URL(".", location.href).href;
    const stream = new JobStream(jobId, {
      baseUrl,
      maxBuffered: 0,
      last: LAST_EVENTS,
      ...(token !== undefined && { token }),
    });
    this.#stream = stream;
    this.#unsubscribes = [
      stream.on("event", (event) => {
        this.#apply(event);
        onChange();
      }),
      stream.on("reset", () => {
        this.now = { ...this.now, percent: null, line: "" };
        this.#ended = new Ended();
        onChange();
      }),
      stream.on("state", ({ status, jobStatus }) => {
        if (status === "failed") this.#failedMs = performance.now();
        if (jobStatus === this.now.status) return;
        this.now.status = jobStatus;
        if (isEnded(jobStatus)) this.now.percent = null;
        onChange();
      }),
    ];
  }

  leave() {
    for (const unsubscribe of this.#unsubscribes) unsubscribe();
    this.#stream.close();
  }

  /**
   * @param {string | null} lastEventAt
   * @param {boolean} isRunAgain
   */
  onListed(lastEventAt, isRunAgain) {
    if (this.#stream.state.status !== "complete") return;
    if (isRunAgain || this.#ended.isBehind(lastEventAt)) this.#stream.reconnect();
  }

  /** Tries again if the stream failed a while ago. */
  tryAgain() {
    if (this.#stream.state.status !== "failed" || performance.now() - this.#failedMs < RETRY_MS) return;
    this.#failedMs = performance.now();
    this.#stream.reconnect();
  }

  /** @param {JobEvent} event */
  #apply({ type, stepId, timestamp, payload }) {
    this.#ended.note(Date.parse(timestamp));
    if (type === "step.progress") this.now.percent = asNumber(asRecord(payload).percent);
    else if (type !== "step.output") this.now.percent = null;
    const described = describe({ type, stepId, payload });
    if (!described) return;
    const { text, type: shownType } = described;
    // A line that overwrites itself is shown as it looks in the end.
    const words = plainText(text.slice(0, 2 * MAX_LINE_LENGTH)).trim();
    if (words !== "" || shownType) this.now.line = `${shownType ?? ""} ${words}`.trim().slice(0, MAX_LINE_LENGTH);
  }
}
