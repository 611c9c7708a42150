// One connection for all tabs. The tab that holds the lock leads and tells the others. Each message names the event
// before it, so that a follower that missed one notices, and reads the missing events itself.

import type { ToldReset } from "./connection.js";
import { JobStreamError } from "./error.js";
import type { JobEvent } from "./event.js";
import type { InnerStream, Join, Shared } from "./inner.js";
import { isCatchingUp, type View } from "./state.js";

/** The field of a message for a view. The build shortens the names of other fields so called, and no string. */
const VIEW = "view";

/**
 * A message from one tab to the others. `after` is the id of the event before it. Tabs may run different versions of
 * this client, so the names in here do not change.
 */
type Message =
  | { readonly kind: "events"; readonly after: string | null; readonly events: readonly JobEvent[] }
  | { readonly kind: "view"; readonly after: string | null; readonly [VIEW]: View }
  | { readonly kind: "reset"; readonly reset: ToldReset }
  | { readonly kind: "beat" | "hello" | "reconnect" };

/** Shares with the tabs that watch the same job, where the browser can. */
export const join: Join = (stream) => (Share.isPossible() ? new Share(stream) : null);

class Share implements Shared {
  readonly #stream: InnerStream;
  readonly #channel: BroadcastChannel;
  /** Aborts the wait for the lock. Once it is aborted, this share is closed. */
  readonly #closing = new AbortController();
  /** Releases the lock; `null` while this tab does not hold it. */
  #release: (() => void) | null = null;
  /** Messages of the leader that arrived while this tab was catching up. */
  #heldBack: Message[] = [];

  static isPossible(): boolean {
    return !!globalThis.BroadcastChannel && !!globalThis.navigator?.locks;
  }

  constructor(stream: InnerStream) {
    this.#stream = stream;
    // The channel is opened before the lock is requested, so that no message of a leader is missed.
    this.#channel = new BroadcastChannel(this.#key);
    this.#channel.onmessage = ({ data }: MessageEvent<Message>) => {
      if (!this.#closing.signal.aborted) this.#onMessage(data);
    };
    this.#requestLock({ ifAvailable: true }, async (lock) => (lock ? this.#lead() : this.#follow()));
  }

  // ---- messages to the other tabs, sent by the leader only

  broadcastEvents(after: string | null, events: readonly JobEvent[]): void {
    this.#sendAsLeader({ kind: "events", after, events });
  }

  broadcastReset(reset: ToldReset): void {
    this.#sendAsLeader({ kind: "reset", reset });
  }

  /** Tells the followers that their leader is alive. */
  broadcastAlive(): void {
    this.#sendAsLeader({ kind: "beat" });
  }

  broadcastView(): void {
    const { view } = this.#stream.now().state;
    // A channel clones what is sent, and an error would lose its own fields.
    const plain = { ...view, error: view.error && { ...view.error, message: view.error.message } } as View;
    this.#sendAsLeader({ kind: "view", after: this.#stream.now().lastId, [VIEW]: plain });
  }

  reconnect(): void {
    if (this.#isFollower) this.#send({ kind: "reconnect" });
    else this.#stream.handlers.dispatch({ type: "start" });
  }

  /** The name of the lock and of the channel. */
  get #key(): string {
    return `jobcast:${this.#stream.urls.stream}`;
  }

  get #isFollower(): boolean {
    return this.#stream.now().state.isFollower;
  }

  #sendAsLeader(message: Message): void {
    if (!this.#isFollower) this.#send(message);
  }

  #send(message: Message): void {
    this.#channel.postMessage(message);
  }

  // ---- messages from the other tabs

  #onMessage(message: Message): void {
    if (!this.#isFollower) {
      if (message.kind === "hello") this.broadcastView();
      if (message.kind === "reconnect") this.#stream.handlers.dispatch({ type: "start" });
    } else if (isCatchingUp(this.#stream.now().state)) this.#heldBack.push(message);
    else if (!("after" in message) || this.#hasReached(message.after)) this.#apply(message);
    else {
      // An event before this message is missing here.
      this.#heldBack.push(message);
      this.#stream.handlers.dispatch({ type: "again" });
    }
  }

  #hasReached(id: string | null): boolean {
    return id === null ? this.#stream.now().lastId === null : this.#stream.seenIds.has(id);
  }

  #apply(message: Message): void {
    switch (message.kind) {
      case "view":
        return this.#applyView(message[VIEW]);
      case "events":
        this.#stream.deliver(message.events);
        break;
      case "reset":
        this.#stream.handlers.onReset(message.reset);
        break;
    }
    this.#stream.handlers.dispatch({ type: "leaderAlive" });
  }

  #applyView({ error: plain, ...rest }: View): void {
    const error = plain && new JobStreamError(plain.code, plain.message, plain.retryable, plain.status);
    const view = { ...rest, error } as View;
    this.#stream.handlers.dispatch(
      view.status === "complete" ? { type: "complete", jobStatus: view.jobStatus } : { type: "leader", view },
    );
  }

  /** Applies the messages that were held back while this tab was catching up. By now each is a repeat, or new. */
  applyHeldBack(): void {
    if (isCatchingUp(this.#stream.now().state)) return;
    const messages = this.#heldBack;
    this.#heldBack = [];
    for (const message of messages) this.#apply(message);
  }

  // ---- the lock

  /** Takes the lock from a leader that is silent, such as a frozen tab. */
  takeOver(): void {
    this.#requestLock({ steal: true }, () => this.#lead());
  }

  close(): undefined {
    this.#closing.abort();
    this.#release?.();
    this.#channel.close();
  }

  #requestLock(options: LockOptions, onGranted: (lock: Lock | null) => Promise<void>): void {
    navigator.locks.request(this.#key, options, onGranted).catch(() => {
      // Another tab took the lock from this one, which was asleep.
      if (this.#release) this.#follow();
    });
  }

  /** Follows the leader, and waits for its lock. */
  async #follow(): Promise<void> {
    if (this.#closing.signal.aborted) return;
    this.#release = null;
    this.#stream.handlers.dispatch({ type: "follow" });
    this.#send({ kind: "hello" });
    this.#requestLock({ signal: this.#closing.signal }, () => this.#lead());
  }

  /** Leads, and holds the lock until the returned promise is resolved. */
  #lead(): Promise<void> {
    // A tab that took over may get the lock a second time, by the request that it had made as a follower.
    if (this.#closing.signal.aborted || this.#release) return Promise.resolve();
    const held = new Promise<void>((release) => {
      this.#release = release;
    });
    this.#stream.handlers.dispatch({ type: "start" });
    this.broadcastView();
    return held;
  }
}
