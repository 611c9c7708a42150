// What is known of one job, from its events. Events are foreign input: any type, any payload.

const ENDED = { COMPLETED: "completed", FAILED: "failed", CANCELLED: "cancelled" };

export const statusWord = (status) => (typeof status === "string" ? status.toLowerCase() : "unknown");
export const isEnded = (status) => Object.hasOwn(ENDED, status);

export class Job {
  name = null;
  status = null;
  facts = {};
  error = null;
  /** @type {Map<string, Step>} in the order of the list, or of first sight */
  steps = new Map();
  startedAt = null;
  firstAt = null;
  lastAt = null;

  constructor(id) {
    this.id = id;
  }

  /** Milliseconds on the server's clock at which the job's time line begins. */
  get beganAt() {
    return this.startedAt ?? this.firstAt;
  }

  get isOver() {
    return isEnded(this.status);
  }

  /** When the picture ends. */
  endAt(now) {
    return this.isOver ? this.lastAt ?? now : Math.max(now, this.lastAt ?? now);
  }

  apply({ type, stepId, at, payload }) {
    this.firstAt ??= at;
    this.lastAt = Math.max(this.lastAt ?? at, at);
    const fields = payload !== null && typeof payload === "object" ? payload : {};
    if (stepId !== null) this.#step(stepId, at).apply(type, at, fields);
    else this.#applyToJob(type, at, fields);
    // whoever writes no job.queued and no job.started is running as soon as there is anything
    this.status ??= "RUNNING";
  }

  ended(status) {
    this.status = status;
    for (const step of this.steps.values()) step.jobEnded(this.lastAt, status);
  }

  #step(id, at) {
    let step = this.steps.get(id);
    if (!step) this.steps.set(id, (step = new Step(id, id)));
    step.seen(at);
    return step;
  }

  #applyToJob(type, at, fields) {
    switch (type) {
      case "job.queued":
        this.status = "QUEUED";
        break;
      case "job.started":
        this.status = "RUNNING";
        this.startedAt = at;
        this.name = words(fields.name);
        this.facts = { branch: words(fields.branch), commit: words(fields.commit), trigger: words(fields.trigger) };
        for (const listed of Array.isArray(fields.steps) ? fields.steps : []) {
          const id = words(listed?.id);
          if (id !== null && !this.steps.has(id)) this.steps.set(id, new Step(id, words(listed.name) ?? id));
        }
        break;
      case "job.completed":
        return this.ended("COMPLETED");
      case "job.failed":
        this.error = words(fields.error);
        return this.ended("FAILED");
      case "job.cancelled":
        this.error = words(fields.by) && `cancelled by ${fields.by}`;
        return this.ended("CANCELLED");
    }
  }
}

export class Step {
  /** pending | running | seen (never said to have started) | completed | failed | skipped | cancelled */
  state = "pending";
  from = null;
  to = null;
  percent = null;
  message = null;

  constructor(id, name) {
    this.id = id;
    this.name = name;
  }

  seen(at) {
    if (this.state === "pending") this.state = "seen";
    this.from ??= at;
    if (this.state === "seen") this.to = at;
  }

  apply(type, at, fields) {
    switch (type) {
      case "step.started":
        this.state = "running";
        this.from = at;
        this.to = null;
        this.name = words(fields.name) ?? this.name;
        break;
      case "step.progress":
        this.percent = Number.isFinite(fields.percent) ? Math.min(100, Math.max(0, fields.percent)) : null;
        this.message = words(fields.message);
        break;
      case "step.completed":
        this.#end("completed", at);
        break;
      case "step.failed":
        this.#end("failed", at);
        this.message = words(fields.error);
        break;
      case "step.skipped":
        this.#end("skipped", at);
        this.message = words(fields.reason);
        break;
    }
  }

  #end(state, at) {
    this.state = state;
    this.to = at;
    this.percent = null;
    this.message = null;
  }

  jobEnded(at, status) {
    if (this.state === "running") this.#end(ENDED[status] ?? "cancelled", at);
  }
}

function words(value) {
  if (typeof value === "number") return String(value);
  return typeof value === "string" && value !== "" ? value.slice(0, 300) : null;
}
