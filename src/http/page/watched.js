// @ts-check
// The job that the page shows: its stream, its model, and the count of what arrived.

import { JobStream } from "../jobcast.js";
import { Ended } from "./ended.js";
import { isEnded, Job } from "./job.js";
import { duration, serverClock } from "./time.js";
import { authorization, token } from "./token.js";

/** @typedef {import("../jobcast.js").JobEvent} JobEvent */
/** @typedef {import("../jobcast.js").JobStreamState} JobStreamState */

/**
 * The state of the connection in the page's words. `waiting`: Jobcast holds the stream while its store is away.
 * `offline`: the reader dropped the connection. `missing`: there is no such job yet. `denied`: the reader may not watch it.
 *
 * @typedef {"connecting" | "live" | "waiting" | "polling" | "reconnecting" | "offline" | "complete" | "missing" | "denied" | "failed" | "closed"} Connection
 */

/**
 * The look of a notice.
 *
 * @typedef {"quiet" | "good" | "warn" | "bad"} Tone
 */

/**
 * The parts of the page that a watched job changes.
 *
 * @typedef {object} View
 * @property {(event: import("./lines.js").OutputEvent) => void} show
 * @property {import("./timeline.js").Timeline} timeline
 * @property {(text: string, tone?: Tone) => void} announce shows a notice
 * @property {(cursor: string) => void} onResumed
 * @property {(leftMs: number) => void} onOffline follows the time that is left of a dropped connection
 * @property {() => void} onReset
 * @property {() => void} onComplete
 * @property {() => void} onChange
 */

/** The time for which a dropped connection stays away. */
const OFFLINE_MS = 3000;
const OFFLINE_STEP_MS = 100;
/** The number of events that are kept in mind to notice a repeat. */
const MAX_SEEN = 50_000;
/** Events that were missed have arrived so long after the connection. */
const GAP_NOTICE_MS = 700;
/** A stream that is not open after so long may be waiting for its job. */
const LOOK_UP_AFTER_MS = 1500;
/** A job that is not there is asked for again after so long. */
const MISSING_RETRY_MS = 5000;
const DENIED = new Set([401, 403]);
/** The places of streams that share a connection, which only such streams can go on from. */
const OF_SET = /^m[\w-]{16,}$/;
const MAX_PLACE_LENGTH = 40;

