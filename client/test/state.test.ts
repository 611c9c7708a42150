// What a stream does next, with a clock that is only a number.
import { describe, expect, it } from "vitest";
import { JobStreamError, lost } from "../src/error.js";
import { rules } from "../src/options.js";
import { backoffMs, type Input, initial, type Machine, next } from "../src/state.js";

const timedOut = (isBlocked: boolean) => lost("client.timeout", "", { isBlocked });
const gone = (random = 1): Input => ({ type: "lost", random, ...lost("client.network", "gone") });
const time: Input = { type: "time", random: 1, timedOut };
const bytes: Input = { type: "bytes", isNews: false };

/** A machine and its clock. */
class Life {
  machine: Machine;
  nowMs = 1_000_000;
  constructor(options: Parameters<typeof rules>[0] = {}) {
    this.machine = initial(rules(options));
    this.hear({ type: "start" });
  }
  hear(...inputs: Input[]): Machine["view"] {
    for (const input of inputs) this.machine = next(this.machine, input, this.nowMs);
    return this.machine.view;
  }
  after(ms: number, ...inputs: Input[]): Machine["view"] {
    this.nowMs += ms;
    return this.hear(...inputs);
  }
  /** Until the state wants the time. */
  due(...inputs: Input[]): Machine["view"] {
    return this.after(this.machine.dueMs - this.nowMs, time, ...inputs);
  }
}

