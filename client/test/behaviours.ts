// Promises of the client that hold wherever it runs. behaviours.test.ts tries them in Node and in Chromium.

import { expect } from "vitest";
import { eventually } from "./support/eventually.ts";
import { problem } from "./support/gateway.ts";
import { type Behaviour, numbers, until, untilCount, untilStatus, upTo } from "./support/world.ts";

export const connection: Behaviour[] = [
  {
    name: "connects, delivers each event once and in order, and completes with the job",
    async run(w) {
      await w.number(0, 5);
      const watch = await w.watch();
      await untilStatus(watch, "open");
      await w.number(5, 5);
      await untilCount(watch, 10);
      await w.daemon.end(w.job);
      const now = await untilStatus(watch, "complete");
      expect(numbers(now)).toEqual(upTo(10));
      expect(now.statuses).toEqual(["connecting", "open", "complete"]);
      expect(now.jobStatus).toBe("COMPLETED");
      expect(w.proxy.streams(w.job)).toHaveLength(1);
      const [event] = now.events;
      expect(event).toMatchObject({ jobId: w.job, type: "step.output", stepId: null, actor: null, payload: { n: 0 } });
      expect(event?.cursor).toMatch(/^[\w.~-]{1,128}$/);
    },
  },
  {
    name: "calls the listeners of an event's own type",
    async run(w) {
      await w.write([
        { type: "step.progress", payload: 1 },
        { type: "state", payload: 2 },
        { type: "my.own", payload: 3 },
      ]);
      const watch = await w.watch({ listenFor: "my.own" });
      const now = await untilCount(watch, 3);
      expect(now.heard).toEqual(["my.own"]);
      // An event of the type "state" is an event like any other, and no state of the stream.
      expect(now.events.map(({ type }) => type)).toEqual(["step.progress", "state", "my.own"]);
      expect(now.statuses.every((status) => typeof status === "string")).toBe(true);
    },
  },
  {
    name: "leaves no subscriber and sends no request after close()",
    async run(w) {
      await w.number(0, 1);
      await eventually("there is no subscriber", async () => (await w.daemon.subscribers()) === 0);
      const watch = await w.watch();
      await untilCount(watch, 1);
      await eventually("there is a subscriber", async () => (await w.daemon.subscribers()) === 1);
      await watch.do("close");
      await eventually("no subscriber is left", async () => (await w.daemon.subscribers()) === 0);
      const requests = w.proxy.seen.length;
      await w.number(1, 1);
      await new Promise((resolve) => setTimeout(resolve, 400));
      expect(w.proxy.seen.filter(({ method }) => method === "GET")).toHaveLength(requests);
      const now = await watch.now();
      expect([now.status, now.events.length]).toEqual(["closed", 1]);
      await watch.do("reconnect");
      expect(numbers(await untilCount(watch, 2))).toEqual([0, 1]);
    },
  },
  {
    name: "closes when its AbortSignal is aborted, and stays closed",
    async run(w) {
      await w.number(0, 1);
      const watch = await w.watch();
      await untilCount(watch, 1);
      await watch.do("abort");
      expect((await watch.now()).status).toBe("closed");
      await eventually("no subscriber is left", async () => w.proxy.openStreams === 0);
      await watch.do("reconnect");
      expect((await watch.now()).status).toBe("closed");
    },
  },
  {
    name: "begins where `from` says: now, after a cursor, after an event's id",
    async run(w) {
      await w.write([
        { id: `${w.job}-0`, payload: { n: 0 } },
        { id: `${w.job}-1`, payload: { n: 1 } },
        { payload: { n: 2 } },
      ]);
      const all = await untilCount(await w.watch(), 3);
      expect(numbers(await untilCount(await w.watch({ from: all.events[0]!.cursor }), 2))).toEqual([1, 2]);
      expect(numbers(await untilCount(await w.watch({ from: `${w.job}-1` }), 1))).toEqual([2]);
      const now = await w.watch({ from: "now" });
      const { cursor } = await untilStatus(now, "open");
      // The cursor is known before the first event, so that a lost connection loses nothing.
      expect(cursor).not.toBeNull();
      w.proxy.plan = () => ({ kind: "refuse" });
      w.proxy.cut();
      await w.number(3, 2);
      await untilStatus(now, "retrying");
      w.proxy.plan = () => null;
      expect(numbers(await untilCount(now, 2))).toEqual([3, 4]);
    },
  },
  {
    name: "resets when history was lost, and delivers all events that there are",
    async run(w) {
      await w.number(0, 3);
      const watch = await w.watch({ from: "of-nobody" });
      const now = await untilCount(watch, 3);
      expect(now.resets).toEqual(["unknown"]);
      expect(numbers(now)).toEqual(upTo(3));
    },
  },
  {
    name: "completes with the job's status when it comes back to a job that has ended",
    async run(w) {
      await w.number(0, 2);
      await w.daemon.end(w.job, "FAILED");
      const first = await untilStatus(await w.watch(), "complete");
      const again = await w.watch({ from: first.cursor! });
      const now = await untilStatus(again, "complete");
      expect(now.events).toEqual([]);
      expect(now.jobStatus).toBe("FAILED");
      expect(w.proxy.streams(w.job)).toHaveLength(2);
    },
  },
  {
    name: "reads events without their envelope",
    daemon: { "stream.data": "payload" },
    async run(w) {
      await w.write([
        { stepId: "s", type: "a.b", payload: { line: "hi" } },
        { type: "a.b", payload: [1] },
      ]);
      const now = await untilCount(await w.watch(), 2);
      expect(now.events[0]).toMatchObject({ jobId: w.job, stepId: "s", type: "a.b", payload: { line: "hi" } });
      expect(now.events[1]).toMatchObject({ type: "a.b", payload: [1] });
      expect(now.events[0]?.id).toBe(now.events[0]?.cursor);
    },
  },
];

