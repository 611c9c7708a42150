// The output pane. What arrives between two frames is drawn at once; the document holds only the newest lines.

const KEPT = 20_000;
const SHOWN = 2_000;
/** More rows than this at once would cost a frame. */
const DRAWN_AT_ONCE = 400;
const LONGEST_LINE = 4_000;
/** So near to the end counts as being there. */
const SLACK_PX = 24;

export class Output {
  #lines = [];
  /** What is to be shown and was not drawn yet. */
  #waiting = [];
  #step = null;
  #frame = 0;
  #follows = true;
  #unseen = 0;

  /** @param {HTMLElement} pane @param {HTMLButtonElement} newest @param {(at: number) => string} clock */
  constructor(pane, newest, clock) {
    this.pane = pane;
    this.newest = newest;
    this.clock = clock;
    pane.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    newest.addEventListener("click", () => {
      this.#follow();
      pane.focus({ preventScroll: true });
    });
    // a pane that changes its size stays where it was: at the end
    new ResizeObserver(() => this.#follows && this.#follow()).observe(pane);
  }

  /** @param {{at: number, step: ?string, kind: string, tag: string, type?: string, text: string}} line */
  add(line) {
    this.#lines.push(line);
    if (this.#lines.length >= KEPT * 1.5) this.#lines.splice(0, this.#lines.length - KEPT);
    if (!this.#isShown(line)) return;
    this.#waiting.push(line);
    // no frames come while the page is hidden
    if (this.#waiting.length >= SHOWN * 2) this.#waiting.splice(0, this.#waiting.length - SHOWN);
    if (!this.#follows) this.#tellUnseen(this.#unseen + 1);
    this.#frame ||= requestAnimationFrame(() => this.#draw());
  }

  clear() {
    this.#lines = [];
    this.show(null);
  }

  /** Only the lines of one step; of all for `null`. */
  show(step) {
    this.#step = step;
    this.#waiting = this.#lines.filter((line) => this.#isShown(line));
    this.pane.replaceChildren();
    this.#follow();
    this.#draw();
  }

  #isShown(line) {
    return this.#step === null || line.step === this.#step;
  }

  #draw() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    this.#waiting = this.#waiting.slice(-SHOWN);
    const rows = document.createDocumentFragment();
    for (const line of this.#waiting.splice(0, DRAWN_AT_ONCE)) rows.append(this.#row(line));
    const excess = this.pane.childElementCount + rows.childElementCount - SHOWN;
    for (let gone = 0; gone < excess; gone += 1) this.pane.firstElementChild.remove();
    this.pane.append(rows);
    if (this.#follows) this.#follow();
    if (this.#waiting.length > 0) this.#frame = requestAnimationFrame(() => this.#draw());
  }

  #row({ at, kind, tag, type, text }) {
    const row = document.createElement("div");
    row.className = `line ${kind}`;
    const said = cell("text", plain(text));
    if (type !== undefined) said.prepend(cell("type", plain(type)), " ");
    row.append(cell("at", this.clock(at)), cell("tag", plain(tag)), said);
    return row;
  }

  #scrolled() {
    const { scrollHeight, scrollTop, clientHeight } = this.pane;
    this.#follows = scrollHeight - scrollTop - clientHeight < SLACK_PX;
    if (this.#follows) this.#tellUnseen(0);
    else this.newest.hidden = false;
  }

  #follow() {
    this.#follows = true;
    this.pane.scrollTop = this.pane.scrollHeight;
    this.#tellUnseen(0);
  }

  #tellUnseen(count) {
    this.#unseen = count;
    this.newest.hidden = this.#follows;
    this.newest.textContent = count > 0 ? `${count.toLocaleString("en")} new ↓` : "Newest ↓";
  }
}

function cell(name, text) {
  const span = document.createElement("span");
  span.className = name;
  span.textContent = text;
  return span;
}

/** Without colour codes and other escapes of terminals (ECMA-48: CSI, OSC, two-byte), and of bounded length. */
function plain(text) {
  const bare = text
    .slice(0, LONGEST_LINE)
    .replace(/\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)?|\x1b[ -/]*[0-~]/g, "")
    .replace(/[\x00-\x08\x0b-\x1f\x7f]/g, "");
  return text.length > LONGEST_LINE ? `${bare}…` : bare;
}
