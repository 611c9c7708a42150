// Errors of a stream, and what a failed connection tells about the next try.

import { asRecord, asString, parseJson, type UnknownRecord } from "./event.js";

/**
 * An error of a stream. Its code is Jobcast's own (`job.not_found`, `source.unavailable`, …), `http.<status>` for an
 * answer of something in between, or `client.*` for what only the client can notice.
 */
export class JobStreamError extends Error {
  override readonly name = "JobStreamError";
  /** The HTTP status of the answer, if there was an answer. */
  readonly status: number | null;

  constructor(
    readonly code: string,
    message: string,
    readonly retryable: boolean,
    status: number | null = null,
  ) {
    super(message);
    this.status = status;
  }
}

/** A failure of a connection: the error for the caller, and hints for the next try. */
export interface Failure {
  readonly error: JobStreamError;
  /** The next try must not come sooner than this. */
  readonly waitMs?: number;
  /** Many clients were told the same `waitMs`: each adds a random wait, so that they do not all come at once. */
  readonly isShared?: boolean;
  /** The server may be well: something in between does not let streams through. */
  readonly isBlocked?: boolean;
}

/** Makes a failure that the client noticed by itself. */
export const clientFailure = (
  code: `client.${string}`,
  message: string,
  hints: Omit<Failure, "error"> = {},
  retryable = true,
): Failure => ({ error: new JobStreamError(code, message, retryable), ...hints });

/** Makes a failure from an answer that was no success. */
export async function failureFromResponse(response: Response): Promise<Failure> {
  const { status, statusText, headers } = response;
  const problem = asRecord(parseJson(await response.text().catch(() => "")));
  const code = asString(problem.code);
  const error = new JobStreamError(
    code ?? `http.${status}`,
    asString(problem.detail) ?? `${status} ${statusText}`,
    isRetryable(status, code !== null),
    status,
  );
  const waitMs = retryAfterMs(headers.get("Retry-After"));
  return waitMs === undefined ? { error } : { error, waitMs, isShared: true };
}

/** Makes a failure from the data of `stream.error` or `stream.bye`. */
export function failureFromControlEvent(type: string, data: UnknownRecord): Failure {
  const isBye = type === "stream.bye";
  const error = new JobStreamError(
    asString(data.code) ?? type,
    asString(data.message) ?? (isBye ? `Jobcast closes the stream: ${asString(data.reason)}` : "the stream failed"),
    isBye || data.retryable !== false,
  );
  return typeof data.retryInMs === "number" ? { error, waitMs: data.retryInMs } : { error };
}

/** A 502 with a code of Jobcast's is a lasting fault. One without comes from a proxy while Jobcast restarts. */
function isRetryable(status: number, isFromJobcast: boolean): boolean {
  return status >= 500 ? status !== 502 || !isFromJobcast : status === 408 || status === 425 || status === 429;
}

function retryAfterMs(header: string | null): number | undefined {
  const ms = header === null ? NaN : /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return ms > 0 ? ms : undefined;
}