export const trouble: Behaviour[] = [
  {
    name: "loses and repeats nothing when connections are cut within events and within UTF-8",
    async run(w) {
      await w.number(0, 60, "äöü €uro 𝄞 ".repeat(6));
      let bytes = 300;
      w.proxy.plan = ({ url }) => (url.pathname.endsWith("/stream") ? { kind: "cut", bytes: (bytes += 131) } : null);
      const watch = await w.watch({ retry: { maxMs: 60 } });
      await untilCount(watch, 30);
      w.proxy.plan = () => null;
      const now = await untilCount(watch, 60);
      expect(numbers(now)).toEqual(upTo(60));
      expect(now.events.every(({ payload }) => JSON.stringify(payload).includes("äöü €uro 𝄞 "))).toBe(true);
      expect(now.attempts.length).toBeGreaterThan(3);
      expect(now.attempts).toContain(2);
    },
  },
  {
    name: "reads a stream that arrives byte by byte",
    async run(w) {
      await w.number(0, 8, "€𝄞");
      w.proxy.plan = () => ({ kind: "chop" });
      const now = await untilCount(await w.watch(), 8);
      expect(numbers(now)).toEqual(upTo(8));
      expect(now.attempts).toEqual([]);
    },
  },
  {
    name: "waits for a slow answer, and does not take it for a blocked stream",
    async run(w) {
      await w.number(0, 2);
      w.proxy.plan = () => ({ kind: "delay", ms: 700 });
      const watch = await w.watch({ heartbeatTimeoutMs: 60_000, fallbackAfterMs: 30_000 });
      const now = await untilCount(watch, 2);
      expect(now.statuses).toEqual(["connecting", "open"]);
      expect(w.proxy.polls(w.job).filter(({ method }) => method === "GET")).toEqual([]);
      expect(w.proxy.streams(w.job)).toHaveLength(1);
    },
  },
  {
    name: "tries again after 500, 429 and a refused connection, not sooner than Retry-After",
    async run(w) {
      await w.number(0, 1);
      const at: number[] = [];
      let isRefused = true;
      w.proxy.plan = () => {
        at.push(Date.now());
        if (at.length === 1) return { kind: "answer", status: 500 };
        if (at.length === 2) return { kind: "answer", status: 429, headers: { "Retry-After": "1" } };
        return isRefused ? { kind: "refuse" } : null;
      };
      const watch = await w.watch();
      await until(watch, "it is refused", ({ errors }) => errors.some(({ code }) => code === "client.network"));
      isRefused = false;
      const now = await untilCount(watch, 1);
      expect(now.errors.map(({ code }) => code)).toEqual(
        expect.arrayContaining(["http.500", "http.429", "client.network"]),
      );
      expect(now.attempts.slice(0, 3)).toEqual([1, 2, 3]);
      expect(at[2]! - at[1]!).toBeGreaterThanOrEqual(990);
      const calm = await until(watch, "tries are counted anew", ({ attempt }) => attempt === 0);
      expect(calm.status).toBe("open");
    },
  },
  {
    name: "waits twice as long after each try, within its jitter, up to maxMs",
    stopsClock: true,
    async run(w) {
      await w.number(0, 1);
      w.proxy.plan = () => ({ kind: "answer", status: 500 });
      await w.client.stopClock();
      const watch = await w.watch({ retry: { initialMs: 1000, maxMs: 8000, jitter: 0.5 } });
      for (const [at, most] of [1000, 2000, 4000, 8000, 8000].entries()) {
        const { waits } = await until(
          watch,
          `try ${at + 1} has failed`,
          ({ attempt, status }) => attempt === at + 1 && status === "retrying",
        );
        const waitMs = waits.at(-1)!;
        expect(waitMs).toBeGreaterThanOrEqual(most / 2);
        expect(waitMs).toBeLessThanOrEqual(most);
        expect(w.proxy.streams(w.job)).toHaveLength(at + 1);
        await w.client.advance(waitMs - 1);
        expect((await watch.now()).status).toBe("retrying");
        if (at === 4) w.proxy.plan = () => null;
        await w.client.advance(1);
      }
      await untilCount(watch, 1);
    },
  },
  {
    name: "does not try again after Jobcast's 403, until it is asked to",
    async run(w) {
      await w.number(0, 1);
      w.proxy.plan = () => problem(403, "auth.forbidden");
      const watch = await w.watch();
      const now = await untilStatus(watch, "failed");
      expect(now.errors.at(-1)).toMatchObject({ code: "auth.forbidden", status: 403, retryable: false });
      await new Promise((resolve) => setTimeout(resolve, 300));
      expect(w.proxy.streams(w.job)).toHaveLength(1);
      w.proxy.plan = () => null;
      await watch.do("reconnect");
      expect(numbers(await untilCount(watch, 1))).toEqual([0]);
    },
  },
  {
    name: "fails with Jobcast's own code for an unknown job, and reconnects once there is one",
    async run(w) {
      const watch = await w.watch();
      expect((await untilStatus(watch, "failed")).errors.at(-1)).toMatchObject({ code: "job.not_found", status: 404 });
      await w.number(0, 1);
      await watch.do("reconnect");
      await untilCount(watch, 1);
    },
  },
  {
    name: "calls the token function once more after a 401, and fails after a second",
    async run(w) {
      await w.number(0, 1);
      w.proxy.plan = ({ headers }) => (headers.authorization === "Bearer new" ? null : { kind: "answer", status: 401 });
      const good = await untilCount(await w.watch({ tokens: ["old", "new"] }), 1);
      expect([good.tokensAsked, good.attempts]).toEqual([2, []]);
      const bad = await untilStatus(await w.watch({ tokens: ["old", "older"] }), "failed");
      expect([bad.tokensAsked, bad.errors.at(-1)?.status]).toEqual([2, 401]);
    },
  },
  {
    name: "fails with the error after maxAttempts, and starts anew by reconnect()",
    async run(w) {
      await w.number(0, 1);
      w.proxy.plan = () => ({ kind: "answer", status: 503 });
      const watch = await w.watch({ retry: { maxAttempts: 3 } });
      const now = await untilStatus(watch, "failed");
      expect(now.attempts).toEqual([1, 2, 3]);
      expect(now.errors.at(-1)).toMatchObject({ code: "http.503", retryable: true });
      expect(w.proxy.streams(w.job)).toHaveLength(4);
      w.proxy.plan = () => null;
      await watch.do("reconnect");
      await untilCount(watch, 1);
    },
  },
  {
    name: "polls while a proxy buffers streams, and streams again afterwards",
    async run(w) {
      await w.number(0, 2);
      w.proxy.plan = () => ({ kind: "buffer", head: false });
      const watch = await w.watch({ fallbackAfterMs: 400 });
      await untilStatus(watch, "polling");
      await w.number(2, 3);
      await untilCount(watch, 5);
      w.proxy.plan = () => null;
      await untilStatus(watch, "open");
      await w.number(5, 2);
      const now = await untilCount(watch, 7);
      expect(numbers(now)).toEqual(upTo(7));
      expect(now.attempts).toEqual([]);
    },
  },
  {
    name: "polls up to the job's end where a proxy buffers even the head of a stream",
    async run(w) {
      await w.number(0, 1200);
      w.proxy.plan = () => ({ kind: "buffer", head: true });
      const watch = await w.watch({ fallbackAfterMs: 400 });
      await untilStatus(watch, "polling");
      await untilCount(watch, 1200);
      await w.daemon.end(w.job, "CANCELLED");
      const now = await untilStatus(watch, "complete");
      expect(numbers(now)).toEqual(upTo(1200));
      expect(now.jobStatus).toBe("CANCELLED");
    },
  },
  {
    name: "polls where fetch cannot stream",
    async run(w) {
      await w.number(0, 3);
      const watch = await w.watch({ isBodiless: true });
      await untilStatus(watch, "polling");
      await w.number(3, 2);
      expect(numbers(await untilCount(watch, 5))).toEqual(upTo(5));
      await w.daemon.end(w.job);
      await untilStatus(watch, "complete");
    },
  },
  {
    name: "polls from now on where a proxy answers streams with an HTML page",
    async run(w) {
      await w.number(0, 3);
      w.proxy.plan = ({ url }) => (url.pathname.endsWith("/stream") ? { kind: "answer", status: 200 } : null);
      const watch = await w.watch({ from: "now" });
      await untilStatus(watch, "polling");
      await w.number(3, 2);
      expect(numbers(await untilCount(watch, 2))).toEqual([3, 4]);
      await watch.do("close");
    },
  },
  {
    name: "fails where no Jobcast ever answered, and tries again where one did",
    async run(w) {
      await w.number(0, 2);
      w.proxy.plan = () => ({ kind: "answer", status: 200 });
      const never = await untilStatus(await w.watch(), "failed");
      expect(never.errors.at(-1)).toMatchObject({ code: "client.content_type", retryable: false });
      const none = await untilStatus(await w.watch({ fallback: "none" }), "failed");
      expect(none.errors.at(-1)?.code).toBe("client.content_type");
      w.proxy.plan = () => null;
      const once = await w.watch();
      await untilCount(once, 2);
      w.proxy.plan = () => ({ kind: "answer", status: 200 });
      w.proxy.cut();
      await untilStatus(once, "retrying");
      w.proxy.plan = () => null;
      await w.number(2, 1);
      expect(numbers(await untilCount(once, 3))).toEqual(upTo(3));
    },
  },
  {
    name: "leaves a connection that is open and silent, and misses nothing",
    async run(w) {
      await w.number(0, 1);
      const watch = await w.watch({ heartbeatTimeoutMs: 1500 });
      await untilCount(watch, 1);
      w.proxy.isFrozen = true;
      await w.number(1, 2);
      await until(watch, "the time-out is noticed", ({ errors }) =>
        errors.some(({ code }) => code === "client.timeout"),
      );
      w.proxy.isFrozen = false;
      expect(numbers(await untilCount(watch, 3))).toEqual(upTo(3));
    },
  },
];

