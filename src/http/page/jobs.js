// @ts-check
// The list of jobs, read again and again while the page is visible, and its filter. One of its links is reached by Tab,
// the others by the arrow keys.

import { currentFilter, linkTo, replaceFilter } from "./address.js";
import { byId, make, setText } from "./dom.js";
import { glyphOf, isEnded, statusWord } from "./job.js";
import { Live } from "./live.js";
import { Names } from "./names.js";
import { ago, serverClock } from "./time.js";
import { authorization } from "./token.js";

/** @typedef {{jobId: string, status: string, lastEventAt: string | null}} ListedJob */

/**
 * The elements of one job in the list.
 *
 * @typedef {object} Entry
 * @property {HTMLElement} item
 * @property {HTMLAnchorElement} link
 * @property {HTMLElement} glyph
 * @property {HTMLElement} title the job's name, where it has one
 * @property {HTMLElement} word
 * @property {HTMLElement} when
 * @property {HTMLElement} last its last line
 * @property {HTMLElement} progress
 */

const REFRESH_MS = 2000;
/** Drawing what has changed waits so long, so that many events are drawn together. */
const DRAW_MS = 100;
const LIMIT = 200;
/** With a text to look for, the list is as long as Jobcast gives it. */
const FILTERED_LIMIT = 500;
/** The end of an id that stays in sight where its middle does not. */
const TAIL_LENGTH = 8;

/** @type {{title: string, holds: (job: ListedJob) => boolean}[]} */
const GROUPS = [
  { title: "Running", holds: (job) => !isEnded(job.status) && !isWaiting(job) },
  { title: "Waiting", holds: (job) => isWaiting(job) },
  { title: "Ended", holds: (job) => isEnded(job.status) },
];

/** @param {ListedJob} job */
const isWaiting = ({ status }) => status === "QUEUED" || status === "PENDING";

/**
 * Returns the jobs that had ended by the list before and are running by the new one.
 *
 * @param {ListedJob[]} before
 * @param {ListedJob[]} now
 */
function jobsRunAgain(before, now) {
  const ended = new Set(before.filter(({ status }) => isEnded(status)).map(({ jobId }) => jobId));
  return new Set(now.flatMap(({ jobId, status }) => (status && !isEnded(status) && ended.has(jobId) ? [jobId] : [])));
}

export class Jobs {
  /** @type {ListedJob[]} */
  #jobs = [];
  /** @type {string | null} */
  #selected = null;
  /** The selected job was scrolled into view once; afterwards the list is the reader's to scroll. */
  #isRevealed = false;
  /** @type {Map<string, Entry>} */
  #entries = new Map();
  /**
   * The order in which jobs were first seen. A list by their last events would jump with each of these.
   *
   * @type {Map<string, number>}
   */
  #order = new Map();
  #names = new Names((jobId, name) => this.#showName(jobId, name));
  #live = new Live((jobId) => this.#drawSoon(jobId));
  /** The jobs that have changed since the list was drawn. */
  #changed = new Set();
  #nav;
  #note;
  #direct = make("a", "direct");
  #find = byId("job-find", HTMLInputElement);
  #status = byId("job-status-filter", HTMLSelectElement);
  #groups;
  #onList;

