// Behaviour that only a browser has: tabs, reloads, other origins, going online.
import type { Page } from "playwright-core";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { inPage, newPage, type Watch } from "./support/client.ts";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { Gateway, problem } from "./support/gateway.ts";
import type { ObserveOptions } from "./support/observe.ts";
import { context, daemon, gateway, useBrowser } from "./support/stage.ts";
import { numbers, until, untilCount, untilStatus, upTo } from "./support/world.ts";

let job = "";
let jobs = 0;

useBrowser();
beforeEach(async () => {
  job = `tab-${(jobs += 1)}`;
});

const quick = { heartbeatTimeoutMs: 5000, fallbackAfterMs: 2500, retry: { initialMs: 50, maxMs: 400 } };

async function tab(at = gateway): Promise<Page> {
  const page = await newPage(context);
  await page.goto(`${at.origin}/__test/observe.html`);
  return page;
}

async function watchIn(page: Page, options: ObserveOptions = {}): Promise<Watch> {
  return inPage(page, job, { ...quick, ...options });
}

describe("share: one connection for all tabs", () => {
  it("one of three tabs connects, and nothing is lost or repeated when it closes", async () => {
    await daemon.number(job, 0, 20);
    const pages = [await tab(), await tab(), await tab()];
    const watches: Watch[] = [];
    for (const page of pages) watches.push(await watchIn(page, { share: true }));
    for (const watch of watches) await untilCount(watch, 20);
    for (const watch of watches) await untilStatus(watch, "open");
    await daemon.number(job, 20, 20);
    for (const watch of watches) expect(numbers(await untilCount(watch, 40))).toEqual(upTo(40));
    expect(gateway.streams(job)).toHaveLength(1);
    expect(gateway.openStreams).toBe(1);

    // The tab of the leader closes in the middle of a burst, then the tab of the next leader.
    let written = 40;
    for (const page of pages.slice(0, 2)) {
      watches.shift();
      const writing = daemon.number(job, written, 100);
      written += 100;
      await Promise.all([writing, page.close()]);
      await daemon.number(job, written, 10);
      written += 10;
      for (const watch of watches) expect(numbers(await untilCount(watch, written))).toEqual(upTo(written));
      await eventually("one connection is left", () => gateway.openStreams === 1);
    }
    await daemon.end(job);
    const now = await untilStatus(watches[0]!, "complete");
    expect([now.jobStatus, now.events.length]).toEqual(["COMPLETED", written]);
  });

  it("the leader passes failures, reconnects and the end on to the followers", async () => {
    await daemon.number(job, 0, 5);
    const watches = [await watchIn(await tab(), { share: true }), await watchIn(await tab(), { share: true })];
    for (const watch of watches) await untilCount(watch, 5);
    gateway.plan = () => problem(403, "auth.forbidden");
    gateway.cut();
    for (const watch of watches) {
      const now = await untilStatus(watch, "failed");
      expect(now.errors.at(-1)).toMatchObject({ code: "auth.forbidden", status: 403, retryable: false });
    }
    gateway.plan = () => null;
    await watches[1]!.do("reconnect");
    for (const watch of watches) await untilStatus(watch, "open");
    await daemon.number(job, 5, 5);
    await daemon.end(job, "FAILED");
    for (const watch of watches) {
      const now = await untilStatus(watch, "complete");
      expect([now.jobStatus, ...numbers(now)]).toEqual(["FAILED", ...upTo(10)]);
    }
  });

  it("a follower with from: now gets new events only, also when it leads", async () => {
    await daemon.number(job, 0, 5);
    const first = await watchIn(await tab(), { share: true });
    await untilCount(first, 5);
    const second = await watchIn(await tab(), { share: true, from: "now" });
    await untilStatus(second, "open");
    await daemon.number(job, 5, 3);
    expect(numbers(await untilCount(second, 3))).toEqual([5, 6, 7]);
    await first.do("close");
    await daemon.number(job, 8, 2);
    expect(numbers(await untilCount(second, 5))).toEqual(upTo(5, 5));
  });

  it("another tab takes over from a frozen leader, which follows when it wakes", async () => {
    await daemon.number(job, 0, 3);
    const page = await tab();
    const first = await watchIn(page, { share: true, heartbeatTimeoutMs: 1500 });
    const second = await watchIn(await tab(), { share: true, heartbeatTimeoutMs: 1500 });
    for (const watch of [first, second]) await untilCount(watch, 3);
    await untilStatus(second, "open");
    const session = await context.newCDPSession(page);
    await session.send("Page.setWebLifecycleState", { state: "frozen" });
    await daemon.number(job, 3, 3);
    await eventually("another tab connects", async () => {
      await daemon.number(job, 6, 0);
      return (await second.now()).events.length === 6;
    });
    await session.send("Page.setWebLifecycleState", { state: "active" });
    await daemon.number(job, 6, 3);
    for (const watch of [first, second]) expect(numbers(await untilCount(watch, 9))).toEqual(upTo(9));
    await eventually("one connection is left", () => gateway.openStreams === 1);
  });

  it("leader and follower come back after close()", async () => {
    await daemon.number(job, 0, 2);
    const watches = [await watchIn(await tab(), { share: true }), await watchIn(await tab(), { share: true })];
    for (const watch of watches) await untilCount(watch, 2);
    for (const watch of watches) {
      await watch.do("close");
      await watch.do("reconnect");
      await untilStatus(watch, "open");
    }
    await daemon.number(job, 2, 2);
    for (const watch of watches) expect(numbers(await untilCount(watch, 4))).toEqual(upTo(4));
    await eventually("one connection is left", () => gateway.openStreams === 1);
  });

  it("each tab has its own connection where there is no BroadcastChannel", async () => {
    await daemon.number(job, 0, 2);
    await context.addInitScript("delete globalThis.BroadcastChannel");
    const watches = [await watchIn(await tab(), { share: true }), await watchIn(await tab(), { share: true })];
    for (const watch of watches) expect(numbers(await untilCount(watch, 2))).toEqual([0, 1]);
    expect(gateway.streams(job)).toHaveLength(2);
  });
});

