// Requests with the caller's credentials.

import { clientFailure, type Failure, JobStreamError, OWN_TRIES, tokenFailure } from "./error.js";
import type { JobStreamOptions } from "./options.js";

/** The requests of one stream. */
export interface Requests {
  /** Fetches with the token. After a 401 the token function is called once more. */
  send(url: string, accept: string, signal: AbortSignal, isLast?: boolean): Promise<Response | Failure>;
  /** Asks for another token before the next request. `false` where there is no function to ask. */
  forgetToken(): boolean;
}

/** `onTokenAsked` is called when the token function is called, and again when it has answered. */
export function requests(
  { token, credentials = "same-origin" }: JobStreamOptions,
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
    const headers = { Accept: accept, ...(known && { Authorization: `Bearer ${known}` }) };
    const fetchOnce = (redirect: RequestRedirect) =>
      fetch(url, { headers, credentials, cache: "no-store", signal, redirect });
    const response = await fetchOnce("manual");
    if (response.status === 401 && mayAsk) {
      known = null;
      if (isLast) return response;
      response.body?.cancel().catch(() => {});
      return send(url, accept, signal, true);
    }
    // A browser tells nothing of a redirect but that there is one. It may lead to Jobcast, or to another origin's sign-on.
    if (response.type !== "opaqueredirect" && !response.headers.has("Location")) return response;
    const message = `${url} redirects to another origin, to sign on?`;
    return fetchOnce("follow").catch(() => clientFailure("client.redirected", message, { giveUpAfter: OWN_TRIES }));
  };
  return {
    send,
    forgetToken: () => {
      if (mayAsk) known = null;
      return mayAsk;
    },
  };
}
