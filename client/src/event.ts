// Events of a job, and how they are read from the wire. Their content is foreign input: any type, any payload.

/** One event of a job. `Type` and `Payload` are known where the caller names the types of events; see `JobStream`. */
export interface JobEvent<Type extends string = string, Payload = unknown> {
  /** The event's own id. */
  readonly id: string;
  /** The place after this event: for `from`, `Last-Event-ID` and `?lastEventId=`. */
  readonly cursor: string;
  readonly jobId: string;
  readonly stepId: string | null;
  /** The type that the writer chose: `step.output`, `job.started`, … */
  readonly type: Type;
  /** The time of the event, in RFC 3339; the time of its arrival where it came without one that can be read. */
  readonly timestamp: string;
  readonly actor: string | null;
  readonly payload: Payload;
  /** Parts that the source could not read as they are stored, such as `payload`; each is lossy or null here. */
  readonly unreadable?: readonly string[];
}

/** Any type with any payload: the events of a stream whose types are not named. */
export type AnyEvents = Record<string, unknown>;

/** The type of one event of `Events`, which maps types of events to their payloads. `event.type` narrows it. */
export type EventOf<Events extends object = AnyEvents> = {
  [Type in keyof Events & string]: JobEvent<Type, Events[Type]>;
}[keyof Events & string];

export type JobStatus = "PENDING" | "QUEUED" | "RUNNING" | "COMPLETED" | "FAILED" | "CANCELLED" | (string & {});

/** A notice that history was lost: what was shown cannot be continued, and the events that follow are all there are. */
export interface Reset {
  /** `unknown`, `trimmed`, `expired` or `rewound`. */
  readonly reason: string;
  readonly cursor: string | null;
  readonly jobId: string;
}

/** The part of an event that no other event of its job has, as the source of the job promises it. */
export type UniquePart = "id" | "cursor";

export type UnknownRecord = Readonly<Record<string, unknown>>;

/** Parses `text` as JSON. Returns the text itself if it is not JSON. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

/** Returns `value` if it is an object, else one without fields of ours. */
export const asRecord = (value: unknown): UnknownRecord => Object(value);

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
  const hasEnvelope = typeof record.id === "string" && typeof record.type === "string" && "payload" in record;
  const envelope = hasEnvelope ? record : {};
  const { unreadable } = envelope;
  return {
    id: asString(envelope.id) ?? bareId,
    cursor,
    jobId: asString(envelope.jobId) ?? jobId,
    stepId: asString(record.stepId),
    type: asString(envelope.type) || type,
    timestamp: asString(envelope.timestamp) ?? new Date().toISOString(),
    actor: asString(envelope.actor),
    payload: hasEnvelope ? record.payload : data,
    ...(Array.isArray(unreadable) && { unreadable: unreadable.map(String) }),
  };
}
