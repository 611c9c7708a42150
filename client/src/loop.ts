// Reading a stream in a loop: `for await (const event of stream)`. This is loaded when it is needed.

import type { JobEvent } from "./event.js";
import { isOver, type View } from "./state.js";

type Listen = (name: "event" | "state", listener: (value: never) => void) => () => void;

/** Yields `waiting` and all later events, until the stream is over. Throws the error of one that has failed. */
export async function* loop<Event extends JobEvent>(
  waiting: Event[],
  view: () => View,
  listen: Listen,
): AsyncGenerator<Event, void, undefined> {
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
