// An event as a line of output. What a runner says in the usual words is told in words, everything else as it is.

import { duration } from "./time.js";

/** @returns {?{kind: string, tag: string, type?: string, text: string}} `null` for what only the picture shows */
export function describe({ type, stepId, payload }) {
  const tag = stepId ?? "";
  const fields = payload !== null && typeof payload === "object" && !Array.isArray(payload) ? payload : {};
  const took = Number.isFinite(fields.durationMs) ? duration(fields.durationMs) : null;
  const exit = Number.isFinite(fields.exitCode) ? `exit code ${fields.exitCode}` : null;
  switch (type) {
    case "step.output":
      if (typeof fields.line !== "string") break;
      return { kind: fields.stream === "stderr" ? "err" : "out", tag, text: fields.line };
    case "step.progress":
      if (stepId === null || !Number.isFinite(fields.percent)) break;
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
  const said = JSON.stringify(payload);
  return { kind: "event", tag, type, text: said === "{}" || said === undefined ? "" : said };
}

function sentence(...parts) {
  return parts.filter((part) => typeof part === "string" && part !== "").join(" · ");
}
