// What is known of one job: grows with each of its events.

const KEPT_LINES = 2000;
const ENDS = { "job.completed": "COMPLETED", "job.failed": "FAILED", "job.cancelled": "CANCELLED" };
// colours and cursor moves of terminals
const ESCAPES = /\u001b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\u0007\u001b]*(?:\u0007|\u001b\\)|.)/g;
const CONTROLS = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g;

export const isFinal = (status) => Object.values(ENDS).includes(status);

const clean = (text) => text.replace(ESCAPES, "").replace(CONTROLS, "");

export class Job {
  id;
  name = null;
  status = null;
  facts = [];
  // by id, in the order in which they were told of
  steps = new Map();
  lines = [];
  // lines that came before those kept
  dropped = 0;
  begin = null;
  end = null;
  newest = null;
  events = 0;
  repeats = 0;
  #seen = new Set();

  constructor(id) {
    this.id = id;
  }

  // False where this very event was taken before.
  take(event) {
    if (this.#seen.has(event.id)) {
      this.repeats += 1;
      return false;
    }
    this.#seen.add(event.id);
    this.events += 1;
    const at = Date.parse(event.timestamp) || Date.now();
    this.newest = Math.max(this.newest ?? at, at);
    const { type } = event;
    const payload = event.payload ?? {};
    if (this.begin === null || type === "job.started") this.begin = at;
    if (type === "job.started") this.#start(payload);
    if (ENDS[type]) {
      this.status = ENDS[type];
      this.end = at;
    } else if (this.status === null || type === "job.started") {
      this.status = type === "job.queued" ? "QUEUED" : "RUNNING";
    }
    if (event.stepId) this.#step(event.stepId, type, payload, at);
    this.#line(event, type, payload, at);
    return true;
  }

  // As the source says, which knows better than the events.
  ended(status) {
    this.status = status;
    this.end ??= this.newest ?? Date.now();
  }

  #start({ name, branch, commit, trigger, steps }) {
    this.name = text(name);
    this.facts = [text(branch), text(commit), trigger && `by ${text(trigger)}`].filter(Boolean);
    this.end = null;
    if (!Array.isArray(steps)) return;
    for (const step of steps) this.#find(String(step.id)).name = text(step.name) ?? String(step.id);
  }

  #find(id) {
    if (!this.steps.has(id)) {
      this.steps.set(id, { id, name: id, state: "waiting", begin: null, end: null, percent: null, note: null });
    }
    return this.steps.get(id);
  }

  #step(id, type, payload, at) {
    const step = this.#find(id);
    const ends = { "step.completed": "completed", "step.failed": "failed", "step.skipped": "skipped" };
    if (type === "step.skipped") {
      step.state = "skipped";
      step.note = text(payload.reason);
      return;
    }
    step.begin ??= at;
    if (type === "step.started" && payload.name) step.name = text(payload.name);
    if (type === "step.progress") step.percent = Math.max(0, Math.min(100, Number(payload.percent) || 0));
    if (ends[type]) {
      step.state = ends[type];
      step.end = at;
      step.note = text(payload.error);
    } else if (step.end === null) {
      step.state = "running";
    }
  }

  #line(event, type, payload, at) {
    if (type === "step.progress") return;
    const isOutput = type === "step.output" && typeof payload.line === "string";
    const tone = isOutput ? (payload.stream === "stderr" ? "error" : "plain") : type.endsWith(".failed") ? "failed" : "own";
    const content = isOutput ? payload.line.replace(/[\r\n]+$/, "") : described(type, payload);
    this.lines.push({ at, step: event.stepId, tone, text: clean(content) });
    if (this.lines.length > KEPT_LINES * 2) {
      this.dropped += this.lines.length - KEPT_LINES;
      this.lines = this.lines.slice(-KEPT_LINES);
    }
  }
}

function text(value) {
  return value === undefined || value === null ? null : clean(String(value));
}

export function duration(ms) {
  const seconds = Math.max(0, ms) / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// Our own demo's vocabulary in words; anything else as it is.
function described(type, payload) {
  const took = typeof payload.durationMs === "number" ? ` in ${duration(payload.durationMs)}` : "";
  switch (type) {
    case "job.queued":
      return "queued";
    case "job.started":
      return `started${payload.trigger ? ` by ${payload.trigger}` : ""}`;
    case "step.started":
      return "started";
    case "step.completed":
    case "job.completed":
      return `completed${took}`;
    case "step.failed":
    case "job.failed":
      return `failed${took}${payload.error ? `: ${payload.error}` : ""}`;
    case "step.skipped":
      return `skipped${payload.reason ? `: ${payload.reason}` : ""}`;
    case "job.cancelled":
      return `cancelled${payload.by ? ` by ${payload.by}` : ""}`;
    default: {
      const shown = JSON.stringify(payload);
      return shown === "{}" ? type : `${type} ${shown.length > 2000 ? `${shown.slice(0, 2000)}…` : shown}`;
    }
  }
}
