// @ts-check
// The job that the page shows: its stream, its model, and the count of what arrived.

import { JobStream } from "../jobcast.js";
import { describe } from "./describe.js";
import { Job } from "./job.js";
import { duration, serverClock } from "./time.js";
import { token } from "./token.js";

/** @typedef {import("../jobcast.js").JobEvent} JobEvent */
/** @typedef {import("../jobcast.js").JobStreamState} JobStreamState */

/**
 * The state of the connection in the page's words. `offline`: the reader dropped it.
 *
 * @typedef {"connecting" | "live" | "polling" | "reconnecting" | "offline" | "complete" | "failed" | "closed"} Connection
 */

/**
 * The parts of the page that a watched job changes.
 *
 * @typedef {object} View
 * @property {import("./output.js").Output} output
 * @property {import("./timeline.js").Timeline} timeline
 * @property {(text: string) => void} announce shows a notice
 * @property {(cursor: string) => void} onResumed
 * @property {(leftMs: number) => void} onOffline follows the time that is left of a dropped connection
 * @property {() => void} onReset
 * @property {() => void} onComplete
 * @property {() => void} onChange
 */

/** The time for which a dropped connection stays away. */
const OFFLINE_MS = 3000;
const OFFLINE_STEP_MS = 100;
/** The number of ids that are kept to notice a repeat. */
const MAX_SEEN_IDS = 50_000;
/** Events that were missed have arrived so long after the connection. */
const GAP_NOTICE_MS = 700;

/** One job on the page, from its choice until another is chosen. */
export class WatchedJob {
  job;
  /** @type {Connection} */
  connection = "connecting";
  connections = 0;
  events = 0;
  repeats = 0;
  /** The store had no such job at the last try. */
  isUnknown = false;
  /** @type {Set<string>} */
  #seenIds = new Set();
  /**
   * The newest gap in the connection, and the number of events that filled it.
   *
   * @type {{fromMs: number, toMs: number, filled: number} | null}
   */
  #gap = null;
  #gapNotice = 0;
  /** The timer of a dropped connection; 0 while there is none. */
  #offlineTimer = 0;
  /**
   * The error of the newest notice, which is not announced again.
   *
   * @type {unknown}
   */
  #announcedError = null;
  #view;
  #stream;
  #unsubscribes;

  /**
   * @param {string} id
   * @param {View} view
   */
  constructor(id, view) {
    this.job = new Job(id);
    this.#view = view;
    const baseUrl = new URL(".", location.href).href;
    const stream = new JobStream(id, token === undefined ? { baseUrl } : { baseUrl, token });
    this.#stream = stream;
    this.#unsubscribes = [
      stream.on("state", (state) => this.#onState(state)),
      stream.on("event", (event) => this.#onEvent(event)),
      stream.on("reset", ({ reason }) => this.#onReset(reason)),
    ];
  }

  leave() {
    clearInterval(this.#offlineTimer);
    clearTimeout(this.#gapNotice);
    for (const unsubscribe of this.#unsubscribes) unsubscribe();
    this.#stream.close();
  }

  reconnect() {
    this.#stream.reconnect();
  }

  /** Drops the connection for some seconds, as a lost network would. */
  drop() {
    if (this.connection !== "live") return;
    const until = performance.now() + OFFLINE_MS;
    this.#offlineTimer = setInterval(() => {
      const leftMs = until - performance.now();
      this.#view.onOffline(Math.max(0, leftMs));
      if (leftMs > 0) return;
      clearInterval(this.#offlineTimer);
      this.#offlineTimer = 0;
      this.#stream.reconnect();
    }, OFFLINE_STEP_MS);
    this.#stream.close();
    this.#view.announce("Offline. The job goes on; its events wait in the store.");
  }

  /** @param {JobStreamState} state */
  #onState(state) {
    const before = this.connection;
    const connection = this.#offlineTimer ? "offline" : connectionOf(state, this.connections);
    this.connection = connection;
    if (before === "live" && (connection === "offline" || connection === "reconnecting")) this.#beginGap();
    if (connection === "live" && before !== "live") this.connections += 1;
    if ((connection === "live" || connection === "polling") && before !== connection) this.#onConnected(state.cursor);
    this.#announceError(state);
    if (connection === "complete") {
      if (state.jobStatus) this.job.end(state.jobStatus);
      this.#view.onComplete();
    }
    this.#view.onChange();
  }

  #beginGap() {
    const nowMs = serverClock.now();
    this.#gap = { fromMs: nowMs, toMs: Infinity, filled: 0 };
    this.#view.timeline.beginGap(nowMs);
  }

  /** @param {string | null} cursor */
  #onConnected(cursor) {
    this.isUnknown = false;
    if (this.connections > 1 && cursor) this.#view.onResumed(cursor);
    const gap = this.#gap;
    if (!gap) return this.#view.announce("");
    gap.toMs = serverClock.now();
    this.#view.timeline.endGap(gap.toMs);
    this.#announceGap(gap);
    clearTimeout(this.#gapNotice);
    this.#gapNotice = setTimeout(() => {
      if (this.#gap === gap && this.connection === "live") this.#announceGap(gap);
    }, GAP_NOTICE_MS);
  }

  /** @param {{fromMs: number, toMs: number, filled: number}} gap */
  #announceGap({ fromMs, toMs, filled }) {
    const events = filled === 1 ? "1 missed event" : `${filled} missed events`;
    this.#view.announce(`Back after ${duration(toMs - fromMs)}: ${events} filled in, ${this.repeats} repeated.`);
  }

