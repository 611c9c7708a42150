// @ts-check
// The list of jobs, read again and again while the page is visible.

import { make } from "./dom.js";
import { glyphOf, isEnded, statusWord } from "./job.js";
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
 * @property {HTMLElement} name
 * @property {HTMLElement} word
 * @property {HTMLElement} when
 */

const REFRESH_MS = 2000;

/** @type {{title: string, holds: (job: ListedJob) => boolean}[]} */
const GROUPS = [
  { title: "Running", holds: (job) => job.status === "RUNNING" },
  { title: "Waiting", holds: (job) => job.status === "QUEUED" || job.status === "PENDING" },
  { title: "Ended", holds: (job) => isEnded(job.status) },
];

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
  #nav;
  #note;
  #groups;
  #onList;

  /**
   * @param {HTMLElement} nav
   * @param {(jobs: ListedJob[]) => void} onList receives each new list
   */
  constructor(nav, onList) {
    this.#onList = onList;
    this.#nav = nav;
    this.#note = nav.appendChild(make("p", "note"));
    this.#groups = GROUPS.map(({ title, holds }) => {
      const section = nav.appendChild(document.createElement("section"));
      const heading = section.appendChild(document.createElement("h2"));
      const list = section.appendChild(document.createElement("ol"));
      heading.textContent = title;
      list.setAttribute("aria-label", title);
      section.hidden = true;
      return { holds, section, list };
    });
    document.addEventListener("visibilitychange", () => this.refresh());
    setInterval(() => this.refresh(), REFRESH_MS);
    this.refresh();
  }

  /** @param {string} id */
  select(id) {
    this.#selected = id;
    this.#isRevealed = false;
    for (const [jobId, { link }] of this.#entries) markSelected(link, jobId === id);
    this.#reveal();
  }

  #reveal() {
    const entry = this.#selected === null ? undefined : this.#entries.get(this.#selected);
    if (this.#isRevealed || !entry) return;
    this.#isRevealed = true;
    entry.link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  /**
   * Returns the running job with the newest event.
   *
   * @param {string | null} except
   */
  newestRunning(except) {
    return this.#jobs.find((job) => job.status === "RUNNING" && job.jobId !== except) ?? null;
  }

  async refresh() {
    if (document.hidden) return;
    try {
      const response = await fetch("runner-jobs?limit=50", { cache: "no-store", headers: authorization });
      const answer = await response.json();
      if (!response.ok)
        return this.#setNote(answer.detail ?? `The list of jobs is not to be had (${response.status}).`);
      serverClock.adjust(response.headers.get("Date"));
      this.#jobs = answer.jobs;
      this.#setNote("");
      this.#draw();
      this.#onList(this.#jobs);
    } catch {
      this.#setNote("Jobcast does not answer; trying again.");
    }
  }

  /** @param {string} text */
  #setNote(text) {
    this.#note.textContent = text;
    this.#note.hidden = text === "";
    this.#nav.hidden = text === "" && this.#jobs.length === 0;
  }

  #draw() {
    for (const { jobId } of [...this.#jobs].reverse()) {
      if (!this.#order.has(jobId)) this.#order.set(jobId, this.#order.size);
    }
    for (const { holds, section, list } of this.#groups) {
      const held = this.#jobs.filter(holds);
      const orderOf = (/** @type {ListedJob} */ job) => this.#order.get(job.jobId) ?? 0;
      if (!isEnded(held[0]?.status)) held.sort((a, b) => orderOf(b) - orderOf(a));
      section.hidden = held.length === 0;
      held.forEach((job, index) => {
        const { item } = this.#drawEntry(job);
        // An item that is moved loses the focus, so one that is in its place stays.
        if (list.children[index] !== item) list.insertBefore(item, list.children[index] ?? null);
      });
    }
    this.#removeUnlisted();
    this.#reveal();
  }

  #removeUnlisted() {
    const listed = new Set(this.#jobs.map((job) => job.jobId));
    for (const [id, { item }] of this.#entries) {
      if (listed.has(id)) continue;
      item.remove();
      this.#entries.delete(id);
      this.#order.delete(id);
    }
  }

  /** @param {ListedJob} job */
  #drawEntry({ jobId, status, lastEventAt }) {
    let entry = this.#entries.get(jobId);
    if (!entry) this.#entries.set(jobId, (entry = this.#makeEntry(jobId)));
    const word = statusWord(status);
    const ageMs = serverClock.now() - Date.parse(lastEventAt ?? "");
    entry.link.dataset.status = status;
    entry.glyph.textContent = glyphOf(word);
    entry.word.textContent = `, ${word}`;
    entry.when.textContent = isEnded(status) && Number.isFinite(ageMs) ? ago(ageMs) : "";
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
      name: make("span", "name", jobId),
      word: make("span", "visually-hidden"),
      when: make("span", "when"),
    };
    entry.glyph.setAttribute("aria-hidden", "true");
    entry.link.href = `#job=${encodeURIComponent(jobId)}`;
    entry.link.append(entry.glyph, entry.name, entry.word, entry.when);
    entry.item.append(entry.link);
    markSelected(entry.link, jobId === this.#selected);
    return entry;
  }
}

/**
 * @param {HTMLAnchorElement} link
 * @param {boolean} isSelected
 */
function markSelected(link, isSelected) {
  if (isSelected) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}
