// @ts-check
// The names of listed jobs, from the first events of each. They are read one job after the other, once, and only for
// those that are in sight.

import { readEvents } from "./history.js";
import { asRecord, asText } from "./payload.js";

/** The name stands in `job.started`, which is one of the first events. */
const FIRST_EVENTS = 4;
const STORED_AS = "jobcast:names";
const MAX_STORED = 500;

export class Names {
  /**
   * Names by jobs. An empty one is known not to be there.
   *
   * @type {Map<string, string>}
   */
  #names = new Map();
  /** @type {Map<Element, string>} */
  #wanted = new Map();
  /** @type {Set<string>} */
  #queue = new Set();
  #isReading = false;
  #onName;
  #sight = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) {
      const jobId = this.#wanted.get(target);
      if (jobId !== undefined && isIntersecting) this.#queue.add(jobId);
      else if (jobId !== undefined) this.#queue.delete(jobId);
    }
    this.#readNext();
  });

  /** @param {(jobId: string, name: string) => void} onName */
  constructor(onName) {
    this.#onName = onName;
    try {
      this.#names = new Map(JSON.parse(sessionStorage.getItem(STORED_AS) ?? "[]"));
    } catch {
      // The browser keeps nothing for this page.
    }
  }

  /** @param {string} jobId */
  of(jobId) {
    return this.#names.get(jobId);
  }

  /**
   * @param {string} jobId
   * @param {string} name
   */
  learn(jobId, name) {
    if (this.#names.get(jobId) === name) return;
    this.#names.set(jobId, name);
    for (const oldest of this.#names.keys()) {
      if (this.#names.size <= MAX_STORED) break;
      this.#names.delete(oldest);
    }
    try {
      sessionStorage.setItem(STORED_AS, JSON.stringify([...this.#names]));
    } catch {
      // The browser keeps nothing for this page.
    }
    this.#onName(jobId, name);
  }

  /**
   * Reads the name of a job once its entry is in sight. One that waits has no name yet.
   *
   * @param {string} jobId
   * @param {Element} item
   * @param {string} status
   */
  want(jobId, item, status) {
    if (this.#names.has(jobId) || this.#wanted.has(item) || status === "QUEUED" || status === "PENDING") return;
    this.#wanted.set(item, jobId);
    this.#sight.observe(item);
  }

  /** @param {Element} item */
  forget(item) {
    const jobId = this.#wanted.get(item);
    if (jobId !== undefined) this.#queue.delete(jobId);
    this.#wanted.delete(item);
    this.#sight.unobserve(item);
  }

  async #readNext() {
    if (this.#isReading) return;
    this.#isReading = true;
    for (const jobId of this.#queue) {
      this.#queue.delete(jobId);
      if (this.#names.has(jobId)) continue;
      try {
        const { events } = await readEvents(jobId, null, FIRST_EVENTS);
        const started = events.find(({ type }) => type === "job.started");
        this.learn(jobId, asText(asRecord(started?.payload).name) ?? "");
      } catch {
        // A name is a comfort only. The job stands there by its id.
      }
    }
    this.#isReading = false;
  }
}
