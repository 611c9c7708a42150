// Errors of a stream, and what a failed connection tells about the next try.

import { asString, type UnknownRecord } from "./event.js";

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
  readonly isTokenOver?: boolean | undefined;
  /** The number of failures of this code in a row after which trying again does not help. */
  readonly giveUpAfter?: number;
}

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

/** Loads the code that tells strange answers apart. */
export const diagnosis = () => import("./diagnose.js");

/**
 * Makes a failure from an answer that is none of those that the address gives. `text` is its body, if it was read. The
 * code that tells answers apart is loaded when it is needed; without it any answer is taken for one that may pass.
 */
export const failureFromAnswer = (response: Response, text?: string): Promise<Failure> =>
  diagnosis().then(
    (loaded) => loaded.badAnswer(response, text),
    () => ({ error: new JobStreamError(`http.${response.status}`, "", true, response.status), from: "between" }),
  );

/** Makes a failure of a request that got no answer. `hasAnswered`: a Jobcast has answered at this address before. */
export async function failureFromSilence(error: unknown, origin: string, hasAnswered: boolean): Promise<Failure> {
  if (globalThis.navigator?.onLine === false) return offline();
  const message = `no answer from ${origin} (${error})`;
  // Where there was an answer before, nothing else is waited for.
  const reasons = hasAnswered
    ? ""
    : await diagnosis().then(
        ({ silence }) => silence(origin),
        () => "",
      );
  return clientFailure("client.network", message + reasons);
}

export const offline = (): Failure => clientFailure("client.offline", "no network");

/** Makes a failure from the data of `stream.error` or `stream.bye`. */
export function failureFromControlEvent(type: string, data: UnknownRecord): Failure {
  const isBye = type === "stream.bye";
  const error = new JobStreamError(
    asString(data.code) ?? type,
    asString(data.message) ?? `Jobcast says ${data.reason ?? type}`,
    isBye || data.retryable !== false,
  );
  return {
    error,
    from: "jobcast",
    isTokenOver: data.reason === "expired",
    waitMs: Number(data.retryInMs) || 0,
  };
}
