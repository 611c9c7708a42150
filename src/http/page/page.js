// @ts-check
// The live page: the choice of a job, and its picture.

import { byId, setText } from "./page/dom.js";
import { isEnded, statusWord } from "./page/job.js";
import { Jobs } from "./page/jobs.js";
import { Output } from "./page/output.js";
import { Steps } from "./page/steps.js";
import { duration, serverClock, stopwatch } from "./page/time.js";
import { Timeline } from "./page/timeline.js";
import { WatchedJob } from "./page/watched.js";

/** @typedef {import("./page/jobs.js").ListedJob} ListedJob */

const FRAME_MS = 50;
/** The time between two pictures for a reader who prefers reduced motion. */
const STILL_FRAME_MS = 1000;

/** @type {Readonly<Record<import("./page/watched.js").Connection, string>>} */
const CONNECTION_WORDS = {
  connecting: "connecting…",
  live: "live",
  polling: "live, by polling",
  reconnecting: "reconnecting…",
  offline: "offline",
  complete: "complete",
  failed: "stopped",
  closed: "",
};

/** The page. It alone decides which job is watched and which of its steps is selected. */
class Page {
  /** @type {WatchedJob | null} */
  #watched = null;
  /** @type {string | null} */
  #selectedStep = null;
  #notice = byId("notice");
  #drop = byId("drop", HTMLButtonElement);
  #output = new Output(byId("pane"), byId("newest", HTMLButtonElement), (timeMs) =>
    stopwatch(timeMs - (this.#watched?.job.beganMs ?? timeMs)),
  );
  #steps = new Steps(byId("steps"), (id) => this.#selectStep(id === this.#selectedStep ? null : id));
  #timeline = new Timeline(byId("timeline", HTMLCanvasElement));
  #jobs = new Jobs(byId("jobs"), (jobs) => this.#onJobs(jobs));
  #stillness = matchMedia("(prefers-reduced-motion: reduce)");

  constructor() {
    this.#drop.addEventListener("click", () => this.#watched?.drop());
    byId("show-all").addEventListener("click", () => this.#selectStep(null));
    addEventListener("hashchange", () => this.#watchChosen());
    this.#showHint();
    this.#watchChosen();
    this.#tick();
  }

  /** Shows how to write a first event. */
  #showHint() {
    const meta = document.querySelector('meta[name="jobcast-events-path"]');
    const path = meta?.getAttribute("content")?.replace("{job_id}", "hello-1").replace(/^\//, "");
    byId("hint").textContent = `curl -X POST ${new URL(path ?? "", location.href)} \\
  -H 'Content-Type: application/json' \\
  -d '{"type":"step.output","stepId":"greet","payload":{"line":"hello"}}'`;
  }

  // ---- the watched job

  #watchChosen() {
    const id = chosenJob();
    if (id !== null) this.#watch(id);
  }

  /** @param {string} id */
  #watch(id) {
    if (this.#watched?.job.id === id) return;
    this.#watched?.leave();
    this.#watched = null;
    this.#clear();
    this.#announce("");
    byId("resumed-from").textContent = "–";
    byId("empty").hidden = true;
    byId("job").hidden = false;
    this.#watched = new WatchedJob(id, {
      output: this.#output,
      timeline: this.#timeline,
      announce: (text) => this.#announce(text),
      onResumed: (cursor) => setText(byId("resumed-from"), cursor),
      onOffline: (leftMs) => setText(this.#drop, `Back in ${(leftMs / 1000).toFixed(1)} s`),
      onReset: () => this.#clear(),
      onComplete: () => {
        this.#announceEnd(id);
        this.#jobs.refresh();
      },
      onChange: () => this.#draw(),
    });
    this.#jobs.select(id);
    this.#draw();
  }

  #clear() {
    this.#output.clear();
    this.#steps.clear();
    this.#timeline.clear();
    this.#selectStep(null);
  }

