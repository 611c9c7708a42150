// @ts-check
// The live page: the choice of a job, and its picture.

import { currentView, keepToken, linkTo, replaceView } from "./page/address.js";
import { byId, setText } from "./page/dom.js";
import { eventsAddress } from "./page/history.js";
import { isEnded, statusWord } from "./page/job.js";
import { Jobs } from "./page/jobs.js";
import { Output } from "./page/output.js";
import { copyText, flash } from "./page/save.js";
import { Search } from "./page/search.js";
import { Steps } from "./page/steps.js";
import { duration, serverClock } from "./page/time.js";
import { Timeline } from "./page/timeline.js";
import { Tools } from "./page/tools.js";
import { WatchedJob } from "./page/watched.js";

/** @typedef {import("./page/jobs.js").ListedJob} ListedJob */

const FRAME_MS = 50;
/** The time between two pictures for a reader who prefers reduced motion. */
const STILL_FRAME_MS = 1000;

/** @type {Readonly<Record<import("./page/watched.js").Connection, string>>} */
const CONNECTION_WORDS = {
  connecting: "connecting…",
  live: "live",
  waiting: "waiting for the store…",
  polling: "live, by polling",
  reconnecting: "reconnecting…",
  offline: "offline",
  complete: "complete",
  missing: "no such job yet",
  denied: "not allowed",
  failed: "stopped",
  closed: "",
};

/** The page. It alone decides which job is watched and which of its steps is selected. */
class Page {
  /** @type {WatchedJob | null} */
  #watched = null;
  /** @type {string | null} */
  #selectedStep = null;
  /** The reader has chosen a job or the list; until then the newest running job is shown. */
  #hasChosen = false;
  #notice = byId("notice");
  #drop = byId("drop", HTMLButtonElement);
  #output = new Output(byId("pane"), byId("newest", HTMLButtonElement), (timeMs) => this.#tools.timeOf(timeMs));
  #search = new Search(this.#output);
  #tools = new Tools(this.#output, () => this.#watched?.job ?? null);
  #steps = new Steps(byId("steps"), (id) => this.#selectStep(id === this.#selectedStep ? null : id));
  #timeline = new Timeline(byId("timeline", HTMLCanvasElement));
  #jobs = new Jobs(byId("jobs"), (jobs, runAgain) => this.#onJobs(jobs, runAgain));
  #stillness = matchMedia("(prefers-reduced-motion: reduce)");

  constructor() {
    const isDemo = document.querySelector('meta[name="jobcast-demo"]')?.getAttribute("content") === "yes";
    for (const toy of document.querySelectorAll("[data-demo]")) /** @type {HTMLElement} */ (toy).hidden = !isDemo;
    this.#drop.addEventListener("click", () => this.#watched?.drop());
    byId("show-all").addEventListener("click", () => this.#selectStep(null));
    byId("retry-now").addEventListener("click", () => this.#watched?.reconnect());
    const copyId = byId("copy-id", HTMLButtonElement);
    copyId.addEventListener("click", async () => {
      flash(copyId, (await copyText(this.#watched?.job.id ?? "")) ? "Copied" : "Not allowed");
    });
    addEventListener("hashchange", () => this.#onAddress());
    document.addEventListener("click", (event) => this.#onLink(event));
    this.#hasChosen = location.href.endsWith("#");
    this.#onAddress();
    this.#tick();
  }

  /** Shows how to write a first event. */
  #showHint() {
    byId("hint").textContent = `curl -X POST ${eventsAddress("hello-1")} \\
  -H 'Content-Type: application/json' \\
  -d '{"type":"step.output","stepId":"greet","payload":{"line":"hello"}}'`;
  }

  // ---- the address

  #onAddress() {
    keepToken();
    const { job, step, line } = currentView();
    if (job === null) return this.#showList();
    this.#watch(job);
    if (step !== this.#selectedStep) this.#showStep(step);
    this.#output.aim(line);
  }

  /**
   * Follows the links that the address alone does not: past the list, to the list, and to the line that is named already.
   *
   * @param {MouseEvent} event
   */
  #onLink(event) {
    const link = event.target instanceof Element ? event.target.closest('a[href^="#"]') : null;
    const href = link?.getAttribute("href");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (link.id === "skip") {
      event.preventDefault();
      byId("job-title").focus();
    } else if (href === "#") {
      event.preventDefault();
      this.#hasChosen = true;
      history.pushState(null, "", `${location.pathname}${location.search}#`);
      this.#onAddress();
    } else if (link.classList.contains("time") && href === linkTo(currentView())) this.#output.aim(currentView().line);
  }

  #showList() {
    this.#watched?.leave();
    this.#watched = null;
    this.#clear(null);
    this.#jobs.select(null);
    byId("job").hidden = true;
    byId("skip").hidden = true;
    document.body.dataset.view = this.#hasChosen ? "list" : "job";
    document.title = "Jobcast";
    setText(byId("state"), "");
  }

  // ---- the watched job

  /** @param {string} id */
  #watch(id) {
    this.#hasChosen = true;
    if (this.#watched?.job.id === id) return;
    this.#watched?.leave();
    this.#watched = null;
    this.#clear(id);
    this.#announce("");
    byId("resumed-from").textContent = "–";
    byId("empty").hidden = true;
    byId("job").hidden = false;
    byId("skip").hidden = false;
    document.body.dataset.view = "job";
    this.#watched = new WatchedJob(id, {
      show: (event) => {
        const line = this.#output.add(event);
        if (line) this.#search.add(line);
      },
      timeline: this.#timeline,
      announce: (text, tone) => this.#announce(text, tone),
      onResumed: (cursor) => setText(byId("resumed-from"), cursor),
      onOffline: (leftMs) => setText(this.#drop, `Back in ${(leftMs / 1000).toFixed(1)} s`),
      onReset: () => {
        const step = this.#selectedStep;
        this.#clear(id);
        if (step !== null) this.#showStep(step);
      },
      onComplete: () => {
        this.#announceEnd(id);
        this.#jobs.refresh();
      },
      onChange: () => this.#draw(),
    });
    this.#jobs.select(id);
    this.#draw();
  }

  /** @param {string | null} id */
  #clear(id) {
    this.#output.clear(id ?? "");
    this.#steps.clear();
    this.#timeline.clear();
    this.#showStep(null);
  }

  /**
   * Takes over a new list of jobs. If the reader has chosen nothing yet, the newest running job is watched.
   *
   * @param {ListedJob[]} jobs
   * @param {Set<string>} runAgain those that have ended, and are run again
   */
  #onJobs(jobs, runAgain) {
    const first = this.#jobs.newestRunning(null) ?? jobs[0];
    if (!this.#hasChosen && first) this.#watch(first.jobId);
    byId("empty").hidden = this.#watched !== null || jobs.length > 0 || this.#jobs.isFiltered;
    if (!byId("empty").hidden) this.#showHint();
    const watched = this.#watched;
    const listed = jobs.find((job) => job.jobId === watched?.job.id);
    if (!watched || !listed) return;
    if (watched.connection === "missing") watched.reconnect();
    watched.onListed(listed.lastEventAt, runAgain.has(watched.job.id));
    if (watched.connection === "complete") this.#announceEnd(watched.job.id);
    // The list knows the status of a job that has no event yet, and of one whose stream ended before this page came.
    if (!isEnded(listed.status)) watched.job.status ??= listed.status;
    else if (watched.connection === "complete" && !watched.job.isOver) watched.job.end(listed.status);
  }

  // ---- notices

  /**
   * @param {string} text
   * @param {import("./page/watched.js").Tone} [tone]
   */
  #announce(text, tone = "quiet") {
    setText(this.#notice, text);
    byId("notice-box").dataset.tone = tone;
    byId("notice-box").hidden = text === "";
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
    link.href = linkTo({ job: next.jobId });
    link.textContent = `Watch ${next.jobId}`;
    this.#notice.append(" ", link);
  }

  // ---- the selected step

  /** @param {string | null} id a step, or `null` for all */
  #selectStep(id) {
    const { job } = currentView();
    if (job !== null) replaceView({ job, step: id });
    this.#output.aim(null);
    this.#showStep(id);
  }

  /** @param {string | null} id */
  #showStep(id) {
    this.#selectedStep = id;
    this.#output.show(id);
    this.#search.again();
    this.#steps.select(id);
    byId("show-all").hidden = id === null;
    this.#drawStepName();
  }