it("close() leaves no timer and no listener of the browser", async () => {
  await daemon.number(job, 0, 1);
  const page = await tab();
  const left = () => page.evaluate(() => window.leftovers());
  expect(await left()).toEqual({ timers: 0, listeners: 0 });
  for (const share of [false, true]) {
    const watch = await watchIn(page, { share });
    await untilStatus(watch, "open");
    expect(await left()).toEqual({ timers: 1, listeners: 3 });
    await watch.do("close");
    expect(await left()).toEqual({ timers: 0, listeners: 0 });
  }
});

describe("persist", () => {
  it("goes on after a reload where the stream was", async () => {
    await daemon.number(job, 0, 5);
    const page = await tab();
    await untilCount(await watchIn(page, { persist: "session" }), 5);
    await page.reload();
    const again = await watchIn(page, { persist: "session" });
    await untilStatus(again, "open");
    await daemon.number(job, 5, 2);
    expect(numbers(await untilCount(again, 2))).toEqual([5, 6]);
    await daemon.end(job);
    await untilStatus(again, "complete");
    await page.reload();
    const over = await untilStatus(await watchIn(page, { persist: "session" }), "complete");
    expect([over.jobStatus, over.events]).toEqual(["COMPLETED", []]);
  });

  it("starts from the beginning where the browser refuses sessionStorage", async () => {
    await daemon.number(job, 0, 2);
    await context.addInitScript(
      "Object.defineProperty(globalThis, 'sessionStorage', { get() { throw new Error('SecurityError'); } })",
    );
    await untilCount(await watchIn(await tab(), { persist: "session" }), 2);
  });
});

describe("a page that wakes", () => {
  const long = { retry: { initialMs: 600_000, maxMs: 600_000, jitter: 0 } };

  it.each([
    ["online", "dispatchEvent(new Event('online'))"],
    ["visible again", "document.dispatchEvent(new Event('visibilitychange'))"],
    ["back from the cache", "dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))"],
  ])("%s: connects at once", async (_, script) => {
    await daemon.number(job, 0, 2);
    gateway.plan = () => ({ kind: "refuse" });
    const page = await tab();
    const watch = await watchIn(page, long);
    await untilStatus(watch, "retrying");
    gateway.plan = () => null;
    await page.evaluate(script);
    expect(numbers(await untilCount(watch, 2))).toEqual([0, 1]);
  });

  it("offline: shows it at once; and online again: connects at once and misses nothing", async () => {
    await daemon.number(job, 0, 2);
    const page = await tab();
    const watch = await watchIn(page, { ...long, heartbeatTimeoutMs: 600_000 });
    await untilCount(watch, 2);
    await context.setOffline(true);
    const offline = await untilStatus(watch, "retrying");
    expect(offline.errors.at(-1)).toMatchObject({ code: "client.offline", retryable: true });
    await daemon.number(job, 2, 2);
    await context.setOffline(false);
    expect(numbers(await untilCount(watch, 4))).toEqual(upTo(4));
  });

  it("once one stream of a page gets through, the others try at once", async () => {
    await daemon.number(job, 0, 1);
    gateway.plan = () => ({ kind: "refuse" });
    const page = await tab();
    const waiting = await watchIn(page, long);
    await untilStatus(waiting, "retrying");
    const first = await watchIn(page, { retry: { initialMs: 50, maxMs: 50 } });
    await untilStatus(first, "retrying");
    gateway.plan = () => null;
    await untilCount(waiting, 1);
  });

  it("connects anew when it is back from the cache, and keeps its connection when it is only visible again", async () => {
    await daemon.number(job, 0, 2);
    const page = await tab();
    const watch = await watchIn(page);
    await untilCount(watch, 2);
    await page.evaluate("document.dispatchEvent(new Event('visibilitychange'))");
    await daemon.number(job, 2, 1);
    await untilCount(watch, 3);
    expect(gateway.streams(job)).toHaveLength(1);
    await page.evaluate("dispatchEvent(new PageTransitionEvent('pageshow', { persisted: true }))");
    await daemon.number(job, 3, 1);
    expect(numbers(await untilCount(watch, 4))).toEqual(upTo(4));
    expect(gateway.streams(job)).toHaveLength(2);
  });
});

