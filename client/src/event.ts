// Events of a job, and how they are read from the wire. Their content is foreign input: any type, any payload.

/** One event of a job. */
export interface JobEvent {
  /** The event's own id. Each id is delivered once. */
  readonly id: string;
  /** The place after this event: for `from`, `Last-Event-ID` and `?lastEventId=`. */
  readonly cursor: string;
  readonly jobId: string;
  readonly stepId: string | null;
  /** The type that the writer chose: `step.output`, `job.started`, … */
  readonly type: string;
  /** The time of the event, in RFC 3339. */
  readonly timestamp: string;
  readonly actor: string | null;
  readonly payload: unknown;
  /** Parts that the source could not read as they are stored, such as `payload`; each is lossy or null here. */
  readonly unreadable?: readonly string[];
}

export type JobStatus = "PENDING" | "QUEUED" | "RUNNING" | "COMPLETED" | "FAILED" | "CANCELLED" | (string & {});

/** A notice that history was lost: what was shown cannot be continued, and the events that follow are all there are. */
export interface Reset {
  /** `unknown`, `trimmed`, `expired` or `rewound`. */
  readonly reason: string;
  readonly cursor: string | null;
}

export type UnknownRecord = Readonly<Record<string, unknown>>;

/** Parses `text` as JSON. Returns the text itself if it is not JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Returns `value` if it is an object, else an empty one. */
export function asRecord(value: unknown): UnknownRecord {
  return value !== null && typeof value === "object" ? (value as UnknownRecord) : {};
}

/** Returns `value` if it is a string, else `null`. */
export function asString(value: unknown): string | null {
  return typeof value === "string" ? value : null;
}

/**
 * Makes an event of its parsed `data`.
 *
 * With `stream.data = "payload"` events come without their envelope. Such an event has `bareId` for its id and the
 * current time for its timestamp.
 */
export function toJobEvent(jobId: string, type: string, data: unknown, cursor: string, bareId = cursor): JobEvent {
  const record = asRecord(data);
  const id = asString(record.id);
  const hasEnvelope = id !== null && asString(record.type) !== null && "payload" in record;
  const unreadable = hasEnvelope && Array.isArray(record.unreadable) ? record.unreadable.map(String) : [];
  return {
    id: hasEnvelope ? id : bareId,
    cursor,
    jobId: (hasEnvelope && asString(record.jobId)) || jobId,
    stepId: asString(record.stepId),
    type: (hasEnvelope && asString(record.type)) || type,
    timestamp: (hasEnvelope && asString(record.timestamp)) || new Date().toISOString(),
    actor: hasEnvelope ? asString(record.actor) : null,
    payload: hasEnvelope ? record.payload : data,
    ...(unreadable.length > 0 && { unreadable }),
  };
}
