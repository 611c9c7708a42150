// Answers that are not what was asked for, and silence: whose they are, and what a developer is to know of them. This is
// loaded when it is needed.

import { clientFailure, type Failure, JobStreamError, OWN_TRIES } from "./error.js";
import { asRecord, asString, parseJson } from "./event.js";

/** Tries before a strange answer is final, where no Jobcast has ever answered. */
const STRANGE_TRIES = 4;
const MAX_WORDS = 100;

/** Makes a failure from an answer. `text` is its body, if it was read. */
export async function badAnswer(response: Response, text?: string): Promise<Failure> {
  const { status, ok, redirected, headers } = response;
  const type = mediaType(response);
  if (type === "application/problem+json") {
    const { code, detail } = asRecord(parseJson(text ?? (await response.text())));
    if (typeof code === "string") {
      const message = asString(detail) ?? code;
      const error = new JobStreamError(code, message, isPassing(status) && status !== 502, status);
      return { error, from: "jobcast", ...waitFrom(headers) };
    }
  }
  const code = redirected ? "client.redirected" : ok ? "client.content_type" : `http.${status}`;
  const error = new JobStreamError(code, await describeAnswer(response, type, text), true, status);
  if (redirected) return { error, giveUpAfter: OWN_TRIES };
  const giveUpAfter = isPassing(status) ? Number.POSITIVE_INFINITY : status === 401 ? 1 : STRANGE_TRIES;
  return { error, from: "between", isBlocked: ok, giveUpAfter, ...waitFrom(headers) };
}

/** Makes a failure of a redirect that could not be followed. */
export const badRedirect = (url: string): Failure =>
  clientFailure("client.redirected", `${url} redirects to another origin, to sign on?`, { giveUpAfter: OWN_TRIES });

/** Makes a failure of a token that can be sent in no header. Only a function may give another one. */
export function badToken(mayChange: boolean): Failure {
  const message = "the token has characters that a header cannot have, such as a line break";
  return { error: new JobStreamError("client.token", message, mayChange), giveUpAfter: OWN_TRIES };
}

/** Says why there may be no answer from an origin that has never answered. */
export function silence(origin: string): string {
  const page = globalThis.location?.origin;
  let text = ": is Jobcast running there, and is the address right?";
  if (page && page !== origin) text += ` Is ${page} one of its http.cors.origins?`;
  if (page?.startsWith("https:") && origin.startsWith("http:")) text += " A page of https may not ask http.";
  return text;
}

/** Statuses that may pass. A 502 of Jobcast's own is a lasting fault; others' come while a server restarts. */
const isPassing = (status: number): boolean => status >= 500 || status === 408 || status === 425 || status === 429;

/** Says who answered in Jobcast's place, with the first words of `text`, or of the body. */
async function describeAnswer(response: Response, type: string, text?: string): Promise<string> {
  const words = (text ?? (await firstText(response)))
    .replace(/<(style|script)[\s\S]*?<\/\1>|<[^>]*>/g, " ")
    .replace(/\s+/g, " ")
    .trim()
    .slice(0, MAX_WORDS);
  // The query of a set of jobs is long, and that of a sign-on page is nobody's business.
  const address = response.url.replace(/\?.*/, "");
  const kind = type || "without a content type";
  return `${address} answered ${response.status} ${kind}, which is not Jobcast${words && `: "${words}"`}`;
}

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

/** Returns the content type of an answer without its parameters. */
const mediaType = ({ headers }: Response): string =>
  (headers.get("Content-Type") ?? "").replace(/;.*/, "").trim().toLowerCase();
