// Reading a stream in a loop: `for await (const event of stream)`. This is loaded when it is needed.

import { JobStreamError } from "./error.js";
import type { JobEvent } from "./event.js";
import { isOver, type View } from "./state.js";

/** Events since the stream was made, for the first loop; `overflown` if there were too many, `begun` after a loop began. */
export type Backlog<Event = JobEvent> = Event[] | "begun" | "overflown";

type Listen = (name: "event" | "state", listener: (value: never) => void) => () => void;

/** Yields the backlog and all later events, until the stream is over. Throws the error of one that has failed. */
export async function* loop<Event extends JobEvent>(
  backlog: Backlog<Event>,
  view: () => View,
  listen: Listen,
): AsyncGenerator<Event, void, undefined> {
  if (backlog === "overflown")
    throw new JobStreamError("client.overflow", "more events than maxBuffered came before the loop", false);
  let waiting = backlog === "begun" ? [] : backlog;
  let resume = () => {};
  const unsubscribes = [
    listen("event", (event: Event) => {
      waiting.push(event);
      resume();
    }),
    listen("state", () => resume()),
  ];
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
    for (const unsubscribe of unsubscribes) unsubscribe();
  }
}