describe("another origin", () => {
  let other: Daemon;
  let between: Gateway;
  const open = async (credentials: string) => {
    other = await Daemon.start({ "http.cors.origins": gateway.origin, "http.cors.credentials": credentials });
    between = await Gateway.before(() => other.origin);
    await other.number(job, 0, 3);
  };
  afterEach(async () => {
    await between.stop();
    await other.stop();
  });
  const preflights = () => between.seen.filter(({ method }) => method === "OPTIONS").length;

  it("costs no preflight, also not for a reconnect", async () => {
    await open("false");
    const watch = await watchIn(await tab(), { baseUrl: between.origin });
    await untilCount(watch, 3);
    for (const round of [1, 2]) {
      between.cut();
      await other.number(job, 2 + round, 1);
      await untilCount(watch, 3 + round);
    }
    expect(numbers(await watch.now())).toEqual(upTo(5));
    expect(between.streams(job).at(-1)?.url.searchParams.get("lastEventId")).not.toBeNull();
    expect(preflights()).toBe(0);
  });

  it("costs EventSource no preflight, since a cursor is a safe value of its header", async () => {
    await open("false");
    const page = await tab();
    await page.evaluate(
      ([url]) => {
        const seen: string[] = [];
        Object.assign(window, { seen });
        new EventSource(url!).addEventListener("step.output", (event) => seen.push(event.lastEventId));
      },
      [`${between.origin}/runner-jobs/${job}/events/stream`],
    );
    const count = () => page.evaluate(() => (window as unknown as { seen: string[] }).seen.length);
    await eventually("it receives", async () => (await count()) === 3);
    between.cut();
    await other.number(job, 3, 1);
    await eventually("it comes back", async () => (await count()) === 4);
    expect(between.streams(job).at(-1)?.headers["last-event-id"]).toMatch(/^[\w.~-]{1,128}$/);
    expect(preflights()).toBe(0);
  });

  it.each([
    ["receives cookies with credentials: include", "include" as const, "who=me"],
    ["receives no cookies with credentials: same-origin", "same-origin" as const, undefined],
  ])("%s", async (_, credentials, cookie) => {
    await open("true");
    const page = await tab();
    // The cookie is set by a page of that origin, since browsers may keep cookies apart by port.
    await (await tab(between)).evaluate("document.cookie = 'who=me; path=/'");
    await untilCount(await watchIn(page, { baseUrl: between.origin, credentials }), 3);
    expect(between.streams(job)[0]?.headers.cookie).toBe(cookie);
    expect(preflights()).toBe(0);
  });

  it("receives the token, for the price of one preflight", async () => {
    await open("false");
    await untilCount(await watchIn(await tab(), { baseUrl: between.origin, tokens: ["t"] }), 3);
    expect(between.streams(job)[0]?.headers.authorization).toBe("Bearer t");
    expect(preflights()).toBe(1);
  });

  it("fails with client.network after maxAttempts where CORS does not allow it", async () => {
    await open("false");
    const stranger = await Gateway.before(() => daemon.origin);
    const watch = await watchIn(await tab(stranger), { baseUrl: between.origin, retry: { maxAttempts: 1 } });
    const now = await until(watch, "it gives up", ({ status }) => status === "failed");
    expect(now.errors.at(-1)?.code).toBe("client.network");
    await stranger.stop();
  });
});
