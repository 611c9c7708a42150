// The client in Firefox, where one is named (`npm run firefox`): what depends on the browser, beside the behaviours that
// behaviours.test.ts runs in it.
import type { Browser, BrowserContext, Page } from "puppeteer-core";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, it } from "vitest";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { hasFirefox, inFirefoxPage, launchFirefox } from "./support/firefox.ts";
import { Gateway } from "./support/gateway.ts";
import type { ObserveOptions } from "./support/observe.ts";
import { numbers, untilCount, untilStatus, upTo } from "./support/world.ts";

describe.skipIf(!hasFirefox())("Firefox", () => {
  let daemon: Daemon;
  let gateway: Gateway;
  let browser: Browser;
  let context: BrowserContext;
  let job = "";
  let turn = 0;

  beforeAll(async () => {
    daemon = await Daemon.start();
    gateway = await Gateway.before(() => daemon.origin);
    browser = await launchFirefox();
  });
  beforeEach(async () => {
    context = await browser.createBrowserContext();
    job = `firefox-${(turn += 1)}`;
  });
  afterEach(async () => {
    await context.close();
    gateway.reset();
  });
  afterAll(async () => {
    await browser?.close();
    await gateway?.stop();
    await daemon?.stop();
  });

  async function tab(): Promise<Page> {
    const page = await context.newPage();
    await page.goto(`${gateway.origin}/__test/observe.html`);
    return page;
  }
  const watchIn = (page: Page, options: ObserveOptions = {}, id = job) =>
    inFirefoxPage(page, id, { baseUrl: gateway.origin, retry: { initialMs: 50, maxMs: 400 }, ...options });

  it("keeps its connection in a hidden tab, and misses nothing", async () => {
    await daemon.number(job, 0, 2);
    const page = await tab();
    const watch = await watchIn(page);
    await untilCount(watch, 2);
    await (await tab()).bringToFront();
    await eventually("it is hidden", () => page.evaluate(() => document.visibilityState === "hidden"));
    await daemon.number(job, 2, 50);
    expect(numbers(await untilCount(watch, 52))).toEqual(upTo(52));
    gateway.cut();
    await daemon.number(job, 52, 2);
    await untilCount(watch, 54);
    await page.bringToFront();
    await daemon.number(job, 54, 1);
    expect(numbers(await untilCount(watch, 55))).toEqual(upTo(55));
    expect(gateway.streams(job)).toHaveLength(2);
  });

  it("shares one connection among tabs, and another tab leads when the leader closes", async () => {
    await daemon.number(job, 0, 5);
    const tabs = [await tab(), await tab(), await tab()];
    const watches = [];
    for (const page of tabs) watches.push(await watchIn(page, { share: true }));
    for (const watch of watches) await untilCount(watch, 5);
    expect(gateway.streams(job)).toHaveLength(1);
    await tabs[0]?.close();
    await daemon.number(job, 5, 20);
    for (const watch of watches.slice(1)) expect(numbers(await untilCount(watch, 25))).toEqual(upTo(25));
    await eventually("one connection is left", () => gateway.openStreams === 1);
    await daemon.end(job);
    for (const watch of watches.slice(1)) await untilStatus(watch, "complete");
  });

  it("watches twenty jobs over one connection, and has room for other requests", async () => {
    const page = await tab();
    const watches = [];
    for (let index = 0; index < 20; index += 1) {
      await daemon.number(`${job}-${index}`, 0, 3);
      watches.push(await watchIn(page, {}, `${job}-${index}`));
    }
    for (const watch of watches) expect(numbers(await untilCount(watch, 3))).toEqual(upTo(3));
    expect(await page.evaluate(async () => (await fetch("/runner-jobs?limit=1")).status)).toBe(200);
    await eventually("there is one connection", () => gateway.openStreams === 1);
    for (let index = 0; index < 20; index += 1) await daemon.number(`${job}-${index}`, 3, 1);
    for (const watch of watches) expect(numbers(await untilCount(watch, 4))).toEqual(upTo(4));
  });
});