/** One job on the page, from its choice until another is chosen. */
export class WatchedJob {
  job;
  /** @type {Connection} */
  connection = "connecting";
  connections = 0;
  events = 0;
  repeats = 0;
  /**
   * The time, as `performance.now()` counts it, at which the next try begins; `null` while there is none to wait for.
   *
   * @type {number | null}
   */
  retryAtMs = null;
  /** @type {Set<string>} */
  #seen = new Set();
  /**
   * The newest gap in the connection, and the number of events that filled it.
   *
   * @type {{fromMs: number, toMs: number, filled: number} | null}
   */
  #gap = null;
  #gapNotice = 0;
  #missingTimer = 0;
  #lookUpTimer;
  /** The timer of a dropped connection; 0 while there is none. */
  #offlineTimer = 0;
  /**
   * The error of the newest notice, which is not announced again.
   *
   * @type {unknown}
   */
  #announcedError = null;
  #lastTimeMs = 0;
  /** The stream was complete, and the job is not known to be run again. */
  #hasEnded = false;
  #ended = new Ended();
  /** The notice of a loss of history, which stays until the job is left. */
  #loss = "";
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
    const stream = new JobStream(id, { baseUrl, maxBuffered: 0, ...(token !== undefined && { token }) });
    this.#stream = stream;
    this.#lookUpTimer = setTimeout(() => this.#lookUp(), LOOK_UP_AFTER_MS);
    this.#unsubscribes = [
      stream.on("state", (state) => this.#onState(state)),
      stream.on("event", (event) => this.#onEvent(event)),
      stream.on("reset", ({ reason }) => this.#onReset(reason)),
    ];
  }

  leave() {
    clearInterval(this.#offlineTimer);
    clearTimeout(this.#gapNotice);
    clearTimeout(this.#missingTimer);
    clearTimeout(this.#lookUpTimer);
    for (const unsubscribe of this.#unsubscribes) unsubscribe();
    this.#stream.close();
  }

  reconnect() {
    this.#stream.reconnect();
  }

  /**
   * Goes on with the job where the list says so after its end.
   *
   * @param {string | null} lastEventAt
   * @param {boolean} isRunAgain
   */
  onListed(lastEventAt, isRunAgain) {
    if (this.connection === "complete" && (isRunAgain || this.#ended.isBehind(lastEventAt))) this.reconnect();
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
    this.#view.announce("Offline. The job goes on; its events wait in the store.", "warn");
  }

  /** Finds out whether the stream waits for a job that is not there yet, which Jobcast does for a while. */
  async #lookUp() {
    if (!this.#mayBeMissing) return;
    const response = await fetch(`runner-jobs/${encodeURIComponent(this.job.id)}`, {
      cache: "no-store",
      headers: authorization,
    }).catch(() => null);
    const answer = response?.status === 404 ? await response.json().catch(() => null) : null;
    if (answer?.code !== "job.not_found" || !this.#mayBeMissing) return;
    this.connection = "missing";
    this.#view.announce(this.#missingNotice());
    this.#view.onChange();
  }

  /** On the connection of the list, which is open for the jobs that are there, one that is not there has no events. */
  get #mayBeMissing() {
    return (this.connection === "connecting" || this.connection === "live") && this.events === 0;
  }

  #missingNotice() {
    return `There is no job ${this.job.id} yet. It will be shown from its first event on.`;
  }

  /** @param {JobStreamState} state */
  #onState(state) {
    const before = this.connection;
    const isStillMissing = before === "missing" && this.events === 0 && !state.jobStatus && state.status === "open";
    const connection = this.#offlineTimer
      ? "offline"
      : isStillMissing
        ? before
        : connectionOf(state, before, this.connections);
    this.connection = connection;
    this.retryAtMs = state.status === "retrying" ? performance.now() + state.retryInMs : null;
    const wasOpen = before === "live" || before === "waiting";
    const isOpen = connection === "live" || connection === "waiting";
    if (wasOpen && (connection === "offline" || connection === "reconnecting")) this.#beginGap();
    if (isOpen && !wasOpen) this.connections += 1;
    if ((isOpen && !wasOpen) || (connection === "polling" && before !== connection)) this.#onConnected(state.cursor);
    if (before === "waiting" && connection === "live") this.#view.announce("The store answers again.", "good");
    this.#announceError(state);
    clearTimeout(this.#missingTimer);
    if (state.status === "failed" && connection === "missing")
      this.#missingTimer = setTimeout(() => this.#stream.reconnect(), MISSING_RETRY_MS);
    if (connection === "complete") {
      if (state.jobStatus) this.job.end(state.jobStatus);
      this.#hasEnded = true;
      this.#view.onComplete();
    } else if (this.#hasEnded && state.jobStatus && !isEnded(state.jobStatus)) {
      this.job.status = state.jobStatus;
      this.#hasEnded = false;
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
    if (this.connections > 1 && cursor) this.#view.onResumed(cursor.slice(0, MAX_PLACE_LENGTH));
    const gap = this.#gap;
    if (!gap) return this.#view.announce(this.#loss, "warn");
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
    const repeated = this.repeats > 0 ? `, ${this.repeats} repeated` : "";
    const back = `Back after ${duration(toMs - fromMs)}: ${events} filled in${repeated}.`;
    this.#view.announce(this.#loss || back, this.#loss ? "warn" : "good");
  }

  /** @param {JobStreamState} state */
  #announceError({ status, error }) {
    if (this.#offlineTimer || error === this.#announcedError) return;
    this.#announcedError = error;
    if (!error) return;
    const tone = this.connection === "missing" ? "quiet" : status === "failed" ? "bad" : "warn";
    this.#view.announce(this.#errorNotice(status, error), tone);
  }

  /**
   * @param {JobStreamState["status"]} status
   * @param {NonNullable<JobStreamState["error"]>} error
   */
  #errorNotice(status, { code, message, status: httpStatus }) {
    switch (this.connection) {
      case "missing":
        return this.#missingNotice();
      case "denied":
        return httpStatus === 401
          ? "You are not signed in, or no longer: sign in again, or open the page with a fresh token."
          : `You may not watch this job${this.connections > 0 ? " any more" : ""}.`;
      case "waiting":
        return `${sentence(message)} (${code}). The stream is held, and nothing gets lost.`;
    }
    if (code === "stream.bye") return `${sentence(message)}; coming back.`;
    if (code === "client.offline") return "This device is offline. The stream goes on when it is back.";
    // A browser's message for a failed network helps nobody.
    const cause = code === "client.network" ? "" : `: ${message}`;
    const fault = code.startsWith("client.") ? `The connection is lost${cause}` : `${sentence(message)} (${code})`;
    return status === "failed" ? `${fault}. It was given up.` : `${fault}.`;
  }

  /** @param {JobEvent} event */
  #onEvent({ id, cursor, type, stepId, timestamp, payload, unreadable }) {
    // The client delivers no repeat. The page counts them to prove it. Where ids are not unique, cursors are.
    const place = OF_SET.test(cursor) ? id : cursor;
    const key = `${id} ${place}`;
    if (this.#seen.has(key)) {
      this.repeats += 1;
      return;
    }
    this.#remember(key);
    this.events += 1;
    if (this.connection === "missing") {
      this.connection = "live";
      this.#view.announce("");
      this.#view.onChange();
    }
    const parsedMs = unreadable?.includes("timestamp") ? NaN : Date.parse(timestamp);
    const timeMs = Number.isFinite(parsedMs) ? parsedMs : this.#lastTimeMs || serverClock.now();
    this.#lastTimeMs = timeMs;
    this.#ended.note(parsedMs);
    const fillsGap = this.#gap !== null && timeMs < this.#gap.toMs;
    if (this.#gap && fillsGap) this.#gap.filled += 1;
    this.#view.timeline.add(timeMs, fillsGap);
    this.job.apply({ type, stepId, timeMs, payload });
    this.#view.show({ id, cursor: place, type, stepId, timeMs, payload, ...(unreadable && { unreadable }) });
  }

  /** @param {string} key */
  #remember(key) {
    this.#seen.add(key);
    if (this.#seen.size <= MAX_SEEN) return;
    for (const oldest of this.#seen) return void this.#seen.delete(oldest);
  }

  /** @param {string} reason */
  #onReset(reason) {
    this.job = new Job(this.job.id);
    this.#ended = new Ended();
    this.#seen.clear();
    this.#gap = null;
    this.events = 0;
    this.#view.onReset();
    this.#loss = `The history could not be continued (${reason}). What was shown was thrown away; this is all there is.`;
    this.#view.announce(this.#loss, "warn");
  }
}

/**
 * Returns the page's word for the state of a stream.
 *
 * @param {JobStreamState} state
 * @param {Connection} before
 * @param {number} connections the number of connections so far
 * @returns {Connection}
 */
function connectionOf({ status, attempt, error }, before, connections) {
  if (status === "open") return error ? "waiting" : "live";
  if (status === "failed" && error?.code === "job.not_found") return "missing";
  if (status === "failed" && (DENIED.has(error?.status ?? 0) || error?.code.startsWith("auth."))) return "denied";
  // A job that was not there is asked for again without a word.
  if (status === "connecting" && before === "missing") return before;
  if (status === "retrying" || (status === "connecting" && (attempt > 0 || connections > 0))) return "reconnecting";
  return status;
}

/**
 * Returns a message as the beginning of a sentence.
 *
 * @param {string} message
 */
const sentence = (message) => message.charAt(0).toUpperCase() + message.slice(1).replace(/\.$/, "");
