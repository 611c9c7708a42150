// Behaviours in other people's networks: strange answers, clocks and caches, proxies that hold and cut, sign-on. They are
// part of the list of behaviours.

import { expect } from "vitest";
import { eventually } from "./support/eventually.ts";
import type { Fault, Seen } from "./support/gateway.ts";
import { type Behaviour, numbers, until, untilCount, untilStatus, upTo } from "./support/world.ts";

const isStream = ({ url }: Seen) => url.pathname.endsWith("/stream");
const page: Fault = { kind: "answer", status: 200, body: "<style>p{}</style><title>Sign in</title><p>to Example" };
/** Longer than the waits of these tests. */
const HOUR_MS = 3_600_000;
const pause = (ms: number) => new Promise((resolve) => setTimeout(resolve, ms));

const answers: Behaviour[] = [
  ...[404, 403, 400, 401, 200].map(
    (status): Behaviour => ({
      name: `comes through answers ${status} of something in between, once it was open`,
      async run(w) {
        await w.number(0, 2);
        const watch = await w.watch();
        await untilCount(watch, 2);
        w.proxy.plan = () => ({ kind: "answer", status });
        w.proxy.cut();
        await until(watch, "several tries have failed", ({ attempts }) => attempts.includes(6));
        await w.number(2, 1);
        w.proxy.plan = () => null;
        const now = await untilCount(watch, 3);
        expect(numbers(now)).toEqual(upTo(3));
        expect(now.statuses).not.toContain("failed");
      },
    }),
  ),
  {
    name: "fails after a few tries where no Jobcast ever answered, and names what did",
    async run(w) {
      w.proxy.plan = () => page;
      const now = await untilStatus(await w.watch(), "failed");
      expect(now.attempts).toEqual([1, 2, 3]);
      const { message, retryable, status } = now.errors.at(-1)!;
      expect([retryable, status]).toEqual([false, 200]);
      const address = `${w.proxy.origin}/runner-jobs/${w.job}/events`;
      expect(message).toBe(`${address} answered 200 text/html, which is not Jobcast: "Sign in to Example"`);
      w.proxy.plan = () => ({ kind: "answer", status: 404, body: "" });
      const empty = await untilStatus(await w.watch(), "failed");
      expect(empty.errors.at(-1)?.message).toMatch(/ answered 404 text\/html, which is not Jobcast$/);
    },
  },
  {
    name: "says where it got no answer, and why that may be, when none ever came",
    async run(w) {
      const now = await untilStatus(await w.watch({ baseUrl: "http://127.0.0.1:9" }), "retrying");
      const [error] = now.errors;
      expect(error).toMatchObject({ code: "client.network", retryable: true });
      expect(error?.message).toContain("no answer from http://127.0.0.1:9");
      expect(error?.message).toContain("is Jobcast running there");
      if (w.client.name === "Chromium") expect(error?.message).toContain("http.cors.origins");
    },
  },
  {
    name: "is told apart from a sign-on page of another origin, and does not ask it without end",
    async run(w) {
      await w.number(0, 1);
      w.proxy.plan = () => ({ kind: "answer", status: 302, headers: { Location: "http://127.0.0.1:9/sign-on" } });
      const watch = await w.watch({ retry: { maxMs: 50 } });
      const now = await untilStatus(watch, "failed");
      expect(now.errors.at(-1)).toMatchObject({ code: "client.redirected", retryable: false });
      expect(now.attempts.at(-1)).toBe(9);
      w.proxy.plan = () => null;
      await watch.do("reconnect");
      await untilCount(watch, 1);
    },
  },
  {
    name: "follows a redirect that leads to Jobcast",
    async run(w) {
      await w.number(0, 1);
      const { origin } = w.daemon;
      w.proxy.plan = ({ url }) =>
        url.searchParams.has("moved")
          ? null
          : { kind: "answer", status: 307, headers: { Location: `${url.pathname}${url.search}&moved=1` } };
      expect(numbers(await untilCount(await w.watch(), 1))).toEqual([0]);
      expect(origin).not.toBe(w.proxy.origin);
    },
  },
];