describe("backoff", () => {
  it("doubles up to its most, anywhere within it by chance", () => {
    const waits = [1, 2, 3, 4, 5, 6, 7, 60].map((attempt) => backoffMs(rules({}), null, attempt, 1));
    expect(waits).toEqual([1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    expect(backoffMs(rules({}), null, 3, 0)).toBe(0);
    expect(backoffMs(rules({}), null, 3, 0.25)).toBe(1000);
    expect(backoffMs(rules({ retry: { jitter: 0.5 } }), null, 3, 0)).toBe(2000);
    expect(backoffMs(rules({ retry: { jitter: 0, factor: 3, initialMs: 10, maxMs: 50 } }), null, 3, 0.3)).toBe(50);
  });
  it("begins where the stream says, even past the most", () => {
    expect(backoffMs(rules({}), 3000, 2, 1)).toBe(6000);
    expect(backoffMs(rules({}), 60_000, 2, 1)).toBe(60_000);
  });
  it("grows while streams do not stay open, and is forgotten by one that does", () => {
    const life = new Life();
    const waits = [1, 2, 3].map(() => {
      const { retryInMs } = life.hear(gone());
      life.due(bytes);
      return retryInMs;
    });
    expect(waits).toEqual([1000, 2000, 4000]);
    expect(life.machine.view).toMatchObject({ status: "open", attempt: 3 });
    expect(life.after(3999, time)).toMatchObject({ attempt: 3 });
    expect(life.after(1, time)).toMatchObject({ status: "open", attempt: 0 });
    expect(life.hear(gone())).toMatchObject({ status: "retrying", attempt: 1, retryInMs: 1000 });
  });
  it("is spread over what many were told, and just what one was told", () => {
    const error = new JobStreamError("http.429", "", true, 429);
    expect(new Life().hear({ type: "lost", random: 0.5, error, waitMs: 9000, isShared: true })).toMatchObject({
      retryInMs: 9500,
    });
    expect(new Life().hear({ type: "lost", random: 0.5, error, waitMs: 9000 })).toMatchObject({ retryInMs: 9000 });
  });
  it("holds to what a stream told of its source before it closed", () => {
    const life = new Life();
    const error = new JobStreamError("source.unavailable", "", true);
    life.hear({ type: "warned", error, waitMs: 5000 }, bytes);
    expect(life.machine.view).toMatchObject({ status: "connecting", error });
    expect(life.after(1000, gone())).toMatchObject({ status: "retrying", retryInMs: 4000, error });
  });
  it("is not needed for what Jobcast tells of its source in an open stream; the next event ends that", () => {
    const life = new Life();
    life.hear(bytes);
    const error = new JobStreamError("source.unavailable", "", true);
    expect(life.hear({ type: "warned", error }, bytes, bytes)).toMatchObject({ status: "open", error });
    expect(life.hear({ type: "bytes", isNews: true })).toMatchObject({ status: "open", error: null });
  });
  it("runs out", () => {
    const life = new Life({ retry: { maxAttempts: 2 } });
    life.hear(gone());
    life.due(gone());
    expect(life.due(gone())).toMatchObject({ status: "failed", error: { code: "client.network" } });
    expect(life.machine.dueMs).toBe(Number.POSITIVE_INFINITY);
    expect(life.hear({ type: "start" })).toMatchObject({ status: "connecting", attempt: 0 });
  });
});

describe("silence", () => {
  it("of an open stream is its death", () => {
    const life = new Life();
    life.hear(bytes);
    expect(life.after(39_999, time).status).toBe("open");
    expect(life.after(1, time)).toMatchObject({ status: "retrying", error: { code: "client.timeout" } });
  });
  it("from the start means that streams do not get through: it polls, and tries streams again, less and less often", () => {
    const life = new Life();
    life.after(8000, time);
    expect([life.machine.task, life.machine.view.status]).toEqual(["poll", "connecting"]);
    const polled: Input = { type: "polled", isEmpty: false, isLevel: true, jobStatus: "RUNNING" };
    expect(life.hear(polled)).toMatchObject({ status: "polling", jobStatus: "RUNNING" });
    life.after(16_000, polled);
    expect([life.machine.task, life.machine.view.status]).toEqual(["stream", "polling"]);
    life.after(8000, time);
    expect(life.machine.task).toBe("poll");
    life.after(23_999, polled);
    expect(life.machine.task).toBe("poll");
    life.after(1, polled);
    expect(life.machine.task).toBe("stream");
    expect(life.hear(bytes).status).toBe("open");
  });
  it("is an error where polling is not wanted", () => {
    const life = new Life({ fallback: "none" });
    expect(life.after(8000, time).status).toBe("connecting");
    expect(life.after(32_000, time).status).toBe("retrying");
  });
  it("does not make it ask without pause a server that does not hold the request", () => {
    const life = new Life();
    life.after(8000, time);
    life.after(10, { type: "polled", isEmpty: true, isLevel: true, jobStatus: null });
    expect([life.machine.task, life.machine.dueMs - life.nowMs]).toEqual(["none", 990]);
    life.due();
    expect(life.machine.task).toBe("poll");
  });
});

describe("waking", () => {
  it("tries again at once and forgets the tries", () => {
    const life = new Life();
    life.hear(gone(), gone());
    expect(life.hear({ type: "wake", isCut: false })).toMatchObject({ status: "connecting", attempt: 0 });
  });
  it("waits for what the server asked for", () => {
    const life = new Life();
    const error = new JobStreamError("http.503", "", true);
    life.hear({ type: "lost", random: 1, error, waitMs: 5000, isShared: true });
    expect(life.hear({ type: "wake", isCut: true }).status).toBe("retrying");
    expect(life.machine.dueMs - life.nowMs).toBe(5000);
    expect(life.due().status).toBe("connecting");
  });
  it("doubts an open stream that has been silent, and not one that has just spoken", () => {
    const life = new Life();
    life.hear(bytes);
    life.after(15_000, { type: "wake", isCut: false });
    expect(life.machine.dueMs - life.nowMs).toBe(5000);
    life.hear(bytes);
    expect(life.machine.dueMs - life.nowMs).toBe(40_000);
    const { run } = life.machine;
    life.hear({ type: "wake", isCut: true });
    expect(life.machine.run).toBe(run + 1);
  });
  it("while polling asks at once, and on another network tries streams", () => {
    const life = new Life();
    life.after(8000, time);
    life.hear({ type: "polled", isEmpty: true, isLevel: true, jobStatus: null });
    life.hear({ type: "wake", isCut: false });
    expect(life.machine.task).toBe("poll");
    life.hear({ type: "wake", isCut: true });
    expect([life.machine.task, life.machine.view.status]).toEqual(["stream", "polling"]);
  });
});

describe("a follower", () => {
  it("reads up, shows what its leader shows, and takes over from one who is silent", () => {
    const life = new Life();
    life.hear({ type: "follow" });
    expect(life.machine.task).toBe("level");
    life.hear({ type: "polled", isEmpty: false, isLevel: false, jobStatus: null });
    expect(life.machine.task).toBe("level");
    life.hear({ type: "polled", isEmpty: true, isLevel: true, jobStatus: null });
    expect(life.machine.task).toBe("none");
    life.hear({ type: "leader", view: { status: "open", attempt: 0, jobStatus: null, retryInMs: null, error: null } });
    expect(life.machine.view.status).toBe("open");
    life.after(59_000, { type: "beat" });
    life.after(59_999, time);
    expect(life.machine.task).toBe("none");
    life.after(1, time);
    expect(life.machine.task).toBe("lead");
    life.hear({ type: "start" });
    expect(life.machine).toMatchObject({ task: "stream", isFollower: false });
  });
  it("tries again when it cannot read up", () => {
    const life = new Life();
    life.hear({ type: "follow" }, gone());
    expect(life.machine.view.status).toBe("retrying");
    life.due();
    expect(life.machine.task).toBe("level");
  });
});

it("hears nothing more after its end", () => {
  const life = new Life();
  life.hear({ type: "complete", jobStatus: "FAILED" });
  expect(life.hear(bytes, gone(), { type: "wake", isCut: true }, time)).toMatchObject({
    status: "complete",
    jobStatus: "FAILED",
  });
  expect(life.hear({ type: "close" }).status).toBe("closed");
});
