// @ts-check
// The history of a job as JSON, page by page, for what the stream brought and the page has let go again.

import { authorization } from "./token.js";

/**
 * An event as the JSON address gives it.
 *
 * @typedef {{id: string, cursor?: string, type: string, stepId: string | null, timestamp: string, payload: unknown, unreadable?: string[]}} StoredEvent
 */

/** The most events that Jobcast gives at once. */
const PAGE_LIMIT = 1000;

/**
 * Returns the address of a job's events.
 *
 * @param {string} jobId
 */
export function eventsAddress(jobId) {
  const meta = document.querySelector('meta[name="jobcast-events-path"]');
  const path = meta?.getAttribute("content") ?? "";
  return new URL(path.replace("{job_id}", encodeURIComponent(jobId)).replace(/^\//, ""), new URL(".", location.href));
}

/**
 * Reads the events after a cursor; `null` is the beginning. Throws where the answer is none of Jobcast's.
 *
 * @param {string} jobId
 * @param {string | null} after
 * @param {number} [limit]
 * @returns {Promise<{events: StoredEvent[], cursor: string}>}
 */
export async function readEvents(jobId, after, limit = PAGE_LIMIT) {
  const url = eventsAddress(jobId);
  url.searchParams.set("limit", String(limit));
  if (after !== null) url.searchParams.set("after", after);
  const response = await fetch(url, { cache: "no-store", headers: authorization });
  const answer = await response.json();
  if (!response.ok || !Array.isArray(answer.events)) throw new Error(answer.detail ?? `answered ${response.status}`);
  return answer;
}
