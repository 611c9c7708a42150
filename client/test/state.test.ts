// The state of a stream, with a clock that is only a number.
import { describe, expect, it } from "vitest";
import { clientFailure, JobStreamError, tokenFailure } from "../src/error.js";
import { rulesFrom } from "../src/options.js";
import { type Action, backoffMs, initialState, reduce, type State } from "../src/state.js";

const lost = (random = 1): Action => ({ type: "lost", random, ...clientFailure("client.network", "gone") });
const timer: Action = { type: "timer", random: 1 };
const bytes: Action = { type: "bytes", hasEvents: false };

/** A stream's state and its clock. */
class Life {
  state: State;
  nowMs = 1_000_000;
  constructor(options: Parameters<typeof rulesFrom>[0] = {}) {
    this.state = initialState(rulesFrom(options));
    this.dispatch({ type: "start" });
  }
  dispatch(...actions: Action[]): State["view"] {
    for (const action of actions) this.state = reduce(this.state, action, this.nowMs);
    return this.state.view;
  }
  after(ms: number, ...actions: Action[]): State["view"] {
    this.nowMs += ms;
    return this.dispatch(...actions);
  }
  /** Lets the time pass until the timer of the state. */
  untilTimer(...actions: Action[]): State["view"] {
    return this.after(this.state.timerAtMs - this.nowMs, timer, ...actions);
  }
}

