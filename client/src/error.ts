// Errors of a stream, and what a failed connection tells about the next try.

import { asRecord, asString, parseJson, type UnknownRecord } from "./event.js";

/**
 * An error of a stream. Its code is Jobcast's own (`job.not_found`, `source.unavailable`, …), `http.<status>` for an
 * answer of something in between, or `client.*` for what only the client can notice.
 *
 * A token function may throw one: with `retryable` false the stream fails at once.
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

/**
 * The giver of a bad answer. `jobcast`: its word counts. `between`: a proxy or another server, which may be gone at the
 * next try, once this address has answered as a Jobcast does.
 */
export type Answerer = "jobcast" | "between";

/** A failure of a connection: the error for the caller, and hints for the next try. */
export interface Failure {
  readonly error: JobStreamError;
  /** The giver of the answer; missing where there was none. */
  readonly from?: Answerer;
  /** The next try must not come sooner than this. */
  readonly waitMs?: number;
  /** Many clients were told the same `waitMs`: each adds a random wait, so that they do not all come at once. */
  readonly isShared?: boolean;
  /** The server may be well: something in between does not let streams through. */
  readonly isBlocked?: boolean;
  /** The token has run out, or is about to: another is asked for. */
  readonly isTokenOver?: boolean;
  /** The number of failures of this code in a row after which trying again does not help. */
  readonly giveUpAfter?: number;
}

/** Tries before a strange answer is final, where no Jobcast has ever answered. */
const STRANGE_TRIES = 4;
/** Tries before the caller's own part, a token or a session, is given up. They last about as long as a restart. */
export const OWN_TRIES = 10;

/** Makes a failure that the client noticed by itself. */
export const clientFailure = (
  code: `client.${string}`,
  message: string,
  hints: Omit<Failure, "error"> = {},
): Failure => ({ error: new JobStreamError(code, message, true), ...hints });

export const tokenFailure = (why: string): Failure =>
  clientFailure("client.token", `token() failed: ${why}`, { giveUpAfter: OWN_TRIES });

/** Makes a failure from an answer that is none of those that the address gives. `text` is its body, if it was read. */
export async function failureFromAnswer(response: Response, text?: string): Promise<Failure> {
  const { status, headers, redirected, url } = response;
  const type = mediaType(response);
  if (type === "application/problem+json") {
    const { code, detail } = asRecord(parseJson(text ?? (await response.text())));
    if (typeof code === "string") {
      const message = asString(detail) ?? code;
      const error = new JobStreamError(code, message, isRetryable(status) && status !== 502, status);
      return { error, from: "jobcast", ...waitFrom(headers) };
    }
  }
  const words = (text ?? (await firstText(response))).replace(/<(style|script)[\s\S]*?<\/\1>|<[^>]*>/g, " ");
  const message = `${url} answered ${status} ${type || "without a content type"}, which is not Jobcast: "${words.trim().replace(/\s+/g, " ").slice(0, 80)}"`;
  const code = redirected ? "client.redirected" : response.ok ? "client.content_type" : `http.${status}`;
  return {
    error: new JobStreamError(code, message, true, status),
    ...(redirected ? { giveUpAfter: OWN_TRIES } : { from: "between", isBlocked: response.ok }),
    ...(!redirected && !isRetryable(status) && { giveUpAfter: status === 401 ? 1 : STRANGE_TRIES }),
    ...waitFrom(headers),
  };
}

/** Makes a failure from the data of `stream.error` or `stream.bye`. */
export function failureFromControlEvent(type: string, data: UnknownRecord): Failure {
  const isBye = type === "stream.bye";
  const error = new JobStreamError(
    asString(data.code) ?? type,
    asString(data.message) ?? (isBye ? `Jobcast closes the stream: ${asString(data.reason)}` : "the stream failed"),
    isBye || data.retryable !== false,
  );
  const isTokenOver = data.reason === "expired";
  return { error, from: "jobcast", isTokenOver, ...(typeof data.retryInMs === "number" && { waitMs: data.retryInMs }) };
}

/** Returns the content type of an answer without its parameters. */
export const mediaType = ({ headers }: Response): string =>
  (headers.get("Content-Type") ?? "").replace(/;.*/, "").trim().toLowerCase();

/** Statuses that may pass. A 502 of Jobcast's own is a lasting fault; others' come while a server restarts. */
const isRetryable = (status: number): boolean => status >= 500 || status === 408 || status === 425 || status === 429;

/** Reads the first piece of a body, which may be endless. */
async function firstText({ body }: Response): Promise<string> {
  const reader = body?.getReader?.();
  try {
    return new TextDecoder().decode((await reader?.read())?.value);
  } catch {
    return "";
  } finally {
    reader?.cancel().catch(() => {});
  }
}

function waitFrom(headers: Headers): Pick<Failure, "waitMs" | "isShared"> {
  const header = headers.get("Retry-After") ?? "";
  const ms = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return ms > 0 ? { waitMs: ms, isShared: true } : {};
}
