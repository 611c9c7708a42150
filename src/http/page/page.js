// The live page: which job is shown, and what its stream does to the page.

import { JobStream } from "/jobcast.js";
import { describe } from "./page/describe.js";
import { Job, isEnded, statusWord } from "./page/job.js";
import { Jobs } from "./page/jobs.js";
import { Output } from "./page/output.js";
import { Steps } from "./page/steps.js";
import { Tape } from "./page/tape.js";
import { duration, serverClock, stopwatch } from "./page/time.js";

const OFFLINE_MS = 3000;
const FRAME_MS = 50;
const STILL_FRAME_MS = 1000;
/** Ids of the newest events, to notice a repeat. */
const REMEMBERED = 50_000;
/** By then what was missed has come. */
const GAP_TOLD_MS = 700;
const STATE_WORDS = {
  connecting: "connecting…",
  live: "live",
  polling: "live, by polling",
  reconnecting: "reconnecting…",
  offline: "offline",
  complete: "complete",
  failed: "stopped",
};

const at = (id) => document.getElementById(id);
const meta = (name) => document.querySelector(`meta[name="${name}"]`).content;
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

const output = new Output(at("pane"), at("newest"), (time) => stopwatch(time - (shown?.job.beganAt ?? time)));
const steps = new Steps(at("steps"), (id) => select(id === selectedStep ? null : id));
const tape = new Tape(at("tape"));
/** @type {?Shown} */
let shown = null;
let selectedStep = null;

/** What the page calls the states of the stream. */
function nameOf({ status, attempt }, connections) {
  if (status === "open") return "live";
  if (status === "retrying" || (status === "connecting" && (attempt > 0 || connections > 0))) return "reconnecting";
  return status;
}

/** One job on the page, from its choice until another is chosen. */
class Shown {
  state = "connecting";
  connections = 0;
  events = 0;
  repeats = 0;
  /** The store knew no such job when last asked. */
  isUnknown = false;
  #seen = new Set();
  #gap = null;
  #offline = 0;
  #told = null;

