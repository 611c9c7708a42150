// The set-up of tests in a browser: a daemon, a proxy before it, and a Chromium with a new context for each test.
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, beforeEach } from "vitest";
import { closeAll, launch, newPage } from "./client.ts";
import { Daemon } from "./daemon.ts";
import { Gateway } from "./gateway.ts";

export let daemon: Daemon;
export let gateway: Gateway;
export let browser: Browser;
export let context: BrowserContext;
/** The page of the test; only where `usePage` was called. */
export let page: Page;

/** Sets the stage for all tests of a file. Hooks of the file itself run between its own. */
export function useBrowser(): void {
  beforeAll(async () => {
    daemon = await Daemon.start();
    gateway = await Gateway.before(() => daemon.origin);
    browser = await launch();
  });
  beforeEach(async () => {
    context = await browser.newContext();
  });
  afterEach(async () => {
    await closeAll(context);
    gateway.reset();
  });
  afterAll(async () => {
    await browser?.close();
    await gateway?.stop();
    await daemon?.stop();
  });
}

export function usePage(): void {
  useBrowser();
  beforeEach(async () => {
    page = await newPage(context);
  });
}
