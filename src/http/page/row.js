// @ts-check
// A line of output as a row of the pane.

import { make } from "./dom.js";
import { PLAIN, plainText, readLine, render } from "./terminal.js";

/** @typedef {import("./lines.js").Line} Line */

const MAX_SHOWN_LENGTH = 4000;
/** JSON that is longer than this is folded. */
const MAX_FLAT_JSON = 100;
/** An output line that is JSON and longer than this is not parsed. */
const MAX_PARSED_LENGTH = 64_000;

/**
 * Makes the row of a line. Nothing in it is reached by Tab until the row is the current one, since a pane holds hundreds.
 *
 * @param {Line} line
 * @param {string} time
 * @param {string} href the link to this line
 */
export function makeRow(line, time, href) {
  const row = make("div", `line ${line.kind}`);
  const link = make("a", "time", time);
  link.href = href;
  if (Number.isFinite(line.timeMs)) link.title = new Date(line.timeMs).toISOString();
  link.tabIndex = -1;
  row.append(link, make("span", "tag", plainText(line.tag)), content(line));
  for (const inner of focusables(row)) inner.tabIndex = -1;
  return row;
}

/**
 * The elements of a row that can have the focus.
 *
 * @param {HTMLElement} row
 * @returns {NodeListOf<HTMLElement>}
 */
export const focusables = (row) => row.querySelectorAll("a, summary");

/** @param {Line} line */
function content(line) {
  const text = make("span", "text");
  for (const part of line.unreadable ?? []) text.append(make("span", "badge", `unreadable: ${plainText(part)}`), " ");
  const json = line.json ?? parsed(line);
  const isLong = line.text.length > MAX_SHOWN_LENGTH;
  const { runs } = readLine(isLong ? line.text.slice(0, MAX_SHOWN_LENGTH) : line.text, line.style);
  const type = line.type === undefined ? [] : [make("span", "type", plainText(line.type)), " "];
  if (json !== undefined && line.text.length > MAX_FLAT_JSON) {
    text.append(folded(json, [...type, render(runs)]));
    return text;
  }
  text.append(...type, render(runs));
  if (isLong) text.append(make("span", "cut", `… ${(line.text.length - MAX_SHOWN_LENGTH).toLocaleString("en")} more`));
  return text;
}

/**
 * Returns the object that a line of output holds as JSON.
 *
 * @param {Line} line
 * @returns {object | undefined}
 */
function parsed({ text, kind }) {
  const mayBe = kind === "out" && text.length > MAX_FLAT_JSON && text.length < MAX_PARSED_LENGTH;
  if (!mayBe || !/^\s*[{[]/.test(text)) return undefined;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

/**
 * @param {object} json
 * @param {(Node | string)[]} summary
 */
function folded(json, summary) {
  const details = document.createElement("details");
  const head = document.createElement("summary");
  head.append(...summary);
  details.append(head);
  details.addEventListener("toggle", () => {
    if (!details.open || details.childElementCount > 1) return;
    const body = make("pre", "json");
    body.append(render([{ text: JSON.stringify(json, null, 2), style: PLAIN }]));
    for (const link of focusables(body)) link.tabIndex = 0;
    details.append(body);
  });
  return details;
}
