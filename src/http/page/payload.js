// @ts-check
// Readers of payloads. A payload is foreign input: any JSON value, of any shape.

/** The longest text that is taken from a payload's field. */
const MAX_FIELD_LENGTH = 300;

/**
 * Returns the fields of a payload, which are none if it is no object.
 *
 * @param {unknown} payload
 * @returns {Readonly<Record<string, unknown>>}
 */
export function asRecord(payload) {
  const isRecord = payload !== null && typeof payload === "object" && !Array.isArray(payload);
  return isRecord ? /** @type {Record<string, unknown>} */ (payload) : {};
}

/**
 * Returns a text or a number as text, else `null`. An empty text is none.
 *
 * @param {unknown} value
 * @returns {string | null}
 */
export function asText(value) {
  if (typeof value === "number") return String(value);
  return typeof value === "string" && value !== "" ? value.slice(0, MAX_FIELD_LENGTH) : null;
}

/**
 * Returns a finite number, else `null`.
 *
 * @param {unknown} value
 * @returns {number | null}
 */
export function asNumber(value) {
  return typeof value === "number" && Number.isFinite(value) ? value : null;
}
