// <jobcast-log job="…">: the output of a job for pages without a framework. It is styled by custom properties and parts,
// and works under a strict content security policy: no markup is parsed, and its styles are a sheet made by script.

import { type JobEvent, JobStream, type JobStreamOptions, type JobStreamState } from "./index.js";
import { PLAIN, readLine, render, type TextStyle } from "./terminal.js";

/** The number of newest lines that are kept, unless `max-lines` says otherwise. */
const MAX_LINES = 2000;
const MAX_LINE_LENGTH = 4000;
/** More lines than this at once would cost a frame. */
const MAX_LINES_PER_DRAW = 200;
/** A log that is scrolled so near to its end counts as being there. */
const SLACK_PX = 24;
const DRAW_INTERVAL_MS = 64;
const MAX_WRITERS = 1000;

const STYLE = `
:host {
  display: block; position: relative; height: 24em; overflow: hidden; border-radius: 8px; color-scheme: dark;
  background: var(--jobcast-background, #191b20); color: var(--jobcast-color, #d9dade);
  font: 12.5px/1.55 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  --ansi-paper: var(--jobcast-background, #191b20); --ansi-ink: var(--jobcast-color, #d9dade);
}
:host([hidden]) { display: none; }
[part=log] {
  height: 100%; overflow: auto; box-sizing: border-box; padding: 12px 16px; overscroll-behavior: contain;
  --ansi-0: var(--jobcast-black, #8b909a); --ansi-1: var(--jobcast-red, #ff8f86); --ansi-2: var(--jobcast-green, #76cf9c);
  --ansi-3: var(--jobcast-yellow, #e0b566); --ansi-4: var(--jobcast-blue, #8fb0ff); --ansi-5: var(--jobcast-magenta, #dca2f0);
  --ansi-6: var(--jobcast-cyan, #6fcfd6); --ansi-7: var(--jobcast-white, #d9dade); --ansi-8: #a2a7b1; --ansi-9: #ffb0a9;
  --ansi-10: #9fe3bb; --ansi-11: #f3d08f; --ansi-12: #b4caff; --ansi-13: #ebc5f8; --ansi-14: #9fe4e9; --ansi-15: #fff;
}
[part~=line] { white-space: pre-wrap; overflow-wrap: anywhere; min-height: 1.55em; }
[part~=stderr] { color: var(--jobcast-red, #ff9d94); }
[part~=event] { color: var(--jobcast-quiet, #a2a7b1); }
[part~=line] a { color: inherit; }
[part=status] { position: absolute; right: 12px; top: 8px; margin: 0; padding: 2px 8px; border-radius: 6px; background: #2a2d34; color: #e9e7e1; font: 12px/1.5 system-ui, sans-serif; }
[part=status]:empty { display: none; }
button { position: absolute; right: 16px; bottom: 12px; padding: 4px 12px; border: 0; border-radius: 99px; background: #e9e7e1; color: #1c1e22; font: 13px/1.5 system-ui, sans-serif; cursor: pointer; }
[part=retry] { bottom: auto; top: 40px; right: 12px; }
[hidden] { display: none !important; }
:focus-visible { outline: 2px solid #8fb0ff; outline-offset: -2px; }
`;

const STATUS_WORDS: Record<string, string> = {
  connecting: "connecting…",
  retrying: "reconnecting…",
  failed: "stopped",
};

interface Line {
  readonly parts: string;
  text: string;
  style: TextStyle;
  row: HTMLElement | null;
}

// A server that renders pages has no elements; there the class is never made.
const Base = globalThis.HTMLElement ?? (class {} as typeof HTMLElement);

export class JobcastLog extends Base {
  static readonly observedAttributes = ["job", "base-url", "from", "last", "types"];

