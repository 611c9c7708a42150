// The client in two places with one interface: in this process, and in a page of a real Chromium.
import { randomUUID } from "node:crypto";
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Browser, type BrowserContext, chromium, type Page } from "playwright-core";
import { vi } from "vitest";
import { type Observed, type ObserveOptions, Observer } from "./observe.ts";

/** A stream that is watched in one of these places. */
export interface Watch {
  now(): Promise<Observed>;
  /** Its state alone, which costs little however much it has seen. */
  current(): Promise<ReturnType<Observer["current"]>>;
  do(action: "close" | "reconnect" | "abort"): Promise<void>;
}

export interface Client {
  readonly name: string;
  watch(jobs: string | readonly string[], options: ObserveOptions & { baseUrl: string }): Promise<Watch>;
  /** Stops the clock of streams that are watched from now on. Their time passes by `advance` only. */
  stopClock(): Promise<void>;
  advance(ms: number): Promise<void>;
  /** Sets the time of day so far off the true one, for all streams; the monotonic clock goes on. */
  setTimeOfDay(byMs: number): Promise<void>;
  /** Closes all streams. */
  reset(): Promise<void>;
  stop(): Promise<void>;
}

export function inNode(): Client {
  const observers: Observer[] = [];
  const { fetch } = globalThis;
  const { now } = Date;
  const closeAll = async () => {
    for (const observer of observers.splice(0)) observer.stream.close();
    globalThis.fetch = fetch;
    Date.now = now;
    vi.useRealTimers();
  };
  return {
    name: "Node",
    async watch(jobs, options) {
      const observer = new Observer(jobs, options);
      observers.push(observer);
      return {
        now: async () => observer.now(),
        current: async () => observer.current(),
        do: async (action) => (action === "abort" ? observer.abort() : observer.stream[action]()),
      };
    },
    stopClock: async () => void vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "Date", "performance"] }),
    advance: async (ms) => void (await vi.advanceTimersByTimeAsync(ms)),
    async setTimeOfDay(byMs) {
      Date.now = () => now() + byMs;
    },
    reset: closeAll,
    stop: closeAll,
  };
}

export async function launch(...more: string[]): Promise<Browser> {
  return chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-background-networking", "--disable-gpu", ...more],
  });
}

const COVERAGE = process.env.COVERAGE;

/** Opens a page. With COVERAGE=<folder> the lines that run in it are counted, too. */
export async function newPage(context: BrowserContext): Promise<Page> {
  const page = await context.newPage();
  if (COVERAGE) await page.coverage.startJSCoverage({ resetOnNavigation: false });
  return page;
}

export async function closeAll(context: BrowserContext): Promise<void> {
  for (const page of COVERAGE ? context.pages() : []) {
    const entries = await page.coverage.stopJSCoverage();
    const ours = entries.filter(({ url }) => url.includes("/__test/"));
    mkdirSync(COVERAGE!, { recursive: true });
    writeFileSync(join(COVERAGE!, `${randomUUID()}.json`), JSON.stringify(ours));
  }
  await context.close();
}

declare global {
  interface Window {
    observe(jobs: string | readonly string[], options: ObserveOptions): number;
    observers: Observer[];
  }
}

export async function inPage(
  page: Pick<Page, "evaluate">,
  jobs: string | readonly string[],
  options: ObserveOptions,
): Promise<Watch> {
  const index = await page.evaluate(([jobs, given]) => window.observe(jobs, given), [jobs, options] as const);
  return {
    now: () => page.evaluate((index) => window.observers[index]!.now(), index),
    current: () => page.evaluate((index) => window.observers[index]!.current(), index),
    do: (action) =>
      page.evaluate(
        ([index, action]) => {
          const observer = window.observers[index]!;
          if (action === "abort") observer.abort();
          else observer.stream[action]();
        },
        [index, action] as const,
      ),
  };
}

/** Starts a Chromium whose pages come from `origin`. The script `before` runs in each page before anything else. */
export async function inChromium(origin: () => string, before = ""): Promise<Client> {
  const browser = await launch();
  let context: BrowserContext | null = null;
  return {
    name: "Chromium",
    async stopClock() {
      context ??= await browser.newContext();
      await context.clock.install({ time: 0 });
      await context.clock.pauseAt(1000);
    },
    advance: async (ms) => context?.clock.runFor(ms),
    async setTimeOfDay(byMs) {
      for (const page of context?.pages() ?? [])
        await page.evaluate((byMs) => {
          Date.now = () => Math.round(performance.timeOrigin + performance.now()) + byMs;
        }, byMs);
    },
    async watch(jobs, options) {
      context ??= await browser.newContext();
      const page = await newPage(context);
      if (before) await page.addInitScript(before);
      await page.goto(`${origin()}/__test/observe.html`);
      return inPage(page, jobs, options);
    },
    async reset() {
      if (context) await closeAll(context);
      context = null;
    },
    stop: () => browser.close(),
  };
}
