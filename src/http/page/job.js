// @ts-check
// The model of one job, built from its events. Events are foreign input: any type, any payload.

import { asNumber, asRecord, asText } from "./payload.js";

/**
 * An event, with its time in milliseconds on the server's clock.
 *
 * @typedef {{type: string, stepId: string | null, timeMs: number, payload: unknown}} TimedEvent
 */

/**
 * The state of a step. `seen`: it has events, but none says that it started.
 *
 * @typedef {"pending" | "running" | "seen" | "completed" | "failed" | "skipped" | "cancelled"} StepState
 */

/**
 * The final statuses of a job, each with the state in which it leaves a running step.
 *
 * @type {Readonly<Record<string, StepState>>}
 */
const FINAL_STATUSES = { COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled" };

/** @type {Readonly<Record<string, string>>} */
const GLYPHS = {
  pending: "○",
  queued: "○",
  running: "●",
  seen: "●",
  completed: "✓",
  failed: "✕",
  skipped: "–",
  cancelled: "⊘",
};

/**
 * Returns the status of a job as a word, which is also the word for a step in that state.
 *
 * @param {unknown} status
 */
export const statusWord = (status) => (typeof status === "string" ? status.toLowerCase() : "unknown");

/**
 * Returns the sign of a state.
 *
 * @param {string} word a state of a step, or the word of a job's status
 */
export const glyphOf = (word) => (Object.hasOwn(GLYPHS, word) && GLYPHS[word]) || "○";

/** @param {string | null | undefined} status */
export const isEnded = (status) => typeof status === "string" && Object.hasOwn(FINAL_STATUSES, status);

export class Job {
  /** @type {string | null} */
  name = null;
  /** @type {string | null} */
  status = null;
  /** @type {{branch?: string | null, commit?: string | null, trigger?: string | null}} */
  facts = {};
  /** @type {string | null} */
  error = null;
  /**
   * Steps by their ids, in the order of the job's own list, then of their first events.
   *
   * @type {Map<string, Step>}
   */
  steps = new Map();
  /** @type {number | null} */
  #startedMs = null;
  /** @type {number | null} */
  #firstMs = null;
  /** @type {number | null} */
  #lastMs = null;

  /** @param {string} id */
  constructor(id) {
    this.id = id;
  }

  /** The time at which the job's time axis begins. */
  get beganMs() {
    return this.#startedMs ?? this.#firstMs;
  }

  get isOver() {
    return isEnded(this.status);
  }

  /**
   * Returns the time at which the job's time axis ends.
   *
   * @param {number} nowMs
   */
  endMs(nowMs) {
    const lastMs = this.#lastMs ?? nowMs;
    return this.isOver ? lastMs : Math.max(nowMs, lastMs);
  }

  /** @param {TimedEvent} event */
  apply({ type, stepId, timeMs, payload }) {
    this.#firstMs ??= timeMs;
    this.#lastMs = Math.max(this.#lastMs ?? timeMs, timeMs);
    const fields = asRecord(payload);
    if (stepId !== null) this.#step(stepId, timeMs).apply(type, timeMs, fields);
    else this.#applyToJob(type, timeMs, fields);
    // Some runners write neither job.queued nor job.started. Any event means that the job is running.
    this.status ??= "RUNNING";
  }

  /** @param {string} status */
  end(status) {
    this.status = status;
    for (const step of this.steps.values()) step.endWithJob(this.#lastMs, status);
  }

  /**
   * @param {string} id
   * @param {number} timeMs
   */
  #step(id, timeMs) {
    let step = this.steps.get(id);
    if (!step) this.steps.set(id, (step = new Step(id, id)));
    step.markSeen(timeMs);
    return step;
  }

  /**
   * @param {string} type
   * @param {number} timeMs
   * @param {Readonly<Record<string, unknown>>} fields
   */
  #applyToJob(type, timeMs, fields) {
    switch (type) {
      case "job.queued":
        this.status = "QUEUED";
        break;
      case "job.started":
        return this.#start(timeMs, fields);
      case "job.completed":
        return this.end("COMPLETED");
      case "job.failed":
        this.error = asText(fields.error);
        return this.end("FAILED");
      case "job.cancelled":
        this.error = asText(fields.by) && `cancelled by ${fields.by}`;
        return this.end("CANCELLED");
    }
  }

  /**
   * @param {number} timeMs
   * @param {Readonly<Record<string, unknown>>} fields
   */
  #start(timeMs, fields) {
    this.status = "RUNNING";
    this.#startedMs = timeMs;
    this.name = asText(fields.name);
    this.facts = { branch: asText(fields.branch), commit: asText(fields.commit), trigger: asText(fields.trigger) };
    for (const listed of Array.isArray(fields.steps) ? fields.steps : []) {
      const id = asText(listed?.id);
      if (id !== null && !this.steps.has(id)) this.steps.set(id, new Step(id, asText(listed.name) ?? id));
    }
  }
}

export class Step {
  /** @type {StepState} */
  state = "pending";
  /** @type {number | null} */
  fromMs = null;
  /** @type {number | null} */
  toMs = null;
  /** @type {number | null} */
  percent = null;
  /** @type {string | null} */
  message = null;

  /**
   * @param {string} id
   * @param {string} name
   */
  constructor(id, name) {
    this.id = id;
    this.name = name;
  }

  /** @param {number} timeMs */
  markSeen(timeMs) {
    if (this.state === "pending") this.state = "seen";
    this.fromMs ??= timeMs;
    if (this.state === "seen") this.toMs = timeMs;
  }

  /**
   * @param {string} type
   * @param {number} timeMs
   * @param {Readonly<Record<string, unknown>>} fields
   */
  apply(type, timeMs, fields) {
    const percent = asNumber(fields.percent);
    switch (type) {
      case "step.started":
        this.state = "running";
        this.fromMs = timeMs;
        this.toMs = null;
        this.name = asText(fields.name) ?? this.name;
        break;
      case "step.progress":
        this.percent = percent === null ? null : Math.min(100, Math.max(0, percent));
        this.message = asText(fields.message);
        break;
      case "step.completed":
        this.#end("completed", timeMs);
        break;
      case "step.failed":
        this.#end("failed", timeMs);
        this.message = asText(fields.error);
        break;
      case "step.skipped":
        this.#end("skipped", timeMs);
        this.message = asText(fields.reason);
        break;
    }
  }

  /**
   * @param {StepState} state
   * @param {number | null} timeMs
   */
  #end(state, timeMs) {
    this.state = state;
    this.toMs = timeMs;
    this.percent = null;
    this.message = null;
  }

  /**
   * Ends a running step when its job ends.
   *
   * @param {number | null} timeMs
   * @param {string} status the final status of the job
   */
  endWithJob(timeMs, status) {
    if (this.state === "running") this.#end(FINAL_STATUSES[status] ?? "cancelled", timeMs);
  }
}
