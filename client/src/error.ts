// An error says whether trying again can mend it.

import { type Fields, fields, parsed, text } from "./event.js";

/** What was wrong with a stream: Jobcast's own code (`job.not_found`, `source.unavailable`, …), `http.<status>` of
 * something between, or `client.*` for what only the client can notice. */
export class JobStreamError extends Error {
  override readonly name = "JobStreamError";
  /** The HTTP status, where there was an answer that told one. */
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

/** Why a connection ended. */
export interface Lost {
  readonly error: JobStreamError;
  /** Not sooner than in so long. */
  readonly waitMs?: number;
  /** Many were told the same number: they come back spread behind it. */
  readonly isShared?: boolean;
  /** The server may be well: streams do not get through to us. */
  readonly isBlocked?: boolean;
}

export const lost = (code: string, message: string, more: Omit<Lost, "error"> = {}, retryable = true): Lost => ({
  error: new JobStreamError(code, message, retryable),
  ...more,
});

/** What an answer without success means. */
export async function refusal(response: Response): Promise<Lost> {
  const { status, statusText, headers } = response;
  const problem = fields(parsed(await response.text().catch(() => "")));
  const code = text(problem.code);
  const error = new JobStreamError(
    code ?? `http.${status}`,
    text(problem.detail) ?? `${status} ${statusText}`,
    mayPass(status, code !== null),
    status,
  );
  const waitMs = retryAfterMs(headers.get("Retry-After"));
  return waitMs === undefined ? { error } : { error, waitMs, isShared: true };
}

/** A 502 with Jobcast's own code is a fault that stays; without one it is a proxy whose Jobcast is just restarting. */
function mayPass(status: number, isOurs: boolean): boolean {
  return status >= 500 ? status !== 502 || !isOurs : status === 408 || status === 425 || status === 429;
}

function retryAfterMs(header: string | null): number | undefined {
  const ms = header === null ? NaN : /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return ms > 0 ? ms : undefined;
}

/** What `stream.error` and `stream.bye` tell. */
export function told(type: string, data: Fields): Lost {
  const isBye = type === "stream.bye";
  const error = new JobStreamError(
    text(data.code) ?? type,
    text(data.message) ?? (isBye ? `Jobcast closes the stream: ${text(data.reason)}` : "the stream failed"),
    isBye || data.retryable !== false,
  );
  return typeof data.retryInMs === "number" ? { error, waitMs: data.retryInMs } : { error };
}
