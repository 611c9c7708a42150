// The React hook in a real page.
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { type UseJobStreamOptions, useJobStream } from "../src/react.js";
import { eventually } from "./support/eventually.ts";
import { longestTaskMs } from "./support/longest-task.mjs";
import { browser, daemon, gateway, page, usePage } from "./support/stage.ts";
import { upTo } from "./support/world.ts";

let version = "";
let job = "";
let jobs = 0;

usePage();
beforeEach(async () => {
  await page.goto(`${gateway.origin}/__test/react-${version}.html`);
  await page.waitForFunction(() => typeof window.show === "function");
  expect(await page.evaluate(() => window.reactVersion)).toMatch(new RegExp(`^${version}\\.`));
  job = `react-${(jobs += 1)}`;
});
afterEach(async () => {
  const problems = await page.evaluate(() => window.seen.problems);
  expect(problems).toEqual([]);
});

type Options = UseJobStreamOptions & { tokens?: boolean; counts?: boolean; stumblesAt?: number };
const show = (jobId: string | null, options: Options = {}, isStrict = true) =>
  page.evaluate(([jobId, options, isStrict]) => window.show([{ jobId, options }], isStrict), [
    jobId,
    options,
    isStrict,
  ] as const);
const shown = () =>
  page.evaluate(() => {
    const { shown, renders, told } = window.seen;
    const payloads = shown?.events.map(({ payload }) => (payload as { n: number }).n) ?? [];
    const last = (shown?.lastEvent?.payload as { n: number } | undefined)?.n ?? null;
    return {
      payloads,
      last,
      status: shown?.state.status,
      jobStatus: shown?.jobStatus,
      dropped: shown?.dropped,
      reduced: shown?.reduced,
      resets: shown?.resets,
      isCaughtUp: shown?.isCaughtUp,
      told,
      code: shown?.error?.code ?? null,
      renders: renders.length,
    };
  });
const untilShown = (name: string, isTrue: (now: Awaited<ReturnType<typeof shown>>) => boolean) =>
  eventually(name, async () => isTrue(await shown()));
const items = () => page.locator("li").count();

