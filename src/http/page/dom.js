// @ts-check
// Small tools for the elements of the page.

/**
 * Returns the element with this id. The page's HTML holds it, so a missing one is a mistake of ours.
 *
 * @template {HTMLElement} E
 * @param {string} id
 * @param {new () => E} [kind] the class of the element
 * @returns {E}
 */
export function byId(id, kind) {
  const element = document.getElementById(id);
  if (element === null || (kind && !(element instanceof kind))) throw new Error(`the page has no #${id}`);
  return /** @type {E} */ (element);
}

/**
 * Makes an element with a class.
 *
 * @template {keyof HTMLElementTagNameMap} Tag
 * @param {Tag} tag
 * @param {string} className
 * @param {string} [text]
 */
export function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

/**
 * Sets the text of an element. A text that stays the same costs no layout, and is not announced again.
 *
 * @param {HTMLElement} element
 * @param {string} text
 */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
