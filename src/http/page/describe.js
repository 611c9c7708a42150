// @ts-check
// An event as a line of output. Event types that runners usually write are described in words, all others are shown as
// they are.

import { asNumber, asRecord } from "./payload.js";
import { duration } from "./time.js";

/**
 * The look of a line: output and errors of a step, a neutral notice, a success, a failure, or an unknown event.
 *
 * @typedef {"out" | "err" | "meta" | "good" | "bad" | "event"} LineKind
 */

/**
 * Describes an event. Returns `null` for an event that only the steps show.
 *
 * @param {{type: string, stepId: string | null, payload: unknown}} event
 * @returns {{kind: LineKind, tag: string, type?: string, text: string, json?: object} | null}
 */
export function describe({ type, stepId, payload }) {
  const tag = stepId ?? "";
  const fields = asRecord(payload);
  const durationMs = asNumber(fields.durationMs);
  const took = durationMs === null ? null : duration(durationMs);
  const exit = asNumber(fields.exitCode) === null ? null : `exit code ${fields.exitCode}`;
  switch (type) {
    case "step.output":
      if (typeof fields.line !== "string") break;
      return { kind: fields.stream === "stderr" ? "err" : "out", tag, text: fields.line };
    case "step.progress":
      if (stepId === null || asNumber(fields.percent) === null) break;
      return null;
    case "job.queued":
      return { kind: "meta", tag, text: "queued" };
    case "job.started":
      return { kind: "meta", tag, text: sentence("job started", fields.name) };
    case "step.started":
      return { kind: "meta", tag, text: sentence("started", fields.name) };
    case "step.completed":
      return { kind: "good", tag, text: sentence(took ? `completed in ${took}` : "completed") };
    case "step.failed":
      return { kind: "bad", tag, text: sentence(took ? `failed after ${took}` : "failed", fields.error, exit) };
    case "step.skipped":
      return { kind: "meta", tag, text: sentence("skipped", fields.reason) };
    case "job.completed":
      return { kind: "good", tag, text: sentence(took ? `job completed in ${took}` : "job completed") };
    case "job.failed":
      return { kind: "bad", tag, text: sentence(took ? `job failed after ${took}` : "job failed", fields.error) };
    case "job.cancelled":
      return { kind: "bad", tag, text: sentence("job cancelled", fields.by && `by ${fields.by}`) };
  }
  const text = JSON.stringify(payload);
  const line = {
    kind: /** @type {const} */ ("event"),
    tag,
    type,
    text: text === "{}" || text === undefined ? "" : text,
  };
  return payload !== null && typeof payload === "object" ? { ...line, json: payload } : line;
}

/**
 * Joins the parts that are texts.
 *
 * @param {...unknown} parts
 */
function sentence(...parts) {
  return parts.filter((part) => typeof part === "string" && part !== "").join(" · ");
}
