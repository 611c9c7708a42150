// Reading a stream in a loop: `for await (const event of stream)`.

import { JobStreamError } from "./error.js";
import type { JobEvent } from "./event.js";
import { isOver, type View } from "./state.js";

/** Events of a stream that wait for its first loop, from the stream's construction on. */
export class Backlog {
  readonly #limit: number;
  #events: JobEvent[] = [];
  #state: "kept" | "overflown" | "taken" = "kept";

  constructor(limit: number) {
    this.#limit = limit;
  }

  add(event: JobEvent): void {
    if (this.#state !== "kept") return;
    if (this.#events.push(event) > this.#limit) this.#end("overflown");
  }

  /** Takes the events for a loop; for a second loop there are none. Throws where too many came to keep them. */
  take(): JobEvent[] {
    const events = this.#events;
    if (this.#state === "overflown") {
      const message = `more than ${this.#limit} events came before the loop began: begin it sooner, or raise maxBuffered`;
      throw new JobStreamError("client.overflow", message, false);
    }
    this.#end("taken");
    return events;
  }

  #end(state: "overflown" | "taken"): void {
    this.#state = state;
    this.#events = [];
  }
}

/** Yields `waiting` and what `subscribe` tells of, until the stream is over. Throws the error of one that has failed. */
export async function* loop<Event extends JobEvent>(
  waiting: Event[],
  view: () => View,
  subscribe: (onEvent: (event: Event) => void, onState: () => void) => () => void,
): AsyncGenerator<Event, void, undefined> {
  let resume = () => {};
  const unsubscribe = subscribe(
    (event) => {
      waiting.push(event);
      resume();
    },
    () => resume(),
  );
  try {
    for (;;) {
      const batch = waiting;
      waiting = [];
      yield* batch;
      if (waiting.length > 0) continue;
      const { status, error } = view();
      if (status === "failed") throw error;
      if (isOver(view())) return;
      await new Promise<void>((resolve) => {
        resume = resolve;
      });
    }
  } finally {
    unsubscribe();
  }
}
