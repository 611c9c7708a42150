// One connection for all tabs: whoever holds the lock leads and tells the others. Every message names the event before
// it, so that a follower who missed one notices, and reads what is missing itself.

import { JobStreamError } from "./error.js";
import type { JobEvent, Reset } from "./event.js";
import { type Input, isReadingUp, type Machine, type View } from "./state.js";

/** What a tab says to the others. `after` is the id of the event before. */
type Message =
  | { readonly kind: "events"; readonly after: string | null; readonly events: readonly JobEvent[] }
  | { readonly kind: "view"; readonly after: string | null; readonly view: View }
  | { readonly kind: "reset"; readonly reset: Reset }
  | { readonly kind: "beat" | "hello" | "reconnect" };

/** The stream of this tab, as the others need it. */
export interface Tab {
  machine(): Machine;
  /** The id of its newest event. */
  lastId(): string | null;
  has(id: string): boolean;
  hear(input: Input): void;
  take(events: readonly JobEvent[]): void;
  reset(reset: Reset): void;
}

export class Share {
  readonly #key: string;
  readonly #tab: Tab;
  readonly #channel: BroadcastChannel;
  readonly #waiting = new AbortController();
  /** Lets the lock go. */
  #release: (() => void) | null = null;
  /** What the leading tab told while this one was reading up. */
  #kept: Message[] = [];

  static isPossible(): boolean {
    return !!globalThis.BroadcastChannel && !!globalThis.navigator?.locks;
  }

  constructor(key: string, tab: Tab) {
    this.#key = key;
    this.#tab = tab;
    // before the lock: from here on nothing that is told goes unheard
    this.#channel = new BroadcastChannel(key);
    this.#channel.onmessage = ({ data }: MessageEvent<Message>) => {
      if (!this.#waiting.signal.aborted) this.#obey(data);
    };
    this.#request({ ifAvailable: true }, async (lock) => (lock ? this.#hold() : this.#queue()));
  }

  // ---- a leader tells; what a follower has to say, its leader has said

  events(after: string | null, events: readonly JobEvent[]): void {
    this.#lead({ kind: "events", after, events });
  }

  reset(reset: Reset): void {
    this.#lead({ kind: "reset", reset });
  }

  beat(): void {
    this.#lead({ kind: "beat" });
  }

  view(): void {
    const { view } = this.#tab.machine();
    // only what can be cloned
    const plain = { ...view, error: view.error && { ...view.error, message: view.error.message } } as View;
    this.#lead({ kind: "view", after: this.#tab.lastId(), view: plain });
  }

  reconnect(): void {
    if (this.#isFollower) this.#tell({ kind: "reconnect" });
    else this.#tab.hear({ type: "start" });
  }

  get #isFollower(): boolean {
    return this.#tab.machine().isFollower;
  }

  #lead(message: Message): void {
    if (!this.#isFollower) this.#tell(message);
  }

  #tell(message: Message): void {
    this.#channel.postMessage(message);
  }

  // ---- what is told

  #obey(message: Message): void {
    if (!this.#isFollower) {
      if (message.kind === "hello") this.view();
      if (message.kind === "reconnect") this.#tab.hear({ type: "start" });
    } else if (isReadingUp(this.#tab.machine())) this.#kept.push(message);
    else if (!("after" in message) || this.#has(message.after)) this.#apply(message);
    else {
      // something before it has not reached us
      this.#kept.push(message);
      this.#tab.hear({ type: "level" });
    }
  }

  #has(id: string | null): boolean {
    return id === null ? this.#tab.lastId() === null : this.#tab.has(id);
  }

  #apply(message: Message): void {
    if (message.kind === "events") this.#tab.take(message.events);
    else if (message.kind === "reset") this.#tab.reset(message.reset);
    else if (message.kind === "view") {
      // an error loses its class on the way
      const { error: e } = message.view;
      const error = e && new JobStreamError(e.code, e.message, e.retryable, e.status);
      const view = { ...message.view, error } as View;
      return this.#tab.hear(
        view.status === "complete" ? { type: "complete", jobStatus: view.jobStatus } : { type: "leader", view },
      );
    }
    this.#tab.hear({ type: "beat" });
  }

  /** What was told while reading up: by now either a repeat, or new. */
  catchUp(): void {
    if (isReadingUp(this.#tab.machine())) return;
    const kept = this.#kept;
    this.#kept = [];
    for (const message of kept) this.#apply(message);
  }

  // ---- the lock

  /** From a leader who says nothing any more, such as a frozen tab. */
  takeOver(): void {
    this.#request({ steal: true }, () => this.#hold());
  }

  close(): void {
    this.#waiting.abort();
    this.#release?.();
    this.#channel.close();
  }

  #request(options: LockOptions, granted: (lock: Lock | null) => Promise<void>): void {
    navigator.locks.request(this.#key, options, granted).catch(() => {
      // another tab took over while this one slept
      if (this.#release) this.#queue();
    });
  }

  async #queue(): Promise<void> {
    if (this.#waiting.signal.aborted) return;
    this.#release = null;
    this.#tab.hear({ type: "follow" });
    this.#tell({ kind: "hello" });
    this.#request({ signal: this.#waiting.signal }, () => this.#hold());
  }

  #hold(): Promise<void> {
    // one that took over may have its old place in the queue, too
    if (this.#waiting.signal.aborted || this.#release) return Promise.resolve();
    const held = new Promise<void>((release) => {
      this.#release = release;
    });
    this.#tab.hear({ type: "start" });
    this.view();
    return held;
  }
}