  /** The token that is sent as `Authorization: Bearer`, or a function that fetches one. It is no attribute: markup is no place for secrets. */
  token: JobStreamOptions["token"];
  #stream: JobStream | null = null;
  #isOpening = false;
  #undrawn: Line[] = [];
  #drawn: Line[] = [];
  /** The style and the newest line of each writer: the output or the errors of a step. */
  #writers = new Map<string, { style: TextStyle; line: Line }>();
  #timer: ReturnType<typeof setTimeout> | undefined;
  #isFollowing = true;
  #topPx = 0;
  #unread = 0;
  readonly #log = part("div", "log");
  readonly #status = part("p", "status");
  readonly #newest = part("button", "newest");
  readonly #retry = part("button", "retry");
  readonly #resize = new ResizeObserver(() => this.#isFollowing && this.#scrollToEnd());

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(STYLE);
    root.adoptedStyleSheets = [sheet];
    this.#log.setAttribute("role", "log");
    this.#log.setAttribute("aria-live", "off");
    this.#log.tabIndex = 0;
    this.#status.setAttribute("role", "status");
    this.#retry.textContent = "Try again";
    this.#newest.hidden = this.#retry.hidden = true;
    root.append(this.#log, this.#status, this.#retry, this.#newest);
    this.#log.addEventListener("scroll", () => this.#onScroll(), { passive: true });
    this.#newest.addEventListener("click", () => {
      this.#follow();
      this.#log.focus({ preventScroll: true });
    });
    this.#retry.addEventListener("click", () => this.#stream?.reconnect());
  }

  /** The state of the stream; `null` while no job is watched. */
  get state(): JobStreamState | null {
    return this.#stream?.state ?? null;
  }

  connectedCallback(): void {
    this.#resize.observe(this.#log);
    this.#openSoon();
  }

  disconnectedCallback(): void {
    this.#resize.disconnect();
    this.#close();
  }

  attributeChangedCallback(_: string, before: string | null, after: string | null): void {
    if (before !== after && this.isConnected) this.#openSoon();
  }

  /** Connects anew at once, also after the stream has failed. */
  reconnect(): void {
    this.#stream?.reconnect();
  }

  /** Opens the stream once all attributes and properties of this turn are set. */
  #openSoon(): void {
    if (this.#isOpening) return;
    this.#isOpening = true;
    queueMicrotask(() => {
      this.#isOpening = false;
      if (this.isConnected) this.#open();
    });
  }

  #close(): void {
    this.#stream?.close();
    this.#stream = null;
    clearTimeout(this.#timer);
    this.#timer = undefined;
  }

  #open(): void {
    this.#close();
    this.#clear();
    const job = this.getAttribute("job");
    this.#log.setAttribute("aria-label", this.getAttribute("aria-label") ?? `Output of job ${job ?? ""}`);
    if (!job) return this.#show("", true);
    const [baseUrl, from, last, types] = ["base-url", "from", "last", "types"].map((name) => this.getAttribute(name));
    const { token } = this;
    try {
      this.#stream = new JobStream(job, {
        maxBuffered: 0,
        ...(baseUrl && { baseUrl }),
        ...(from && { from }),
        ...(last && { last: Number(last) }),
        ...(types && { types: types.split(",").map((type) => type.trim()) }),
        ...(token !== undefined && { token }),
      });
    } catch (error) {
      return this.#show(error instanceof Error ? error.message : String(error), true);
    }
    this.#stream.on("event", (event) => this.#onEvent(event));
    this.#stream.on("reset", () => this.#clear());
    this.#stream.on("state", (state) => this.#onState(state));
    this.#onState(this.#stream.state);
  }

  #clear(): void {
    this.#undrawn = [];
    this.#drawn = [];
    this.#writers.clear();
    this.#log.replaceChildren();
    this.#follow();
  }

  #onState(state: JobStreamState): void {
    const { status, error, jobStatus } = state;
    const word = status === "complete" ? (jobStatus ?? "complete").toLowerCase() : (STATUS_WORDS[status] ?? "");
    this.#show(error ? `${word ? `${word} ` : ""}${error.message}` : word, status !== "failed");
    this.dispatchEvent(new CustomEvent("jobcast-state", { detail: state }));
  }

  #show(text: string, isRetryHidden: boolean): void {
    if (this.#status.textContent !== text) this.#status.textContent = text;
    this.#retry.hidden = isRetryHidden;
  }

  #onEvent(event: JobEvent): void {
    this.#add(event);
    this.dispatchEvent(new CustomEvent("jobcast-event", { detail: event }));
  }

  #add({ type, stepId, payload, unreadable }: JobEvent): void {
    const { line, stream } = (payload ?? {}) as { line?: unknown; stream?: unknown };
    const notice = unreadable ? `(unreadable: ${unreadable.join(", ")}) ` : "";
    if (type !== "step.output" || typeof line !== "string") {
      const json = JSON.stringify(payload) ?? "";
      this.#append({
        parts: "line event",
        text: `${notice}${type} ${json === "{}" ? "" : json}`,
        style: PLAIN,
        row: null,
      });
      return;
    }
    const parts = stream === "stderr" ? "line stderr" : "line";
    const writer = `${parts} ${stepId}`;
    const before = this.#writers.get(writer);
    const text = notice + line.slice(0, MAX_LINE_LENGTH) + (line.length > MAX_LINE_LENGTH ? "…" : "");
    const style = before?.style ?? PLAIN;
    const after = readLine(text, style).style;
    // A line that begins with a carriage return overwrites its writer's last.
    if (before && line.startsWith("\r")) {
      Object.assign(before.line, { text, style });
      before.style = after;
      before.line.row?.replaceChildren(render(readLine(text, style).runs));
      return;
    }
    const added: Line = { parts, text, style, row: null };
    this.#writers.delete(writer);
    this.#writers.set(writer, { style: after, line: added });
    if (this.#writers.size > MAX_WRITERS) {
      const [oldest] = this.#writers.keys();
      this.#writers.delete(oldest!);
    }
    this.#append(added);
  }

  #append(line: Line): void {
    this.#undrawn.push(line);
    // A page in the background draws seldom, and lines beyond the limit would never be seen.
    if (this.#undrawn.length > this.#maxLines * 2) this.#undrawn.splice(0, this.#undrawn.length - this.#maxLines);
    this.#timer ??= setTimeout(() => this.#draw(), DRAW_INTERVAL_MS);
  }

  get #maxLines(): number {
    const given = Number(this.getAttribute("max-lines"));
    return given >= 1 ? Math.floor(given) : MAX_LINES;
  }

  #draw(): void {
    this.#timer = undefined;
    const rows = document.createDocumentFragment();
    const lines = this.#undrawn.splice(0, MAX_LINES_PER_DRAW);
    for (const line of lines) {
      line.row = part("div", line.parts);
      line.row.append(render(readLine(line.text, line.style).runs));
      rows.append(line.row);
    }
    this.#log.append(rows);
    this.#drawn.push(...lines);
    for (const line of this.#drawn.splice(0, Math.max(0, this.#drawn.length - this.#maxLines))) {
      line.row?.remove();
      line.row = null;
    }
    if (this.#isFollowing) this.#scrollToEnd();
    else this.#setUnread(this.#unread + lines.length);
    if (this.#undrawn.length > 0) this.#timer = setTimeout(() => this.#draw(), 16);
  }

  #onScroll(): void {
    const { scrollHeight, scrollTop, clientHeight } = this.#log;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < SLACK_PX;
    // A log that grew is not at its end, although nobody has scrolled up.
    const isPushed = this.#isFollowing && scrollTop >= this.#topPx - 1;
    this.#topPx = scrollTop;
    if (isPushed && !isAtEnd) return this.#scrollToEnd();
    this.#isFollowing = isAtEnd;
    this.#setUnread(isAtEnd ? 0 : this.#unread);
  }

  #follow(): void {
    this.#isFollowing = true;
    this.#scrollToEnd();
    this.#setUnread(0);
  }

  #scrollToEnd(): void {
    this.#log.scrollTop = this.#log.scrollHeight;
    this.#topPx = this.#log.scrollTop;
  }

  #setUnread(count: number): void {
    this.#unread = count;
    this.#newest.hidden = this.#isFollowing;
    this.#newest.textContent = count > 0 ? `${count} new ↓` : "Newest ↓";
  }
}

function part<Tag extends "div" | "p" | "button">(tag: Tag, name: string): HTMLElementTagNameMap[Tag] {
  const element = document.createElement(tag);
  element.setAttribute("part", name);
  if (element instanceof HTMLButtonElement) element.type = "button";
  return element;
}

declare global {
  interface HTMLElementTagNameMap {
    "jobcast-log": JobcastLog;
  }
}

if (globalThis.customElements && !customElements.get("jobcast-log")) customElements.define("jobcast-log", JobcastLog);