export const daemons: Behaviour[] = [
  {
    name: "leaves a daemon that is stopped (SIGSTOP), and goes on once it runs again",
    daemon: {},
    async run(w) {
      await w.number(0, 2);
      const watch = await w.watch({ heartbeatTimeoutMs: 1500, fallbackAfterMs: 500 });
      await untilCount(watch, 2);
      w.daemon.signal("SIGSTOP");
      await untilStatus(watch, "retrying");
      w.daemon.signal("SIGCONT");
      await w.number(2, 2);
      expect(numbers(await untilCount(watch, 4))).toEqual(upTo(4));
    },
  },
  {
    name: "delivers each event once and in order through four kill -9 while events are written",
    daemon: {},
    async run(w) {
      let written = 0;
      let isWriting = true;
      // A runner writes an event again, with the same id, until it is answered.
      const writing = (async () => {
        for (; isWriting; written += 1)
          await eventually(`event ${written} is taken`, () =>
            w.write([{ id: `${w.job}-${written}`, payload: { n: written } }]).then(() => true),
          );
      })();
      const watch = await eventually("the job is there", () => written > 0).then(() => w.watch());
      for (let round = 0; round < 4; round += 1) {
        const { events, attempts } = await watch.now();
        await untilCount(watch, events.length + 20);
        await w.daemon.kill();
        await until(watch, "the death is noticed", (now) => now.attempts.length > attempts.length);
        await w.daemon.restart();
      }
      await untilStatus(watch, "open");
      isWriting = false;
      await writing;
      await w.daemon.end(w.job);
      const now = await untilStatus(watch, "complete");
      expect(numbers(now)).toEqual(upTo(written));
    },
  },
  {
    name: "fails with Jobcast's error about its source, and goes on by reconnect() once that is mended",
    daemon: { "source.forgive": "0s" },
    async run(w) {
      await w.number(0, 2);
      const watch = await w.watch();
      await untilCount(watch, 2);
      w.daemon.sql("ALTER TABLE job_events RENAME TO elsewhere");
      const now = await untilStatus(watch, "failed");
      expect(now.errors.at(-1)).toMatchObject({ code: "source.schema", retryable: false });
      expect(now.errors.at(-1)?.message).toContain("cannot be used");
      w.daemon.sql("ALTER TABLE elsewhere RENAME TO job_events");
      await w.daemon.ready();
      await watch.do("reconnect");
      await w.number(2, 1);
      expect(numbers(await untilCount(watch, 3))).toEqual(upTo(3));
    },
  },
  {
    name: "waits while there are too many connections, and connects when there is room",
    daemon: { "http.max_connections_per_ip": "1" },
    async run(w) {
      await w.number(0, 1);
      const first = await w.watch();
      await untilCount(first, 1);
      const second = await w.watch();
      // Should the first come back for whatever reason, it may be the one that is refused.
      let isSecond = true;
      await eventually("one of them is refused", async () => {
        isSecond = (await second.now()).status === "retrying";
        return isSecond || (await first.now()).status === "retrying";
      });
      const [refused, served] = isSecond ? [second, first] : [first, second];
      const { errors } = await refused.now();
      expect(errors.at(-1)).toMatchObject({ code: "server.too_many_from_address", retryable: true });
      await served.do("close");
      expect(numbers(await untilCount(refused, 1))).toEqual([0]);
    },
  },
  {
    name: "leaves a daemon that drains, and comes back after the time that it was told",
    daemon: {},
    async run(w) {
      await w.number(0, 2);
      const watch = await w.watch();
      await untilCount(watch, 2);
      w.daemon.signal("SIGTERM");
      const now = await untilStatus(watch, "retrying");
      expect(now.errors[0]).toMatchObject({ code: "stream.bye", retryable: true });
      await w.daemon.ended();
      await w.daemon.restart();
      await w.number(2, 1);
      expect(numbers(await untilCount(watch, 3))).toEqual(upTo(3));
    },
  },
];
