// The client in pages of a real Firefox, which is driven by WebDriver BiDi.
import puppeteer, { type Browser, type BrowserContext, type Page } from "puppeteer-core";
import { type Client, inPage, type Watch } from "./client.ts";
import type { ObserveOptions } from "./observe.ts";

const PATH = process.env.FIREFOX ?? "";

/** Tells if a Firefox is to be used: `npm run firefox`. */
export const hasFirefox = (): boolean => PATH !== "";

/** The sandboxes need rights that containers lack. */
const NO_SANDBOX = {
  MOZ_DISABLE_CONTENT_SANDBOX: "1",
  MOZ_DISABLE_RDD_SANDBOX: "1",
  MOZ_DISABLE_SOCKET_PROCESS_SANDBOX: "1",
  MOZ_DISABLE_UTILITY_SANDBOX: "1",
};
/** At its start Firefox asks its maker for experiments, and waits for the answer. Where there is no way out it waits long. */
const NO_EXPERIMENTS = {
  "app.normandy.enabled": false,
  "messaging-system.rsexperimentloader.enabled": false,
  "nimbus.rollouts.enabled": false,
  "services.settings.server": "http://127.0.0.1:9/v1",
};

export const launchFirefox = (): Promise<Browser> =>
  puppeteer.launch({
    browser: "firefox",
    executablePath: PATH,
    env: { ...process.env, ...NO_SANDBOX },
    extraPrefsFirefox: NO_EXPERIMENTS,
  });

/** Watches a job in a page of Firefox. What is called of a page is the same for both drivers. */
export const inFirefoxPage = (page: Page, jobs: string | readonly string[], options: ObserveOptions): Promise<Watch> =>
  inPage(page as unknown as Parameters<typeof inPage>[0], jobs, options);

/** Starts a Firefox whose pages come from `origin`. */
export async function inFirefox(origin: () => string): Promise<Client> {
  const browser = await launchFirefox();
  let context: BrowserContext | null = null;
  return {
    name: "Firefox",
    stopClock: () => Promise.reject(new Error("WebDriver BiDi has no clock to stop")),
    advance: () => Promise.reject(new Error("WebDriver BiDi has no clock to advance")),
    async setTimeOfDay(byMs) {
      for (const page of (await context?.pages()) ?? [])
        await page.evaluate((byMs) => {
          Date.now = () => Math.round(performance.timeOrigin + performance.now()) + byMs;
        }, byMs);
    },
    async watch(jobs, options) {
      context ??= await browser.createBrowserContext();
      const page = await context.newPage();
      await page.goto(`${origin()}/__test/observe.html`);
      return inFirefoxPage(page, jobs, options);
    },
    async reset() {
      await context?.close();
      context = null;
    },
    stop: () => browser.close(),
  };
}
