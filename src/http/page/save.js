// @ts-check
// Ways out of the page: the clipboard, and a file.

/**
 * Copies a text. Returns whether the browser let it.
 *
 * @param {string} text
 */
export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Without https there is no clipboard for scripts, but the old command.
    return copyByCommand(text);
  }
}

/** @param {string} text */
function copyByCommand(text) {
  const before = document.activeElement;
  const area = document.createElement("textarea");
  area.className = "visually-hidden";
  area.value = text;
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  if (before instanceof HTMLElement) before.focus({ preventScroll: true });
  return isCopied;
}

/**
 * Lets the browser save a file.
 *
 * @param {string} name
 * @param {BlobPart[]} parts
 */
export function saveFile(name, parts) {
  const url = URL.createObjectURL(new Blob(parts, { type: "text/plain;charset=utf-8" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name.replace(/[^\w.-]+/g, "_");
  link.click();
  // The browser reads it after this task.
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/**
 * Says for a moment on a button that it has done its work.
 *
 * @param {HTMLButtonElement} button
 * @param {string} text
 */
export function flash(button, text) {
  button.dataset.label ??= button.textContent ?? "";
  const { label } = button.dataset;
  button.textContent = text;
  setTimeout(() => {
    button.textContent = label;
  }, 1500);
}