describe("backoff", () => {
  it("doubles with each try up to maxMs, and a random share of it is waited", () => {
    const waits = [1, 2, 3, 4, 5, 6, 7, 60].map((attempt) => backoffMs(rulesFrom({}), null, attempt, 1));
    expect(waits).toEqual([1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
    expect(backoffMs(rulesFrom({}), null, 3, 0)).toBe(0);
    expect(backoffMs(rulesFrom({}), null, 3, 0.25)).toBe(1000);
    expect(backoffMs(rulesFrom({ retry: { jitter: 0.5 } }), null, 3, 0)).toBe(2000);
    expect(backoffMs(rulesFrom({ retry: { jitter: 0, factor: 3, initialMs: 10, maxMs: 50 } }), null, 3, 0.3)).toBe(50);
  });
  it("begins with the retry of the stream, even if that is longer than maxMs", () => {
    expect(backoffMs(rulesFrom({}), 3000, 2, 1)).toBe(6000);
    expect(backoffMs(rulesFrom({}), 60_000, 2, 1)).toBe(60_000);
  });
  it("of a server that says 0 has a floor, for streams and for polls", () => {
    const life = new Life();
    const waits = [1, 2, 3].map(() => {
      life.dispatch({ type: "retry", ms: 0 });
      const { retryInMs } = life.dispatch(lost());
      life.untilTimer(bytes);
      return retryInMs;
    });
    expect(waits).toEqual([100, 200, 400]);
    const polling = new Life({ fallbackAfterMs: 1000 });
    polling.untilTimer();
    polling.dispatch({ type: "retry", ms: 0 });
    polling.dispatch({ type: "polled", isEmpty: true, isCaughtUp: true, jobStatus: null });
    expect([polling.state.view.status, polling.state.timerAtMs - polling.nowMs]).toEqual(["polling", 250]);
  });
  it("grows while streams do not stay open, and begins anew after one that does", () => {
    const life = new Life();
    const waits = [1, 2, 3].map(() => {
      const { retryInMs } = life.dispatch(lost());
      life.untilTimer(bytes);
      return retryInMs;
    });
    expect(waits).toEqual([1000, 2000, 4000]);
    // An open stream shows no tries; they count until it has stayed open.
    expect([life.state.view, life.state.failures]).toMatchObject([{ status: "open", attempt: 0 }, 3]);
    life.after(3999, timer);
    expect(life.state.failures).toBe(3);
    life.after(1, timer);
    expect(life.state.failures).toBe(0);
    expect(life.dispatch(lost())).toMatchObject({ status: "retrying", attempt: 1, retryInMs: 1000 });
  });
  it("comes on top of a wait that many clients were told, and not of one that only this client was told", () => {
    const error = new JobStreamError("http.429", "", true, 429);
    expect(new Life().dispatch({ type: "lost", random: 0.5, error, waitMs: 9000, isShared: true })).toMatchObject({
      retryInMs: 9500,
    });
    expect(new Life().dispatch({ type: "lost", random: 0.5, error, waitMs: 9000 })).toMatchObject({ retryInMs: 9000 });
  });
  it("keeps to the wait and the error that a stream reported before it closed", () => {
    const life = new Life();
    const error = new JobStreamError("source.unavailable", "", true);
    life.dispatch({ type: "warned", error, waitMs: 5000 }, bytes);
    expect(life.state.view).toMatchObject({ status: "connecting", error });
    expect(life.after(1000, lost())).toMatchObject({ status: "retrying", retryInMs: 4000, error });
  });
  it("is not needed for a fault that an open stream reports, and the next event clears the error", () => {
    const life = new Life();
    life.dispatch(bytes);
    const error = new JobStreamError("source.unavailable", "", true);
    expect(life.dispatch({ type: "warned", error }, bytes, bytes)).toMatchObject({ status: "open", error });
    expect(life.dispatch({ type: "bytes", hasEvents: true })).toMatchObject({ status: "open", error: null });
  });
  it("ends in failed after maxAttempts, and a new start begins anew", () => {
    const life = new Life({ retry: { maxAttempts: 2 } });
    life.dispatch(lost());
    life.untilTimer(lost());
    expect(life.untilTimer(lost())).toMatchObject({ status: "failed", error: { code: "client.network" } });
    expect(life.state.timerAtMs).toBe(Number.POSITIVE_INFINITY);
    expect(life.dispatch({ type: "start" })).toMatchObject({ status: "connecting", attempt: 0 });
  });
});

describe("whose answer it is", () => {
  const strange = (status: number, code: string): Action => {
    const error = new JobStreamError(code, "", true, status);
    return { type: "lost", random: 1, error, from: "between", giveUpAfter: 4 };
  };
  it("a strange one is final after four tries, and never where Jobcast has answered, be it by an error of its own", () => {
    const statusAfter = (life: Life) => {
      for (let tries = 0; tries < 4; tries += 1) {
        if (tries > 0) life.untilTimer();
        life.dispatch(strange(404, "http.404"));
      }
      return [life.state.view.status, life.state.view.error?.retryable];
    };
    expect(statusAfter(new Life({ fallback: "none" }))).toEqual(["failed", false]);
    const warned = new Life({ fallback: "none" });
    warned.dispatch({ type: "warned", error: new JobStreamError("source.unavailable", "", true) });
    expect(statusAfter(warned)).toEqual(["retrying", true]);
  });
  it("a token function that always throws has an end, however often the page is woken", () => {
    const life = new Life();
    for (let tries = 0; tries < 10; tries += 1) {
      if (tries > 0) life.dispatch({ type: "wake", isCut: false });
      life.dispatch({ type: "lost", random: 1, ...tokenFailure("no") });
    }
    expect(life.state.view).toMatchObject({ status: "failed", error: { code: "client.token", retryable: false } });
  });
  it("strange ones of different kinds are not counted together", () => {
    const life = new Life({ fallback: "none" });
    for (const status of [404, 403, 404, 403, 404, 403]) {
      life.dispatch(strange(status, `http.${status}`));
      life.untilTimer();
    }
    expect(life.state.view.status).toBe("connecting");
  });
});

describe("a silent stream", () => {
  it("that was open is lost after heartbeatTimeoutMs", () => {
    const life = new Life();
    life.dispatch(bytes);
    expect(life.after(39_999, timer).status).toBe("open");
    expect(life.after(1, timer)).toMatchObject({ status: "retrying", error: { code: "client.timeout" } });
  });
  it("from its start on is replaced by polling, and streams are tried again less and less often", () => {
    const life = new Life();
    life.after(12_000, timer);
    expect([life.state.task, life.state.view.status]).toEqual(["poll", "connecting"]);
    const polled: Action = { type: "polled", isEmpty: false, isCaughtUp: true, jobStatus: "RUNNING" };
    expect(life.dispatch(polled)).toMatchObject({ status: "polling", jobStatus: "RUNNING" });
    life.after(24_000, polled);
    expect([life.state.task, life.state.view.status]).toEqual(["stream", "polling"]);
    life.after(12_000, timer);
    expect(life.state.task).toBe("poll");
    life.after(35_999, polled);
    expect(life.state.task).toBe("poll");
    life.after(1, polled);
    expect(life.state.task).toBe("stream");
    expect(life.dispatch(bytes).status).toBe("open");
  });
  it("is lost after heartbeatTimeoutMs where polling is not wanted", () => {
    const life = new Life({ fallback: "none" });
    expect(life.after(12_000, timer).status).toBe("connecting");
    expect(life.after(32_000, timer).status).toBe("retrying");
  });
  it("is replaced by polls with a pause, if the server does not hold the request", () => {
    const life = new Life();
    life.after(12_000, timer);
    life.after(10, { type: "polled", isEmpty: true, isCaughtUp: true, jobStatus: null });
    expect([life.state.task, life.state.timerAtMs - life.nowMs]).toEqual(["none", 990]);
    life.untilTimer();
    expect(life.state.task).toBe("poll");
  });
});

describe("polls of a job that always has news", () => {
  const polled: Action = { type: "polled", isEmpty: false, isCaughtUp: true, jobStatus: null };
  it("come four times a second at most", () => {
    const life = new Life();
    life.after(12_000, timer);
    life.after(10, polled);
    expect([life.state.task, life.state.timerAtMs - life.nowMs]).toEqual(["none", 240]);
  });
  it("follow each other at once while there is more to read, or when the answer was long in coming", () => {
    const life = new Life();
    life.after(12_000, timer);
    life.after(10, { ...polled, isCaughtUp: false });
    expect(life.state.task).toBe("poll");
    life.after(250, polled);
    expect(life.state.task).toBe("poll");
  });
});

describe("a page that wakes", () => {
  it("connects at once and counts the tries anew", () => {
    const life = new Life();
    life.dispatch(lost(), lost());
    expect(life.after(1000, { type: "wake", isCut: false })).toMatchObject({ status: "connecting", attempt: 0 });
  });
  it("tries once more each second at most, however many streams of the page wake it", () => {
    const life = new Life({ fallback: "none" });
    const tries = new Set<number>();
    for (let ms = 0; ms < 5000; ms += 10) {
      life.after(10, { type: "wake", isCut: false });
      if (life.state.view.status !== "connecting") continue;
      tries.add(life.state.taskId);
      life.dispatch(lost());
    }
    expect(tries.size).toBe(6);
    expect(life.state.view.status).toBe("retrying");
  });
  it("waits as long as the server asked for", () => {
    const life = new Life();
    const error = new JobStreamError("http.503", "", true);
    life.dispatch({ type: "lost", random: 1, error, waitMs: 5000, isShared: true });
    expect(life.dispatch({ type: "wake", isCut: true }).status).toBe("retrying");
    expect(life.state.timerAtMs - life.nowMs).toBe(5000);
    expect(life.untilTimer().status).toBe("connecting");
  });
  it("allows an open stream half the silence, until its next bytes", () => {
    const life = new Life();
    life.dispatch(bytes);
    life.after(15_000, { type: "wake", isCut: false });
    expect(life.state.timerAtMs - life.nowMs).toBe(5000);
    life.dispatch(bytes);
    expect(life.state.timerAtMs - life.nowMs).toBe(40_000);
    const { taskId } = life.state;
    life.dispatch({ type: "wake", isCut: true });
    expect(life.state.taskId).toBe(taskId + 1);
  });
  it("polls at once while polling, and tries a stream after a change of the network", () => {
    const life = new Life();
    life.after(12_000, timer);
    life.dispatch({ type: "polled", isEmpty: true, isCaughtUp: true, jobStatus: null });
    life.dispatch({ type: "wake", isCut: false });
    expect(life.state.task).toBe("poll");
    life.dispatch({ type: "wake", isCut: true });
    expect([life.state.task, life.state.view.status]).toEqual(["stream", "polling"]);
  });
});

describe("a follower", () => {
  it("catches up, shows the view of its leader, and takes over from a silent one", () => {
    const life = new Life();
    life.dispatch({ type: "follow" });
    expect(life.state.task).toBe("catchUp");
    life.dispatch({ type: "polled", isEmpty: false, isCaughtUp: false, jobStatus: null });
    expect(life.state.task).toBe("catchUp");
    life.dispatch({ type: "polled", isEmpty: true, isCaughtUp: true, jobStatus: null });
    expect(life.state.task).toBe("none");
    life.dispatch({
      type: "leader",
      view: { status: "open", attempt: 0, jobStatus: null, isCaughtUp: false, retryInMs: null, error: null },
    });
    expect(life.state.view.status).toBe("open");
    life.after(59_000, { type: "leaderAlive" });
    life.after(59_999, timer);
    expect(life.state.task).toBe("none");
    life.after(1, timer);
    expect(life.state.task).toBe("takeOver");
    life.dispatch({ type: "start" });
    expect(life.state).toMatchObject({ task: "stream", isFollower: false });
  });
  it("tries again when it cannot catch up", () => {
    const life = new Life();
    life.dispatch({ type: "follow" }, lost());
    expect(life.state.view.status).toBe("retrying");
    life.untilTimer();
    expect(life.state.task).toBe("catchUp");
  });
});

it("keeps the view object as long as nothing in it changes, since its identity tells the listeners", () => {
  const life = new Life();
  const open = life.dispatch(bytes);
  expect(life.after(1000, bytes, { type: "bytes", hasEvents: true }, { type: "retry", ms: 5 }, timer)).toBe(open);
  const warned = life.dispatch({ type: "warned", error: new JobStreamError("source.unavailable", "", true) });
  expect(warned).not.toBe(open);
  expect(life.after(1000, bytes)).toBe(warned);
});

it("a stream that has ended keeps its state until a start", () => {
  const life = new Life();
  life.dispatch({ type: "complete", jobStatus: "FAILED" });
  expect(life.dispatch(bytes, lost(), { type: "wake", isCut: true }, timer)).toMatchObject({
    status: "complete",
    jobStatus: "FAILED",
  });
  expect(life.dispatch({ type: "close" }).status).toBe("complete");
});