  #drawStepName() {
    const id = this.#selectedStep;
    setText(byId("output-of"), id === null ? "all steps" : (this.#watched?.job.steps.get(id)?.name ?? id));
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
    if (job.name !== null) this.#jobs.name(job.id, job.name);
    this.#steps.draw(job, nowMs);
    if (this.#selectedStep !== null) {
      this.#steps.select(this.#selectedStep);
      this.#drawStepName();
    }
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
    byId("job-id").hidden = job.name === null;
    const status = byId("job-status");
    setText(status, job.status === null ? "" : statusWord(job.status));
    status.dataset.status = job.status ?? "";
    setText(byId("job-elapsed"), job.beganMs === null ? "" : duration(job.endMs(nowMs) - job.beganMs));
    const { branch, commit, trigger } = job.facts;
    setText(byId("job-facts"), [branch, commit, trigger].filter(Boolean).join("  ·  "));
    setText(byId("job-error"), job.error ?? "");
    byId("job-error").hidden = job.error === null;
  }

  /** @param {WatchedJob} watched */
  #drawConnection({ connection, events, repeats, connections, retryAtMs }) {
    setText(byId("state"), CONNECTION_WORDS[connection]);
    byId("state").dataset.state = connection;
    byId("job").dataset.state = connection;
    byId("job").classList.toggle("without-events", events === 0);
    this.#drawRetry(connection, retryAtMs);
    this.#drop.disabled = connection !== "live";
    if (connection !== "offline") setText(this.#drop, "Drop the connection");
    for (const [name, count] of Object.entries({ events, repeats, connections })) {
      const counter = byId(`count-${name}`);
      setText(counter, count.toLocaleString("en"));
      counter.dataset.value = `${count}`;
    }
  }

  /**
   * Counts down to the next try. The countdown is no part of the notice, which is read out whenever it changes.
   *
   * @param {import("./page/watched.js").Connection} connection
   * @param {number | null} retryAtMs
   */
  #drawRetry(connection, retryAtMs) {
    const isGivenUp = connection === "failed" || connection === "denied";
    byId("retry-now").hidden = retryAtMs === null && !isGivenUp;
    setText(byId("retry-now"), isGivenUp ? "Try again" : "Try now");
    const leftS = retryAtMs === null ? 0 : Math.ceil((retryAtMs - performance.now()) / 1000);
    setText(
      byId("retry-in"),
      leftS > 0 ? `Trying again in ${leftS} s.` : connection === "reconnecting" ? "Trying now…" : "",
    );
  }
}

new Page();