  constructor(id) {
    this.job = new Job(id);
    this.stream = new JobStream(id);
    this.stream.on("state", (state) => this.#enter(state));
    this.stream.on("event", (event) => this.#take(event));
    this.stream.on("reset", ({ reason }) => this.#reset(reason));
  }

  leave() {
    clearInterval(this.#offline);
    this.stream.close();
  }

  /** What a lost network does, on request. */
  drop() {
    if (this.state !== "live") return;
    const until = performance.now() + OFFLINE_MS;
    this.#offline = setInterval(() => {
      const left = until - performance.now();
      at("drop").textContent = `Back in ${(Math.max(0, left) / 1000).toFixed(1)} s`;
      if (left > 0) return;
      clearInterval(this.#offline);
      this.#offline = 0;
      this.stream.reconnect();
    }, 100);
    this.stream.close();
    tell("Offline. The job goes on; its events wait in the store.");
  }

  #enter(state) {
    if (this !== shown && shown !== null) return;
    const was = this.state;
    const name = this.#offline ? "offline" : nameOf(state, this.connections);
    this.state = name;
    const isThere = name === "live" || name === "polling";
    if (was === "live" && (name === "offline" || name === "reconnecting")) {
      this.#gap = { from: serverClock.now(), to: Infinity, filled: 0 };
      tape.gapBegins(this.#gap.from);
    }
    if (name === "live" && was !== "live") this.connections += 1;
    if (isThere && was !== name) this.#arrive(state.cursor);
    this.#tellError(state);
    if (name === "complete") {
      if (state.jobStatus) this.job.ended(state.jobStatus);
      tellEnd(this.job.id);
      jobs.ask();
    }
    draw();
  }

  #arrive(cursor) {
    this.isUnknown = false;
    if (this.connections > 1 && cursor) at("resumed-from").textContent = cursor;
    if (!this.#gap) return tell("");
    this.#gap.to = serverClock.now();
    tape.gapEnds(this.#gap.to);
    this.#tellGap();
    const gap = this.#gap;
    setTimeout(() => this === shown && this.#gap === gap && this.state === "live" && this.#tellGap(), GAP_TOLD_MS);
  }

  #tellError({ status, error, retryInMs }) {
    if (this.#offline || error === this.#told) return;
    this.#told = error;
    if (!error) return;
    this.isUnknown = error.code === "job.not_found";
    if (this.isUnknown) return tell(`There is no job ${this.job.id} yet. It will be shown from its first event on.`);
    if (error.code === "stream.bye") return tell(`${error.message}; coming back.`);
    const isLost = error.code.startsWith("client.");
    // of a network's fault browsers know only words that help nobody
    const why = error.code === "client.network" ? "" : `: ${error.message}`;
    const what = isLost ? `The connection is lost${why}` : `${error.message} (${error.code})`;
    if (status === "failed") return tell(`${what}. Trying again will not help.`);
    tell(retryInMs > 1000 ? `${what}. Trying again in ${duration(retryInMs)}.` : `${what}. It goes on by itself.`);
  }

  #tellGap() {
    const { from, to, filled } = this.#gap;
    const events = filled === 1 ? "1 missed event" : `${filled} missed events`;
    tell(`Back after ${duration(to - from)}: ${events} filled in, ${this.repeats} repeated.`);
  }

  #take({ id, type, stepId, timestamp, payload }) {
    // the client lets none through: this is the proof
    if (this.#seen.has(id)) {
      this.repeats += 1;
      return;
    }
    this.#seen.add(id);
    if (this.#seen.size > REMEMBERED) this.#seen.delete(this.#seen.values().next().value);
    this.events += 1;
    const happened = Date.parse(timestamp);
    const event = { type, stepId, at: Number.isFinite(happened) ? happened : serverClock.now(), payload };
    const fillsGap = this.#gap !== null && event.at < this.#gap.to;
    if (fillsGap) this.#gap.filled += 1;
    tape.add(event.at, fillsGap);
    this.job.apply(event);
    const line = describe(event);
    if (line) output.add({ at: event.at, step: stepId, ...line });
  }

  #reset(reason) {
    this.job = new Job(this.job.id);
    this.#seen.clear();
    this.#gap = null;
    this.events = 0;
    clear();
    tell(`What was shown could not be continued (${reason}) and was thrown away; this is all there is.`);
  }
}

function clear() {
  output.clear();
  steps.clear();
  tape.clear();
  select(null);
}

function select(step) {
  selectedStep = step;
  output.show(step);
  steps.select(step);
  at("show-all").hidden = step === null;
  at("output-of").textContent = step === null ? "all steps" : (shown.job.steps.get(step)?.name ?? step);
}

function tell(text) {
  if (at("told").textContent !== text) at("told").textContent = text;
}

/** Where to look next, as soon as there is something. */
function tellEnd(id) {
  const next = jobs.newestRunning(id);
  if (at("told").querySelector("a")) return;
  tell("The job has ended, and this was all of it.");
  if (!next) return;
  const link = document.createElement("a");
  link.href = `#job=${encodeURIComponent(next.jobId)}`;
  link.textContent = `Watch ${next.jobId}`;
  at("told").append(" ", link);
}

function show(id) {
  if (shown?.job.id === id) return;
  shown?.leave();
  shown = null;
  clear();
  tell("");
  at("resumed-from").textContent = "–";
  at("empty").hidden = true;
  at("job").hidden = false;
  shown = new Shown(id);
  jobs.select(id);
  draw();
}

function chosen() {
  const id = new URLSearchParams(location.hash.slice(1)).get("job");
  return id === null || id === "" ? null : id;
}

function listed(list) {
  const id = chosen() ?? shown?.job.id ?? (jobs.newestRunning(null) ?? list[0])?.jobId ?? null;
  if (id !== null) show(id);
  else at("empty").hidden = false;
  const entry = list.find((job) => job.jobId === shown?.job.id);
  if (!entry) return;
  if (shown.state === "failed" && shown.isUnknown) shown.stream.reconnect();
  if (shown.state === "complete") tellEnd(shown.job.id);
  // a job may wait for long before its first event, and a stream that comes back after the end tells no status
  if (!isEnded(entry.status)) shown.job.status ??= entry.status;
  else if (shown.state === "complete" && !shown.job.isOver) shown.job.ended(entry.status);
}

function setText(id, text) {
  if (at(id).textContent !== text) at(id).textContent = text;
}

function draw() {
  if (!shown) return;
  const { job, state } = shown;
  const now = serverClock.now();
  const status = statusWord(job.status ?? "");
  const title = job.name ?? job.id;
  setText("job-title", title);
  setText("job-id", job.id);
  at("job-id").parentElement.hidden = job.name === null;
  setText("job-status", status);
  at("job-status").dataset.status = job.status ?? "";
  setText("job-elapsed", job.beganAt === null ? "" : duration(job.endAt(now) - job.beganAt));
  const { branch, commit, trigger } = job.facts;
  setText("job-facts", [branch, commit, trigger].filter(Boolean).join("  ·  "));
  setText("job-error", job.error ?? "");
  at("job-error").hidden = job.error === null;
  setText("state", STATE_WORDS[state] ?? "");
  at("state").dataset.state = state;
  at("job").dataset.state = state;
  const drop = at("drop");
  drop.disabled = state !== "live";
  if (state !== "offline") setText("drop", "Drop the connection");
  for (const [id, count] of [
    ["count-events", shown.events],
    ["count-repeats", shown.repeats],
    ["count-connections", shown.connections],
  ]) {
    setText(id, count.toLocaleString("en"));
    at(id).dataset.value = count;
  }
  document.title = `${job.id} · ${status} · Jobcast`;
  steps.draw(job, now);
  if (selectedStep !== null) steps.select(selectedStep);
  tape.draw(job.endAt(now), stillness.matches);
  setText("tape-end", job.isOver ? "end" : "now");
}

function tick() {
  draw();
  setTimeout(() => requestAnimationFrame(tick), stillness.matches ? STILL_FRAME_MS : FRAME_MS);
}

const hint = meta("jobcast-events-path").replace("{job_id}", "hello-1");
at("hint").textContent = `curl -X POST ${location.origin}${hint} \\
  -H 'Content-Type: application/json' \\
  -d '{"type":"step.output","stepId":"greet","payload":{"line":"hello"}}'`;
at("drop").addEventListener("click", () => shown?.drop());
at("show-all").addEventListener("click", () => select(null));
addEventListener("hashchange", () => chosen() !== null && show(chosen()));
const jobs = new Jobs(at("jobs"), listed);
if (chosen() !== null) show(chosen());
tick();
