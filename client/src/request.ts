// Requests with the caller's credentials.

import { diagnosis, type Failure, JobStreamError, OWN_TRIES, tokenFailure } from "./error.js";
import type { JobStreamOptions } from "./options.js";

/** The requests of one stream. */
export interface Requests {
  /** Fetches with the token. After a 401 the token function is called once more. */
  send(url: string, accept: string, signal: AbortSignal, isLast?: boolean): Promise<Response | Failure>;
  /** Asks for another token before the next request. `false` where there is no function to ask. */
  forgetToken(): boolean;
}

/** Characters that `fetch` refuses in a header, before it asks anybody. */
const NO_HEADER_VALUE = /[^\t -~\x80-\xff]/;

/** `onTokenAsked` is called when the token function is called, and again when it has answered. */
export function requests(
  { token, sameToken = token, credentials = "same-origin" }: JobStreamOptions,
  onTokenAsked: (isAsked: boolean) => void,
): Requests {
  const mayAsk = typeof token === "function";
  let known = mayAsk ? null : token;

  const send: Requests["send"] = async (url, accept, signal, isLast) => {
    if (mayAsk && !known) {
      onTokenAsked(true);
      try {
        known = await token();
      } catch (error) {
        return error instanceof JobStreamError ? { error, giveUpAfter: OWN_TRIES } : tokenFailure(String(error));
      }
      if (!signal.aborted) onTokenAsked(false);
    }
    if (NO_HEADER_VALUE.test(known!)) {
      forgetToken();
      return (await diagnosis()).badToken(typeof sameToken === "function");
    }
    const headers = { Accept: accept, ...(known && { Authorization: `Bearer ${known}` }) };
    const fetchOnce = (redirect: RequestRedirect) =>
      fetch(url, { headers, credentials, cache: "no-store", signal, redirect });
    const response = await fetchOnce("manual");
    if (response.status === 401 && forgetToken()) {
      if (isLast) return response;
      response.body?.cancel().catch(() => {});
      return send(url, accept, signal, true);
    }
    // A browser tells nothing of a redirect but that there is one. It may lead to Jobcast, or to another origin's sign-on.
    if (response.type !== "opaqueredirect" && !response.headers.has("Location")) return response;
    return fetchOnce("follow").catch(async () => (await diagnosis()).badRedirect(url));
  };
  const forgetToken = () => {
    if (mayAsk) known = null;
    return mayAsk;
  };
  return { send, forgetToken };
}
