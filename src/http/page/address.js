// @ts-check
// The address of the page: #job=…&step=…&line=… name the view, and ?status=…&find=… the list of jobs. A token that the
// page was opened with stays in the address, so that a reload works, and in no link that may be handed on.

import { token } from "./token.js";

/**
 * A view: a job, one of its steps, and one of its lines by the id of its event.
 *
 * @typedef {{job: string | null, step: string | null, line: string | null}} View
 */

/** Returns the view that the address names. */
export function currentView() {
  const fields = new URLSearchParams(location.hash.slice(1));
  return /** @type {View} */ ({
    job: fields.get("job") || null,
    step: fields.get("step") || null,
    line: fields.get("line") || null,
  });
}

/**
 * Returns the link to a view, without the token.
 *
 * @param {Partial<View>} view
 */
export function linkTo({ job, step, line }) {
  const fields = Object.entries({ job, step, line }).filter(([, value]) => value);
  return `#${fields.map(([name, value]) => `${name}=${encodeURIComponent(/** @type {string} */ (value))}`).join("&")}`;
}

/**
 * Puts a view into the address, in place of the one that is there.
 *
 * @param {Partial<View>} view
 */
export function replaceView(view) {
  replace(location.search, linkTo(view));
}

/** Puts the token back into an address that was reached by a link without it. */
export function keepToken() {
  if (token !== undefined) replace(location.search, location.hash);
}

/** Returns the filter of the list that the address names. */
export function currentFilter() {
  const fields = new URLSearchParams(location.search);
  return { status: fields.get("status")?.toUpperCase() ?? "", find: fields.get("find") ?? "" };
}

/** @param {{status: string, find: string}} filter */
export function replaceFilter(filter) {
  const fields = new URLSearchParams(location.search);
  for (const [name, value] of Object.entries(filter)) {
    if (value) fields.set(name, value);
    else fields.delete(name);
  }
  replace(fields.size > 0 ? `?${fields}` : "", location.hash);
}

/**
 * @param {string} search
 * @param {string} hash
 */
function replace(search, hash) {
  const view = new URLSearchParams(hash.slice(1));
  if (token !== undefined) view.set("token", token);
  history.replaceState(history.state, "", location.pathname + search + (view.size > 0 ? `#${view}` : hash && "#"));
}