describe.each(["18", "19"])("React %s", (wanted) => {
  beforeAll(() => {
    version = wanted;
  });
  it("shows a job to its end, and StrictMode's double mount leaves one connection", async () => {
    await daemon.number(job, 0, 5);
    await show(job);
    await untilShown("five events", ({ payloads }) => payloads.length === 5);
    expect(await items()).toBe(5);
    expect(gateway.streams(job)).toHaveLength(1);
    expect(gateway.openStreams).toBe(1);
    await daemon.number(job, 5, 2);
    await daemon.end(job);
    await untilShown("the end", ({ status }) => status === "complete");
    expect(await shown()).toMatchObject({ payloads: upTo(7), last: 6, jobStatus: "COMPLETED", code: null });
  });

  it("leaves no connection, timer or listener behind when it unmounts", async () => {
    await daemon.number(job, 0, 1);
    await show(job);
    await eventually("there is a subscriber", async () => (await daemon.subscribers()) === 1);
    await page.evaluate(() => window.leave());
    await eventually("no subscriber is left", async () => (await daemon.subscribers()) === 0);
    // React itself may have a timer for a moment.
    await eventually("no timer is left", async () => (await page.evaluate(() => window.leftovers())).timers === 0);
    expect((await page.evaluate(() => window.leftovers())).listeners).toBe(0);
    const { renders } = await shown();
    const requests = gateway.seen.length;
    await daemon.number(job, 1, 5);
    await page.waitForTimeout(300);
    expect([(await shown()).renders, gateway.seen.length]).toEqual([renders, requests]);
  });

  it("a new jobId shows that job and nothing of the one before", async () => {
    await daemon.number(job, 0, 3);
    await daemon.number(`${job}-next`, 10, 2);
    await show(job);
    await untilShown("the first", ({ payloads }) => payloads.length === 3);
    await show(`${job}-next`);
    await untilShown("the next, and nothing of the first", ({ payloads }) => payloads.join() === "10,11");
    await eventually("one connection is left", () => gateway.openStreams === 1);
    await show(null);
    await untilShown("none", ({ status, payloads }) => status === "closed" && payloads.length === 0);
    await eventually("no connection is left", () => gateway.openStreams === 0);
  });

  it("connects only while it is enabled, and goes on where the stream was", async () => {
    await daemon.number(job, 0, 3);
    await show(job, { enabled: false });
    await page.waitForTimeout(200);
    expect([(await shown()).status, gateway.streams(job).length]).toEqual(["closed", 0]);
    await show(job);
    await untilShown("three", ({ payloads }) => payloads.length === 3);
    await show(job, { enabled: false });
    await eventually("no connection is left", () => gateway.openStreams === 0);
    await daemon.number(job, 3, 2);
    await show(job, { enabled: true });
    await untilShown("all, each once", ({ payloads }) => payloads.join() === upTo(5).join());
  });

  it("keeps the newest maxEvents events", async () => {
    await daemon.number(job, 0, 50);
    await show(job, { maxEvents: 10 });
    await untilShown("the newest", ({ payloads }) => payloads.join() === upTo(10, 40).join());
    await show(job, { maxEvents: 3 });
    await untilShown("fewer", ({ payloads }) => payloads.join() === upTo(3, 47).join());
    await show(job, { maxEvents: 0 });
    await daemon.number(job, 50, 1);
    await untilShown("the last one alone", ({ payloads, last }) => payloads.length === 0 && last === 50);
  });

  it("does not connect anew for a new token function, and does for another option", async () => {
    await daemon.number(job, 0, 2);
    await show(job, { tokens: true });
    await untilShown("two", ({ payloads }) => payloads.length === 2);
    for (const maxEvents of [500, 600, 700]) await show(job, { tokens: true, maxEvents });
    expect(gateway.streams(job)).toHaveLength(1);
    expect(gateway.streams(job)[0]?.headers.authorization).toBe("Bearer t");
    await show(job, { tokens: true, from: "now" });
    await eventually("another stream", () => gateway.streams(job).length === 2);
  });

  it("shows an error until reconnect() succeeds", async () => {
    await show(job);
    await untilShown("the failure", ({ status, code }) => status === "failed" && code === "job.not_found");
    await daemon.number(job, 0, 2);
    await page.evaluate(() => window.seen.shown?.reconnect());
    await untilShown("two", ({ payloads, code }) => payloads.length === 2 && code === null);
  });

  it("drops its events when history was lost", async () => {
    await daemon.number(job, 0, 3);
    await show(job);
    await untilShown("three", ({ payloads }) => payloads.length === 3);
    await daemon.kill();
    daemon.sql("DELETE FROM job_events");
    await daemon.restart();
    await daemon.number(job, 7, 2);
    await untilShown("all there is", ({ payloads, last }) => payloads.join() === "7,8" && last === 8);
  });

  it("a hook of many jobs uses one connection, keeps what stays in a list that changes, and shows a job that is run again", async () => {
    const ids = [0, 1, 2, 3].map((number) => `${job}-${number}`);
    for (const id of ids) await daemon.number(id, 0, 3);
    const showAll = (ids: string[]) => page.evaluate((ids) => window.showAll(ids), ids);
    const rows = () =>
      page.locator("p").evaluateAll((all) => all.map(({ id, textContent }) => `${id}: ${textContent}`));
    const untilRows = (expected: string[]) =>
      eventually(`${expected} is shown`, async () => `${await rows()}` === `${expected}`);
    await showAll(ids.slice(0, 3));
    await untilRows(ids.slice(0, 3).map((id) => `${id}: 0,1,2`));
    expect(gateway.seen.filter(({ url }) => url.pathname.endsWith("/stream"))).toHaveLength(1);
    await showAll(ids.slice(1));
    await untilRows(ids.slice(1).map((id) => `${id}: 0,1,2`));
    const named = () => gateway.seen.at(-1)?.url.searchParams.getAll("job").sort();
    await eventually("the one connection is for these jobs", () => `${named()}` === `${ids.slice(1)}`);
    await eventually("there is no other", () => gateway.openStreams === 1);
    const caughtUp = page.locator('p[data-state="open, caught up"]');
    await eventually("all are caught up", async () => (await caughtUp.count()) === 3);
    await page.evaluate(() => {
      window.rowRenders = [];
    });
    await daemon.number(ids[2]!, 3, 2);
    await untilRows([`${ids[1]}: 0,1,2`, `${ids[2]}: 0,1,2,3,4`, `${ids[3]}: 0,1,2`]);
    // The row of the job with news was rendered. Another is only where its own state settles, and then once.
    const renders = await page.evaluate(() => window.rowRenders);
    expect(renders).toContain(ids[2]);
    const others = renders.filter((id) => id !== ids[2]);
    expect(new Set(others).size).toBe(others.length);
    const { told } = await page.evaluate(() => window.seen);
    expect(told.events.sort()).toEqual([0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 4]);
    await daemon.end(ids[2]!, "FAILED");
    const ended = page.locator(`p[id="${ids[2]}"][data-state^="complete"]`);
    await eventually("one is complete", async () => (await ended.count()) === 1);
    await daemon.end(ids[2]!, "RUNNING");
    await daemon.number(ids[2]!, 5, 1);
    await untilRows([`${ids[1]}: 0,1,2`, `${ids[2]}: 0,1,2,3,4,5`, `${ids[3]}: 0,1,2`]);
    await eventually("all are open again", async () => (await caughtUp.count()) === 3);
    await page.evaluate(() => window.leave());
    await eventually("no connection is left", () => gateway.openStreams === 0);
  });

  it("two hooks of one job with share use one connection", async () => {
    await daemon.number(job, 0, 2);
    await page.evaluate(
      (jobId) =>
        window.show([
          { jobId, options: { share: true } },
          { jobId, options: { share: true } },
        ]),
      job,
    );
    await eventually("both show it", async () => (await items()) === 4);
    await daemon.number(job, 2, 1);
    await eventually("both show more", async () => (await items()) === 6);
    expect(gateway.openStreams).toBe(1);
  });

  it("a burst of 2,000 events costs less than 20 renders a second, and blocks the page for less than 200 ms", async () => {
    await daemon.number(job, 0, 1);
    await show(job, {}, false);
    await untilShown("it is open", ({ status, payloads }) => status === "open" && payloads.length === 1);
    await page.evaluate(() => {
      window.seen.renders = [];
    });
    await browser.startTracing(page, { categories: ["toplevel"] });
    // 1,000 a second
    const began = Date.now();
    for (let batch = 0; batch < 20; batch += 1) {
      await daemon.number(job, 1 + batch * 100, 100);
      await page.waitForTimeout(Math.max(0, began + (batch + 1) * 100 - Date.now()));
    }
    await untilShown("the last of them", ({ last }) => last === 2000);
    const blockedMs = longestTaskMs(await browser.stopTracing());
    const { renders } = await page.evaluate(() => window.seen);
    const busiest = Math.max(...renders.map((from) => renders.filter((at) => at >= from && at < from + 1000).length));
    console.log(
      `burst of 2,000: ${renders.length} renders, at most ${busiest} within a second, main thread blocked for ${Math.round(blockedMs)} ms`,
    );
    expect(busiest).toBeLessThan(20);
    expect(blockedMs).toBeLessThan(200);
    expect((await shown()).payloads).toEqual(upTo(1000, 1001));
  });

  it("tells onEvent of each event once, also of those that it does not keep, and counts what it dropped", async () => {
    await daemon.number(job, 0, 40);
    await show(job, { maxEvents: 10, keepMs: 0, counts: true });
    await untilShown("the newest", ({ payloads }) => payloads.join() === upTo(10, 30).join());
    await daemon.number(job, 40, 5);
    await daemon.end(job);
    await untilShown("the end", ({ status }) => status === "complete");
    const { dropped, reduced, isCaughtUp, told } = await shown();
    expect([dropped, reduced, isCaughtUp, told.completed]).toEqual([35, 45, true, ["COMPLETED"]]);
    expect(told.events).toEqual(upTo(45));
  });

  it("tells of a reset, and begins its value anew", async () => {
    await daemon.number(job, 0, 3);
    await show(job, { counts: true });
    await untilShown("three", ({ reduced }) => reduced === 3);
    await daemon.kill();
    daemon.sql("DELETE FROM job_events");
    await daemon.restart();
    await daemon.number(job, 7, 2);
    await untilShown("all there is", ({ payloads, reduced }) => payloads.join() === "7,8" && reduced === 2);
    const { resets, told } = await shown();
    expect([resets, told.resets.length]).toEqual([1, 1]);
  });

  it("keeps events while nothing shows them, and goes on from there when something does again", async () => {
    await daemon.number(job, 0, 5);
    await show(job, { persist: "session", counts: true });
    await untilShown("five", ({ payloads }) => payloads.length === 5);
    await page.evaluate(() => window.leave());
    await eventually("no connection is left", () => gateway.openStreams === 0);
    await daemon.number(job, 5, 2);
    gateway.plan = () => ({ kind: "refuse" });
    await show(job, { persist: "session", counts: true });
    const { payloads, reduced } = await shown();
    expect([payloads, reduced]).toEqual([upTo(5), 5]);
    gateway.plan = () => null;
    await untilShown("the rest, too", ({ payloads, reduced }) => payloads.join() === upTo(7).join() && reduced === 7);
    expect(gateway.streams(job).at(-1)?.url.searchParams.get("lastEventId")).not.toBeNull();
  });

  it("begins anew where it keeps nothing", async () => {
    await daemon.number(job, 0, 5);
    await show(job, { keepMs: 0 });
    await untilShown("five", ({ payloads }) => payloads.length === 5);
    await page.evaluate(() => window.leave());
    gateway.plan = () => ({ kind: "refuse" });
    await show(job, { keepMs: 0 });
    expect((await shown()).payloads).toEqual([]);
    gateway.plan = () => null;
    await untilShown("five again", ({ payloads }) => payloads.length === 5);
    expect((await shown()).told.events).toEqual([...upTo(5), ...upTo(5)]);
  });

  it("fails at once with an address that cannot be one, and throws nothing", async () => {
    for (const baseUrl of ["https://x:99999", "localhost:18080"]) {
      await show(job, { baseUrl });
      await untilShown("the failure", ({ status, code }) => status === "failed" && code === "client.address");
    }
    expect((await shown()).told.errors).toEqual(["client.address", "client.address"]);
    await daemon.number(job, 0, 1);
    await show(job);
    await untilShown("the right address", ({ payloads }) => payloads.length === 1);
  });

  it("a job id that makes no address is an error of the hook, and hurts no other job of a list", async () => {
    await daemon.number(job, 0, 2);
    await page.evaluate(() => window.show([{ jobId: "\ud800" }]));
    await untilShown("the failure", ({ status, code }) => status === "failed" && code === "client.address");
    await page.evaluate(() => window.leave());
    await page.evaluate((good) => window.showAll([good, "\ud800", ".."]), job);
    await eventually("the good job", async () => (await page.locator("p", { hasText: "0,1" }).count()) === 1);
    await eventually("both failures", async () => (await page.locator('p[data-state="failed"]').count()) === 2);
  });

  it("a reduce that throws at one event leaves its value, keeps the event, and its error is reported", async () => {
    await daemon.number(job, 0, 3);
    const options = { counts: true, stumblesAt: 1 };
    await show(job, options, false);
    await untilShown("all events", ({ payloads, reduced }) => payloads.join() === "0,1,2" && reduced === 2);
    expect((await shown()).dropped).toBe(0);
    const takeProblems = () => page.evaluate(() => window.seen.problems.splice(0));
    expect(await takeProblems()).toEqual(["Uncaught Error: the reducer's own"]);
    await page.evaluate(() => window.leave());
    await show(job, options, false);
    await untilShown("what was kept", ({ payloads, reduced }) => payloads.join() === "0,1,2" && reduced === 2);
    expect(new Set(await takeProblems())).toEqual(new Set(["Uncaught Error: the reducer's own"]));
  });

  it("renders on a server without a connection, and hydrates without a warning", async () => {
    const Job = () =>
      createElement("p", null, useJobStream("of-the-server", { baseUrl: "http://127.0.0.1:1" }).state.status);
    expect(renderToString(createElement(Job))).toBe("<p>connecting</p>");
    await daemon.number(job, 0, 2);
    const html = await page.evaluate((jobId) => window.serve({ jobId }), job);
    expect(html).toContain("connecting");
    await page.evaluate(([jobId, html]) => window.hydrate({ jobId }, html), [job, html] as const);
    await eventually("it shows the job", async () => (await items()) === 2);
  });

  it("hydrates a job that it has kept from what the server rendered, and then shows what it has kept", async () => {
    await daemon.number(job, 0, 2);
    const html = await page.evaluate((jobId) => window.serve({ jobId }), job);
    await show(job);
    await untilShown("two", ({ payloads }) => payloads.length === 2);
    await page.evaluate(() => window.leave());
    await eventually("no connection is left", () => gateway.openStreams === 0);
    gateway.plan = () => ({ kind: "refuse" });
    await page.evaluate(([jobId, html]) => window.hydrate({ jobId }, html), [job, html] as const);
    await untilShown("what was kept", ({ payloads }) => payloads.join() === "0,1");
    expect(await items()).toBe(2);
  });

  it("hydrates several jobs that it has kept by one hook, and then shows what it has kept", async () => {
    const ids = [`${job}-a`, `${job}-b`];
    for (const id of ids) await daemon.number(id, 0, 2);
    const rows = page.locator("p", { hasText: "0,1" });
    const html = await page.evaluate((ids) => window.serve(ids), ids);
    await page.evaluate((ids) => window.showAll(ids, { keepMs: 60_000 }), ids);
    await eventually("both are shown", async () => (await rows.count()) === 2);
    await page.evaluate(() => window.leave());
    await eventually("no connection is left", () => gateway.openStreams === 0);
    gateway.plan = () => ({ kind: "refuse" });
    await page.evaluate(([ids, html]) => window.hydrate(ids, html), [ids, html] as const);
    await eventually("what was kept is shown", async () => (await rows.count()) === 2);
  });
});