const tokens: Behaviour[] = [
  {
    name: "calls a token function that throws again, and gives up after a while",
    async run(w) {
      await w.number(0, 1);
      await untilCount(await w.watch({ tokens: ["throws", "throws", "good"] }), 1);
      const now = await untilStatus(await w.watch({ tokens: ["throws"], retry: { maxMs: 50 } }), "failed");
      expect(now.errors.at(-1)).toMatchObject({ code: "client.token", retryable: false });
      expect(now.errors.at(-1)?.message).toContain("the API is down");
      expect(now.tokensAsked).toBe(10);
    },
  },
  {
    name: "fails at once where the token function throws an error that is not retryable",
    async run(w) {
      await w.number(0, 1);
      const now = await untilStatus(await w.watch({ tokens: ["is final"] }), "failed");
      expect(now.errors.at(-1)).toMatchObject({ code: "app.signed_out", retryable: false, message: "sign in again" });
      expect([now.tokensAsked, w.proxy.streams(w.job).length]).toEqual([1, 0]);
    },
  },
  {
    name: "calls a token function that hangs again",
    async run(w) {
      await w.number(0, 1);
      const watch = await w.watch({ tokens: ["hangs", "good"], fallbackAfterMs: 300 });
      const now = await untilCount(watch, 1);
      expect(now.errors[0]).toMatchObject({ code: "client.token" });
      expect(now.tokensAsked).toBe(2);
    },
  },
];

const clocks: Behaviour[] = [
  {
    name: "keeps to its waits when the time of day is set back",
    async run(w) {
      await w.number(0, 1);
      w.proxy.plan = () => ({ kind: "refuse" });
      const watch = await w.watch({ retry: { initialMs: 1500, maxMs: 1500, jitter: 0 } });
      await untilStatus(watch, "retrying");
      await w.client.setTimeOfDay(-HOUR_MS);
      w.proxy.plan = () => null;
      await untilCount(watch, 1);
    },
  },
  {
    name: "tries at once when it notices that it has slept",
    async run(w) {
      await w.number(0, 1);
      w.proxy.plan = () => ({ kind: "refuse" });
      const watch = await w.watch({ retry: { initialMs: HOUR_MS, maxMs: HOUR_MS, jitter: 0 } });
      await untilStatus(watch, "retrying");
      w.proxy.plan = () => null;
      // In sleep the time of day goes on, and the monotonic clock does not.
      await w.client.setTimeOfDay(HOUR_MS);
      await untilCount(watch, 1);
    },
  },
  {
    name: "does not trust an open connection after sleep",
    async run(w) {
      await w.number(0, 1);
      const watch = await w.watch({ heartbeatTimeoutMs: HOUR_MS });
      await untilCount(watch, 1);
      w.proxy.isFrozen = true;
      await w.number(1, 1);
      await w.client.setTimeOfDay(HOUR_MS);
      await eventually("it connects anew", () => w.proxy.streams(w.job).length === 2);
      w.proxy.isFrozen = false;
      w.proxy.cut();
      expect(numbers(await untilCount(watch, 2))).toEqual([0, 1]);
    },
  },
];