  /** @param {JobStreamState} state */
  #announceError({ status, error, retryInMs }) {
    if (this.#offlineTimer || error === this.#announcedError) return;
    this.#announcedError = error;
    if (!error) return;
    this.isUnknown = error.code === "job.not_found";
    this.#view.announce(this.#errorNotice(status, error, retryInMs));
  }

  /**
   * @param {JobStreamState["status"]} status
   * @param {NonNullable<JobStreamState["error"]>} error
   * @param {number | null} retryInMs
   */
  #errorNotice(status, { code, message }, retryInMs) {
    if (this.isUnknown) return `There is no job ${this.job.id} yet. It will be shown from its first event on.`;
    if (code === "stream.bye") return `${message}; coming back.`;
    // A browser's message for a failed network helps nobody.
    const cause = code === "client.network" ? "" : `: ${message}`;
    const fault = code.startsWith("client.") ? `The connection is lost${cause}` : `${message} (${code})`;
    if (status === "failed") return `${fault}. Trying again will not help.`;
    if (retryInMs !== null && retryInMs > 1000) return `${fault}. Trying again in ${duration(retryInMs)}.`;
    return `${fault}. It goes on by itself.`;
  }

  /** @param {JobEvent} event */
  #onEvent({ id, type, stepId, timestamp, payload }) {
    // The client delivers no repeat. The page counts them to prove it.
    if (this.#seenIds.has(id)) {
      this.repeats += 1;
      return;
    }
    this.#remember(id);
    this.events += 1;
    const parsedMs = Date.parse(timestamp);
    const timeMs = Number.isFinite(parsedMs) ? parsedMs : serverClock.now();
    const fillsGap = this.#gap !== null && timeMs < this.#gap.toMs;
    if (this.#gap && fillsGap) this.#gap.filled += 1;
    this.#view.timeline.add(timeMs, fillsGap);
    this.job.apply({ type, stepId, timeMs, payload });
    const line = describe({ type, stepId, payload });
    if (line) this.#view.output.add({ timeMs, stepId, ...line });
  }

  /** @param {string} id */
  #remember(id) {
    this.#seenIds.add(id);
    if (this.#seenIds.size <= MAX_SEEN_IDS) return;
    for (const oldest of this.#seenIds) return void this.#seenIds.delete(oldest);
  }

  /** @param {string} reason */
  #onReset(reason) {
    this.job = new Job(this.job.id);
    this.#seenIds.clear();
    this.#gap = null;
    this.events = 0;
    this.#view.onReset();
    this.#view.announce(`What was shown could not be continued (${reason}) and was thrown away; this is all there is.`);
  }
}

/**
 * Returns the page's word for the state of a stream.
 *
 * @param {JobStreamState} state
 * @param {number} connections the number of connections so far
 * @returns {Connection}
 */
function connectionOf({ status, attempt }, connections) {
  if (status === "open") return "live";
  if (status === "retrying" || (status === "connecting" && (attempt > 0 || connections > 0))) return "reconnecting";
  return status;
}
