// @ts-check
// The token that the page was opened with: /#job=build-7&token=…, behind the mark that no server gets to see.

/** The token; undefined where there is none, and cookies or nothing decide. */
export const token = new URLSearchParams(location.hash.slice(1)).get("token") || undefined;

/**
 * The header that a request carries it in.
 *
 * @type {Record<string, string>}
 */
export const authorization = token === undefined ? {} : { Authorization: `Bearer ${token}` };