  /**
   * @param {HTMLElement} nav
   * @param {(jobs: ListedJob[], runAgain: Set<string>) => void} onList receives each new list, and the jobs that have ended and
   *   are run again
   */
  constructor(nav, onList) {
    this.#onList = onList;
    this.#nav = nav;
    this.#note = nav.appendChild(make("p", "note"));
    nav.append(this.#direct);
    this.#groups = GROUPS.map(({ title, holds }) => {
      const section = nav.appendChild(document.createElement("section"));
      const heading = section.appendChild(document.createElement("h2"));
      const list = section.appendChild(document.createElement("ol"));
      heading.textContent = title;
      list.setAttribute("aria-label", title);
      section.hidden = true;
      return { holds, section, list };
    });
    this.#setUpFilter();
    nav.addEventListener("keydown", (event) => this.#onKey(event));
    nav.addEventListener("focusin", ({ target }) => {
      if (target instanceof HTMLAnchorElement && target !== this.#direct) this.#setTabStop(target);
    });
    document.addEventListener("visibilitychange", () => this.refresh());
    setInterval(() => this.refresh(), REFRESH_MS);
    this.refresh();
  }

  #setUpFilter() {
    const { status, find } = currentFilter();
    this.#find.value = find;
    this.#status.value = status;
    // An unknown status would ask for nothing at all.
    if (this.#status.selectedIndex < 0) this.#status.value = "";
    const onChange = () => {
      replaceFilter({ status: this.#status.value, find: this.#find.value.trim() });
      this.#draw();
      this.refresh();
    };
    this.#find.addEventListener("input", onChange);
    this.#status.addEventListener("change", onChange);
    this.#find.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      const first = this.#nav.querySelector("section:not([hidden]) a");
      location.hash = (this.#direct.hidden && first?.getAttribute("href")) || this.#direct.hash;
    });
  }

  get isFiltered() {
    return this.#find.value.trim() !== "" || this.#status.value !== "";
  }

  /** @param {string | null} id */
  select(id) {
    this.#selected = id;
    this.#isRevealed = false;
    for (const [jobId, { link }] of this.#entries) markSelected(link, jobId === id);
    this.#reveal();
  }

  /**
   * Takes over the name of a job that was learned elsewhere.
   *
   * @param {string} jobId
   * @param {string} name
   */
  name(jobId, name) {
    this.#names.learn(jobId, name);
  }

  #reveal() {
    const entry = this.#selected === null ? undefined : this.#entries.get(this.#selected);
    if (this.#isRevealed || !entry) return;
    this.#isRevealed = true;
    this.#setTabStop(entry.link);
    entry.link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /**
   * Returns the running job with the newest event.
   *
   * @param {string | null} except
   */
  newestRunning(except) {
    return this.#jobs.find((job) => this.#statusOf(job) === "RUNNING" && job.jobId !== except) ?? null;
  }

  async refresh() {
    if (document.hidden) return;
    const status = this.#status.value;
    const query = new URLSearchParams({ limit: `${this.#find.value.trim() ? FILTERED_LIMIT : LIMIT}` });
    if (status) query.set("status", status);
    try {
      const response = await fetch(`runner-jobs?${query}`, { cache: "no-store", headers: authorization });
      const answer = await response.json().catch(() => null);
      if (status !== this.#status.value) return;
      if (!response.ok || !Array.isArray(answer?.jobs)) return this.#setNote(refusal(response, answer));
      serverClock.adjust(response.headers.get("Date"));
      const runAgain = jobsRunAgain(this.#jobs, answer.jobs);
      this.#jobs = answer.jobs;
      this.#draw();
      const listed = this.#shown(this.#jobs).map(({ jobId }) => jobId);
      // The selected job is watched in any case, and counts among those that share a connection.
      this.#live.watch(this.#selected === null ? listed : [this.#selected, ...listed]);
      for (const job of this.#jobs) this.#live.onListed(job, runAgain.has(job.jobId));
      this.#onList(this.#jobs, runAgain);
    } catch {
      this.#setNote("Jobcast does not answer; trying again.");
    }
  }

  /** @param {string} text */
  #setNote(text) {
    setText(this.#note, text);
    this.#note.hidden = text === "";
  }

  #draw() {
    for (const { jobId } of [...this.#jobs].reverse()) {
      if (!this.#order.has(jobId)) this.#order.set(jobId, this.#order.size);
    }
    const find = this.#find.value.trim();
    const shown = this.#shown(this.#jobs).map((job) => ({ ...job, status: this.#statusOf(job) }));
    for (const { holds, section, list } of this.#groups) {
      const held = shown.filter(holds);
      const orderOf = (/** @type {ListedJob} */ job) => this.#order.get(job.jobId) ?? 0;
      if (!isEnded(held[0]?.status)) held.sort((a, b) => orderOf(b) - orderOf(a));
      section.hidden = held.length === 0;
      held.forEach((job, index) => {
        const { item } = this.#drawEntry(job);
        // An item that is moved loses the focus, so one that is in its place stays.
        if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
      });
    }
    this.#removeUnlisted(new Set(shown.map((job) => job.jobId)));
    // A job may be older than the list reaches, or be none that the reader may list.
    this.#direct.hidden = find === "" || shown.some(({ jobId }) => jobId === find);
    this.#direct.href = linkTo({ job: find });
    setText(this.#direct, `Open ${find}`);
    this.#setNote(shown.length > 0 ? "" : this.isFiltered ? "No job that is listed fits." : "No jobs yet.");
    this.#reveal();
    if (!this.#nav.querySelector('section a[tabindex="0"]')) this.#setTabStop(this.#nav.querySelector("section a"));
  }

  /**
   * Returns those of the jobs that the reader looks for.
   *
   * @param {ListedJob[]} jobs
   */
  #shown(jobs) {
    const find = this.#find.value.trim().toLowerCase();
    if (find === "") return jobs;
    return jobs.filter(({ jobId }) => {
      const name = this.#names.of(jobId);
      return jobId.toLowerCase().includes(find) || (name?.toLowerCase().includes(find) ?? false);
    });
  }

  /**
   * Returns the status that a job's stream tells. One that the list calls ended has ended, whatever came before.
   *
   * @param {ListedJob} job
   */
  #statusOf({ jobId, status }) {
    return isEnded(status) ? status : (this.#live.of(jobId)?.status ?? status);
  }

  /** @param {string} jobId */
  #drawSoon(jobId) {
    if (this.#changed.size === 0) setTimeout(() => requestAnimationFrame(() => this.#drawChanged()), DRAW_MS);
    this.#changed.add(jobId);
  }

  /** Draws the jobs that have changed, and all of them where one has come into another group. */
  #drawChanged() {
    const changed = this.#jobs.filter(({ jobId }) => this.#changed.has(jobId));
    this.#changed.clear();
    const isMoved = changed.some((job) => {
      const entry = this.#entries.get(job.jobId);
      return entry && entry.link.dataset.status !== this.#statusOf(job);
    });
    if (isMoved) return this.#draw();
    for (const { jobId } of changed) this.#drawNow(jobId);
  }

  /** @param {string} jobId */
  #drawNow(jobId) {
    const entry = this.#entries.get(jobId);
    const now = this.#live.of(jobId);
    if (!entry || !now) return;
    setText(entry.last, now.line);
    entry.last.hidden = now.line === "";
    entry.progress.hidden = now.percent === null;
    if (now.percent !== null) entry.progress.style.setProperty("--percent", `${Math.round(now.percent)}`);
    const percent = now.percent === null ? "" : ` ${Math.round(now.percent)} %`;
    setText(entry.word, `, ${statusWord(entry.link.dataset.status)}${percent}`);
  }

  /** @param {Set<string>} listed */
  #removeUnlisted(listed) {
    for (const [id, { item }] of this.#entries) {
      if (listed.has(id)) continue;
      this.#names.forget(item);
      item.remove();
      this.#entries.delete(id);
      if (!this.#jobs.some(({ jobId }) => jobId === id)) this.#order.delete(id);
    }
  }

  /** @param {ListedJob} job */
  #drawEntry({ jobId, status, lastEventAt }) {
    let entry = this.#entries.get(jobId);
    if (!entry) this.#entries.set(jobId, (entry = this.#makeEntry(jobId)));
    const word = statusWord(status);
    const isNew = entry.link.dataset.status !== status;
    const ageMs = serverClock.now() - Date.parse(lastEventAt ?? "");
    if (isNew) entry.link.dataset.status = status;
    setText(entry.glyph, glyphOf(word));
    if (isNew) setText(entry.word, `, ${word}`);
    this.#drawNow(jobId);
    setText(entry.when, Number.isFinite(ageMs) ? ago(ageMs) : "");
    this.#names.want(jobId, entry.item, status);
    return entry;
  }

  /**
   * @param {string} jobId
   * @returns {Entry}
   */
  #makeEntry(jobId) {
    const entry = {
      item: document.createElement("li"),
      link: document.createElement("a"),
      glyph: make("span", "glyph"),
      title: make("span", "title", this.#names.of(jobId) ?? ""),
      word: make("span", "visually-hidden"),
      when: make("span", "when"),
      last: make("span", "last"),
      progress: make("span", "progress"),
    };
    const id = make("span", "id");
    const middle = jobId.length > 2 * TAIL_LENGTH ? jobId.length - TAIL_LENGTH : jobId.length;
    id.append(make("span", "", jobId.slice(0, middle)), make("span", "", jobId.slice(middle)));
    const name = make("span", "name");
    name.append(entry.title, id, entry.last);
    entry.last.hidden = entry.progress.hidden = true;
    // A link whose name changes with each line could not be found again by its name.
    entry.last.setAttribute("aria-hidden", "true");
    entry.title.hidden = entry.title.textContent === "";
    entry.glyph.setAttribute("aria-hidden", "true");
    entry.link.href = linkTo({ job: jobId });
    entry.link.title = jobId;
    entry.link.tabIndex = -1;
    entry.link.append(entry.glyph, name, entry.word, entry.when, entry.progress);
    entry.item.append(entry.link);
    markSelected(entry.link, jobId === this.#selected);
    return entry;
  }

  /**
   * @param {string} jobId
   * @param {string} name
   */
  #showName(jobId, name) {
    const entry = this.#entries.get(jobId);
    if (!entry) return;
    setText(entry.title, name);
    entry.title.hidden = name === "";
  }

  // ---- the keyboard

  /** @param {KeyboardEvent} event */
  #onKey(event) {
    const focused = /** @type {HTMLAnchorElement} */ (document.activeElement);
    const links = /** @type {HTMLAnchorElement[]} */ ([...this.#nav.querySelectorAll("section:not([hidden]) a")]);
    const at = links.indexOf(focused);
    const to = {
      ArrowDown: at + 1,
      ArrowRight: at + 1,
      ArrowUp: at - 1,
      ArrowLeft: at - 1,
      Home: 0,
      End: links.length - 1,
    }[event.key];
    const next = at < 0 || to === undefined ? undefined : links[to];
    if (!next) return;
    event.preventDefault();
    next.focus();
  }

  /** @param {HTMLAnchorElement | null} link the one link of the list that Tab reaches */
  #setTabStop(link) {
    if (!link) return;
    for (const old of this.#nav.querySelectorAll('section a[tabindex="0"]')) old.setAttribute("tabindex", "-1");
    link.tabIndex = 0;
  }
}

/**
 * @param {Response} response
 * @param {{detail?: unknown} | null} answer
 */
function refusal({ status, headers }, answer) {
  if (typeof answer?.detail === "string") return answer.detail;
  const kind = headers.get("Content-Type") ?? "no type";
  return `The list of jobs was answered by something else than Jobcast (${status}, ${kind}).`;
}

/**
 * @param {HTMLAnchorElement} link
 * @param {boolean} isSelected
 */
function markSelected(link, isSelected) {
  if (isSelected) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}
