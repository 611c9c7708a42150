// What a job says, and how it comes over the wire. Events are foreign input: any type, any payload.

/** One event of a job. */
export interface JobEvent {
  /** The event's own id; each is delivered once. */
  readonly id: string;
  /** Where to go on after this event: for `from`, `Last-Event-ID`, `?lastEventId=`. */
  readonly cursor: string;
  readonly jobId: string;
  readonly stepId: string | null;
  /** As its writer named it: `step.output`, `job.started`, … */
  readonly type: string;
  /** When it happened, RFC 3339. */
  readonly timestamp: string;
  readonly actor: string | null;
  readonly payload: unknown;
}

export type JobStatus = "PENDING" | "QUEUED" | "RUNNING" | "COMPLETED" | "FAILED" | "CANCELLED" | (string & {});

/** History was lost: what was shown cannot be continued, and what follows is all there is. */
export interface Reset {
  /** `unknown`, `trimmed` or `rewound`. */
  readonly reason: string;
  readonly cursor: string | null;
}

export type Fields = Readonly<Record<string, unknown>>;

export function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

export function fields(value: unknown): Fields {
  return value !== null && typeof value === "object" ? (value as Fields) : {};
}

export function text(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

/** With `stream.data = "payload"` an event comes without its envelope: then its cursor is its id, and its time is now. */
export function jobEvent(jobId: string, type: string, data: unknown, cursor: string, ownId = cursor): JobEvent {
  const given = fields(data);
  const id = text(given.id);
  const isWhole = id !== null && text(given.type) !== null && "payload" in given;
  return {
    id: isWhole ? id : ownId,
    cursor,
    jobId: (isWhole && text(given.jobId)) || jobId,
    stepId: text(given.stepId),
    type: (isWhole && text(given.type)) || type,
    timestamp: (isWhole && text(given.timestamp)) || new Date().toISOString(),
    actor: isWhole ? text(given.actor) : null,
    payload: isWhole ? given.payload : data,
  };
}
