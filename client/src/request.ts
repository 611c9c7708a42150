// Requests with the caller's credentials, and errors that say what stood in the way when there was no answer.

import { clientFailure, type Failure, JobStreamError, OWN_TRIES, tokenFailure } from "./error.js";
import type { JobStreamOptions } from "./options.js";

/** A token that ends this soon is replaced before it is sent. */
const TOKEN_MARGIN_MS = 10_000;

/** A request that got no answer of the server that was asked. */
class Unanswered {
  constructor(readonly failure: Failure) {}
}

/** The requests of one stream. */
export class Requests {
  readonly #options: JobStreamOptions;
  readonly #onTokenAsked: (isAsked: boolean) => void;
  #token: string | null = null;

  /** `onTokenAsked` is called when the token function is called, and again when it has answered. */
  constructor(options: JobStreamOptions, onTokenAsked: (isAsked: boolean) => void) {
    this.#options = options;
    this.#onTokenAsked = onTokenAsked;
  }

  /** Asks for another token before the next request. */
  forgetToken(): void {
    this.#token = null;
  }

  /** Fetches with the token. After a 401 the token function is called once more. */
  async fetch(url: string, accept: string, signal: AbortSignal): Promise<Response> {
    const response = await this.#fetchOnce(url, accept, signal);
    if (response.status !== 401 || typeof this.#options.token !== "function") return response;
    this.forgetToken();
    response.body?.cancel().catch(() => {});
    const second = await this.#fetchOnce(url, accept, signal);
    if (second.status === 401) this.forgetToken();
    return second;
  }

  async #fetchOnce(url: string, accept: string, signal: AbortSignal): Promise<Response> {
    const token = await this.#bearer(signal);
    const headers = { Accept: accept, ...(token && { Authorization: `Bearer ${token}` }) };
    const { credentials = "same-origin" } = this.#options;
    const send = (redirect: RequestRedirect) =>
      fetch(url, { headers, credentials, cache: "no-store", signal, redirect });
    const response = await send("manual");
    if (response.type !== "opaqueredirect" && !(response.status > 300 && response.headers.has("Location")))
      return response;
    // A browser tells nothing of a redirect but that there is one. It may lead to Jobcast, or to another origin's sign-on.
    return send("follow").catch(() => {
      const message = `${url} is redirected to another origin: to sign on, perhaps`;
      throw new Unanswered(clientFailure("client.redirected", message, { giveUpAfter: OWN_TRIES }));
    });
  }

  async #bearer(signal: AbortSignal): Promise<string | null | undefined> {
    const { token } = this.#options;
    if (typeof token !== "function") return token;
    if (this.#token && !endsSoon(this.#token)) return this.#token;
    this.#onTokenAsked(true);
    try {
      this.#token = await token();
    } catch (error) {
      const isOwn = error instanceof JobStreamError;
      throw new Unanswered(isOwn ? { error, giveUpAfter: OWN_TRIES } : tokenFailure(String(error)));
    }
    if (!signal.aborted) this.#onTokenAsked(false);
    return this.#token;
  }
}

/** Makes a failure of what a request threw. `hasAnswered`: a Jobcast has answered at this address before. */
export function failureFromThrown(error: unknown, url: string, hasAnswered: boolean): Failure {
  if (error instanceof Unanswered) return error.failure;
  const { origin } = new URL(url);
  if (globalThis.navigator?.onLine === false) return clientFailure("client.offline", "this device is offline");
  const page = globalThis.location?.origin;
  const reasons = `Does Jobcast run there, and is the address right?${page && page !== origin ? ` Is ${page} one of its http.cors.origins?` : ""}`;
  return clientFailure("client.network", `no answer from ${origin} (${error}). ${hasAnswered ? "" : reasons}`.trim());
}

/** Tells if a JSON Web Token (RFC 7519) ends within moments. Other tokens do not say when they end. */
function endsSoon(token: string): boolean {
  try {
    const claims = atob(token.split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/"));
    return JSON.parse(claims).exp * 1000 < Date.now() + TOKEN_MARGIN_MS;
  } catch {
    return false;
  }
}