const caches: Behaviour[] = [
  {
    name: "pauses between polls whose answers bring nothing new, and asks for an address that no cache has",
    async run(w) {
      const event = { id: "a", jobId: w.job, type: "x", payload: { n: 0 }, cursor: "c1" };
      const old = { events: [event], cursor: "c1", complete: false, status: "RUNNING", retryMs: 150 };
      const pauses: number[] = [];
      let last: number | null = null;
      w.proxy.plan = (seen) => {
        if (isStream(seen)) {
          // After an attempt to stream it polls at once.
          last = null;
          return page;
        }
        const now = performance.now();
        if (last !== null) pauses.push(now - last);
        last = now;
        return {
          kind: "answer",
          status: 200,
          headers: { "Content-Type": "application/json" },
          body: JSON.stringify(old),
        };
      };
      const watch = await w.watch();
      await eventually("it polls", () => pauses.length >= 7);
      const now = await watch.now();
      expect([now.status, now.jobStatus, ...numbers(now)]).toEqual(["polling", "RUNNING", 0]);
      // One request may arrive late, which makes the next pause look short; not so all of them together.
      expect(pauses.reduce((sum, ms) => sum + ms, 0) / pauses.length).toBeGreaterThan(100);
      const polls = w.proxy.polls(w.job);
      expect(new Set(polls.map(({ url }) => url.search)).size).toBe(polls.length);
    },
  },
  {
    name: "polls where a proxy ends each stream at once after its head, and streams again afterwards",
    async run(w) {
      await w.number(0, 2);
      w.proxy.plan = (seen) => (isStream(seen) ? { kind: "end", bytes: 0 } : null);
      const watch = await w.watch({ fallbackAfterMs: 400 });
      await untilStatus(watch, "polling");
      await w.number(2, 2);
      const now = await untilCount(watch, 4);
      expect(now.errors.map(({ code }) => code)).toContain("client.ended");
      w.proxy.plan = () => null;
      await untilStatus(watch, "open");
      await w.number(4, 1);
      expect(numbers(await untilCount(watch, 5))).toEqual(upTo(5));
    },
  },
  {
    name: "polls where a proxy passes streams on in lumps, and streams again afterwards",
    async run(w) {
      await w.number(0, 300, "a line of output that is as long as many are ".repeat(3));
      w.proxy.plan = () => ({ kind: "lump", bytes: 16_384 });
      const watch = await w.watch({ fallbackAfterMs: 500, heartbeatTimeoutMs: 1500 });
      const first = await until(watch, "a lump has come", ({ events }) => events.length > 0);
      expect(first.events.length).toBeLessThan(300);
      await untilCount(watch, 300);
      await untilStatus(watch, "polling");
      await w.number(300, 2);
      await untilCount(watch, 302);
      w.proxy.plan = () => null;
      await untilStatus(watch, "open");
      expect(numbers(await watch.now())).toEqual(upTo(302));
    },
  },
  {
    name: "takes a job with nothing to say for what it is: its stream has a heartbeat, and is not polled",
    async run(w) {
      await w.number(0, 1);
      const watch = await w.watch({ fallbackAfterMs: 400, heartbeatTimeoutMs: 900 });
      await untilCount(watch, 1);
      await pause(2500);
      const now = await watch.now();
      expect([now.status, now.attempts, w.proxy.streams(w.job).length]).toEqual(["open", [], 1]);
      expect(w.proxy.polls(w.job).filter(({ method }) => method === "GET")).toEqual([]);
    },
  },
];

const early: Behaviour[] = [
  {
    name: "waits for a job that is not there yet, and shows it when its first row comes",
    daemon: { "source.appear": "20s" },
    async run(w) {
      const watch = await w.watch({ fallbackAfterMs: 30_000, heartbeatTimeoutMs: 30_000 });
      await eventually("it has asked", () => w.proxy.streams(w.job).length === 1);
      await pause(1000);
      expect((await watch.now()).statuses).toEqual(["connecting"]);
      await w.number(0, 1);
      const now = await untilCount(watch, 1);
      expect(now.statuses).toEqual(["connecting", "open"]);
      expect(w.proxy.streams(w.job)).toHaveLength(1);
    },
  },
  {
    name: "waits for a job that is not there yet where streams do not get through",
    daemon: { "source.appear": "20s" },
    async run(w) {
      w.proxy.plan = (seen) => (isStream(seen) ? page : null);
      const watch = await w.watch({ fallbackAfterMs: 30_000, heartbeatTimeoutMs: 30_000 });
      await eventually("it polls", () => w.proxy.polls(w.job).length >= 2);
      await pause(500);
      expect((await watch.now()).statuses).toEqual(["connecting"]);
      await w.number(0, 1);
      await untilCount(watch, 1);
      const now = await untilStatus(watch, "polling");
      expect(now.statuses).not.toContain("retrying");
    },
  },
];

const state: Behaviour[] = [
  {
    name: "is caught up when the events that there were have come, and shows when it will try again",
    async run(w) {
      await w.number(0, 500);
      const watch = await w.watch({ retry: { initialMs: HOUR_MS, jitter: 0 } });
      const now = await until(watch, "it is caught up", ({ isCaughtUp }) => isCaughtUp);
      expect([now.caughtUpAfter, now.retryAt]).toEqual([500, null]);
      w.proxy.plan = () => ({ kind: "refuse" });
      w.proxy.cut();
      const { retryAt, waits } = await untilStatus(watch, "retrying");
      expect(Math.abs(retryAt! - Date.now() - waits[0]!)).toBeLessThan(30_000);
    },
  },
  {
    name: "shows no tries while it is open",
    async run(w) {
      await w.number(0, 1);
      w.proxy.plan = () => ({ kind: "refuse" });
      const watch = await w.watch();
      await until(watch, "some tries have failed", ({ attempts }) => attempts.includes(3));
      w.proxy.plan = () => null;
      const now = await untilStatus(watch, "open");
      expect(now.attempt).toBe(0);
    },
  },
];

export const networks: Behaviour[] = [...answers, ...tokens, ...clocks, ...caches, ...early, ...state];
