// One job on one screen. `useJobStream(jobId)` does all the work.
import { type JobEvent, useJobStream } from "jobcast-client/react";

const STATUS_WORDS: Record<string, string> = {
  connecting: "connecting…",
  open: "live",
  polling: "live, by polling",
  retrying: "reconnecting…",
  complete: "the job has ended",
  failed: "stopped",
  closed: "closed",
};

export function JobScreen({ jobId }: { jobId: string }) {
  const { events, dropped, state, error, jobStatus, retryAt, reconnect } = useJobStream(jobId, { share: true });
  return (
    <main>
      <header>
        <h1>{jobId}</h1>
        <p role="status" data-status={state.status}>
          {STATUS_WORDS[state.status]}
          {jobStatus && ` · ${jobStatus.toLowerCase()}`}
          {retryAt && ` · again at ${new Date(retryAt).toLocaleTimeString()}`}
        </p>
      </header>
      {error && (
        <p className="error">
          {error.message}{" "}
          <button type="button" onClick={reconnect}>
            Try again
          </button>
        </p>
      )}
      {dropped > 0 && <p>{dropped} older events are not shown.</p>}
      <ol>
        {events.map((event) => (
          <li key={event.id}>
            <time>{new Date(event.timestamp).toLocaleTimeString()}</time>
            <b>{event.stepId ?? ""}</b>
            <span>{line(event)}</span>
          </li>
        ))}
      </ol>
    </main>
  );
}

function line({ type, payload }: JobEvent): string {
  const { line } = (payload ?? {}) as { line?: unknown };
  return typeof line === "string" ? line : `${type} ${JSON.stringify(payload)}`;
}