  /**
   * Takes over a new list of jobs. If no job is watched yet, the newest running one is.
   *
   * @param {ListedJob[]} jobs
   */
  #onJobs(jobs) {
    const first = this.#jobs.newestRunning(null) ?? jobs[0];
    const id = chosenJob() ?? this.#watched?.job.id ?? first?.jobId ?? null;
    if (id !== null) this.#watch(id);
    else byId("empty").hidden = false;
    const watched = this.#watched;
    const listed = jobs.find((job) => job.jobId === watched?.job.id);
    if (!watched || !listed) return;
    if (watched.connection === "failed" && watched.isUnknown) watched.reconnect();
    if (watched.connection === "complete") this.#announceEnd(watched.job.id);
    // The list knows the status of a job that has no event yet, and of one whose stream ended before this page came.
    if (!isEnded(listed.status)) watched.job.status ??= listed.status;
    else if (watched.connection === "complete" && !watched.job.isOver) watched.job.end(listed.status);
  }

  // ---- notices

  /** @param {string} text */
  #announce(text) {
    setText(this.#notice, text);
  }

  /**
   * Announces the end of a job, with a link to another that is running as soon as there is one.
   *
   * @param {string} id
   */
  #announceEnd(id) {
    if (this.#notice.querySelector("a")) return;
    this.#announce("The job has ended, and this was all of it.");
    const next = this.#jobs.newestRunning(id);
    if (!next) return;
    const link = document.createElement("a");
    link.href = `#job=${encodeURIComponent(next.jobId)}`;
    link.textContent = `Watch ${next.jobId}`;
    this.#notice.append(" ", link);
  }

  // ---- the selected step

  /** @param {string | null} id a step, or `null` for all */
  #selectStep(id) {
    this.#selectedStep = id;
    this.#output.show(id);
    this.#steps.select(id);
    byId("show-all").hidden = id === null;
    byId("output-of").textContent = id === null ? "all steps" : (this.#watched?.job.steps.get(id)?.name ?? id);
  }

  // ---- the picture

  #tick() {
    this.#draw();
    setTimeout(() => requestAnimationFrame(() => this.#tick()), this.#stillness.matches ? STILL_FRAME_MS : FRAME_MS);
  }

  #draw() {
    const watched = this.#watched;
    if (!watched) return;
    const { job } = watched;
    const nowMs = serverClock.now();
    this.#drawHead(watched, nowMs);
    this.#drawConnection(watched);
    document.title = `${job.id} · ${statusWord(job.status ?? "")} · Jobcast`;
    this.#steps.draw(job, nowMs);
    if (this.#selectedStep !== null) this.#steps.select(this.#selectedStep);
    this.#timeline.draw(job.endMs(nowMs), this.#stillness.matches);
    setText(byId("timeline-end"), job.isOver ? "end" : "now");
  }

  /**
   * @param {WatchedJob} watched
   * @param {number} nowMs
   */
  #drawHead({ job }, nowMs) {
    setText(byId("job-title"), job.name ?? job.id);
    setText(byId("job-id"), job.id);
    byId("job-eyebrow").hidden = job.name === null;
    const status = byId("job-status");
    setText(status, statusWord(job.status ?? ""));
    status.dataset.status = job.status ?? "";
    setText(byId("job-elapsed"), job.beganMs === null ? "" : duration(job.endMs(nowMs) - job.beganMs));
    const { branch, commit, trigger } = job.facts;
    setText(byId("job-facts"), [branch, commit, trigger].filter(Boolean).join("  ·  "));
    setText(byId("job-error"), job.error ?? "");
    byId("job-error").hidden = job.error === null;
  }

  /** @param {WatchedJob} watched */
  #drawConnection({ connection, events, repeats, connections }) {
    setText(byId("state"), CONNECTION_WORDS[connection]);
    byId("state").dataset.state = connection;
    byId("job").dataset.state = connection;
    this.#drop.disabled = connection !== "live";
    if (connection !== "offline") setText(this.#drop, "Drop the connection");
    for (const [name, count] of Object.entries({ events, repeats, connections })) {
      const counter = byId(`count-${name}`);
      setText(counter, count.toLocaleString("en"));
      counter.dataset.value = `${count}`;
    }
  }
}

/** Returns the job that the address of the page names. */
function chosenJob() {
  return new URLSearchParams(location.hash.slice(1)).get("job") || null;
}

new Page();
