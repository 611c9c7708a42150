// The list of jobs, asked for again and again while somebody looks.

import { isEnded, statusWord } from "./job.js";
import { ago, serverClock } from "./time.js";

const EVERY_MS = 2000;
const GLYPHS = { PENDING: "○", QUEUED: "○", RUNNING: "●", COMPLETED: "✓", FAILED: "✕", CANCELLED: "⊘" };
const GROUPS = [
  { title: "Running", holds: (job) => job.status === "RUNNING" },
  { title: "Waiting", holds: (job) => job.status === "QUEUED" || job.status === "PENDING" },
  { title: "Ended", holds: (job) => isEnded(job.status) },
];

export class Jobs {
  jobs = [];
  #selected = null;
  #isRevealed = false;
  #links = new Map();
  #sections;
  #nav;
  #note;
  /** When each job was first seen to be alive: a list that jumps with every event cannot be read. */
  #order = new Map();

  /** @param {HTMLElement} nav @param {(jobs: object[]) => void} onList */
  constructor(nav, onList) {
    this.onList = onList;
    this.#nav = nav;
    this.#note = nav.appendChild(document.createElement("p"));
    this.#note.className = "note";
    this.#sections = GROUPS.map(({ title }) => {
      const section = nav.appendChild(document.createElement("section"));
      const heading = section.appendChild(document.createElement("h2"));
      const list = section.appendChild(document.createElement("ol"));
      heading.textContent = title;
      list.setAttribute("aria-label", title);
      section.hidden = true;
      return { section, list };
    });
    document.addEventListener("visibilitychange", () => this.ask());
    setInterval(() => this.ask(), EVERY_MS);
    this.ask();
  }

  select(id) {
    this.#selected = id;
    this.#isRevealed = false;
    for (const [job, { link }] of this.#links) mark(link, job === id);
    this.#reveal();
  }

  /** Once for each choice: afterwards the list is the reader's to scroll. */
  #reveal() {
    const chosen = this.#links.get(this.#selected);
    if (this.#isRevealed || !chosen) return;
    this.#isRevealed = true;
    chosen.link.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  newestRunning(except) {
    return this.jobs.find((job) => job.status === "RUNNING" && job.jobId !== except) ?? null;
  }

  async ask() {
    if (document.hidden) return;
    try {
      const response = await fetch("/runner-jobs?limit=50", { cache: "no-store" });
      const answer = await response.json();
      if (!response.ok) return this.#say(answer.detail ?? `The list of jobs is not to be had (${response.status}).`);
      serverClock.hear(response.headers.get("Date"));
      this.jobs = answer.jobs;
      this.#say("");
      this.#draw();
      this.onList(this.jobs);
    } catch {
      this.#say("Jobcast does not answer; trying again.");
    }
  }

  #say(text) {
    this.#note.textContent = text;
    this.#note.hidden = text === "";
    this.#nav.hidden = text === "" && this.jobs.length === 0;
  }

  #draw() {
    for (const { jobId } of [...this.jobs].reverse()) if (!this.#order.has(jobId)) this.#order.set(jobId, this.#order.size);
    GROUPS.forEach(({ holds }, index) => {
      const { section, list } = this.#sections[index];
      const held = this.jobs.filter(holds);
      if (!isEnded(held[0]?.status)) held.sort((a, b) => this.#order.get(b.jobId) - this.#order.get(a.jobId));
      section.hidden = held.length === 0;
      held.forEach((job, place) => {
        const { item } = this.#link(job);
        // moving an item that is in its place would take the focus from it
        if (list.children[place] !== item) list.insertBefore(item, list.children[place] ?? null);
      });
    });
    const there = new Set(this.jobs.map((job) => job.jobId));
    for (const [id, { item }] of this.#links) {
      if (there.has(id)) continue;
      item.remove();
      this.#links.delete(id);
      this.#order.delete(id);
    }
    this.#reveal();
  }

  #link({ jobId, status, lastEventAt }) {
    let entry = this.#links.get(jobId);
    if (!entry) {
      const [item, link] = [document.createElement("li"), document.createElement("a")];
      const [glyph, name, word, when] = ["glyph", "name", "unseen", "when"].map((part) => {
        const span = document.createElement("span");
        span.className = part;
        return span;
      });
      glyph.setAttribute("aria-hidden", "true");
      link.href = `#job=${encodeURIComponent(jobId)}`;
      link.append(glyph, name, word, when);
      item.append(link);
      mark(link, jobId === this.#selected);
      entry = { item, link, glyph, name, word, when };
      this.#links.set(jobId, entry);
    }
    entry.link.dataset.status = status;
    entry.glyph.textContent = GLYPHS[status] ?? "○";
    entry.name.textContent = jobId;
    entry.word.textContent = `, ${statusWord(status)}`;
    const age = serverClock.now() - Date.parse(lastEventAt ?? "");
    entry.when.textContent = isEnded(status) && Number.isFinite(age) ? ago(age) : "";
    return entry;
  }
}

function mark(link, isSelected) {
  if (isSelected) link.setAttribute("aria-current", "page");
  else link.removeAttribute("aria-current");
}
