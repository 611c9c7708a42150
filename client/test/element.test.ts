// <jobcast-log> in a page with a strict policy.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { afterEach, beforeEach, expect, it } from "vitest";
import { eventually } from "./support/eventually.ts";
import { daemon, gateway, page, usePage } from "./support/stage.ts";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

usePage();
beforeEach(async () => {
  await page.goto(`${gateway.origin}/__test/element.html`);
});
afterEach(async () => {
  expect(await page.evaluate(() => window.violations)).toEqual([]);
});

const watch = (job: string) =>
  page.evaluate((job) => {
    const log = document.createElement("jobcast-log");
    log.setAttribute("job", job);
    document.getElementById("root")!.append(log);
  }, job);
const line = (text: string, more: object = {}) => ({ stepId: "s", payload: { line: text, ...more } });
const shown = (count: number) =>
  eventually(`${count} lines are shown`, async () => (await page.locator("[part~=line]").count()) === count);

it("begins with the newest events, and shows events of some types only, where its attributes say so", async () => {
  await daemon.write("some", [line("1"), line("2"), { type: "of.mine", payload: {} }, line("3")]);
  await page.evaluate(() => {
    const log = document.createElement("jobcast-log");
    for (const [name, value] of Object.entries({ job: "some", last: "3", types: "step.output, job.*" }))
      log.setAttribute(name, value);
    document.getElementById("root")!.append(log);
  });
  await shown(2);
  expect(await page.locator("[part~=line]").allTextContents()).toEqual(["2", "3"]);
});

it("shows output in its colours, overwritten progress, addresses and any other event, and never markup", async () => {
  await daemon.write("looks", [
    line("\u001b[31mred \u001b[38;2;250;200;100mexact\u001b[0m plain"),
    line("1 %\r50 %\r100 %"),
    line("\rdone "),
    line("see https://example.com/a?b=c. javascript:alert(1)", { stream: "stderr" }),
    line("<img src=x onerror=alert(1)>"),
    { type: "of.mine", payload: [1, 2] },
    { type: "step.output", payload: null },
  ]);
  await watch("looks");
  await shown(6);
  expect(await page.locator("[part~=line]").allTextContents()).toEqual([
    "red exact plain",
    "done ",
    "see https://example.com/a?b=c. javascript:alert(1)",
    "<img src=x onerror=alert(1)>",
    "of.mine [1,2]",
    "step.output null",
  ]);
  const colours = await page
    .locator("[part~=line] span")
    .evaluateAll((all) => all.map((e) => getComputedStyle(e).color));
  expect(colours).toEqual(["rgb(255, 143, 134)", "rgb(250, 200, 100)"]);
  const links = await page
    .locator("[part~=line] a")
    .evaluateAll((all) => all.map((a) => [a.getAttribute("href"), a.getAttribute("rel")]));
  expect(links).toEqual([["https://example.com/a?b=c", "noopener noreferrer"]]);
  expect(await page.locator("[part~=line] img").count()).toBe(0);
  await page.evaluate("document.title = 'log'");
  // The policy of the page forbids scripts of others, so axe comes through the debugger.
  await page.evaluate(AXE);
  const faults = await page.evaluate(async () => {
    const { violations } = await (
      window as unknown as { axe: { run(): Promise<{ violations: { id: string; impact: string }[] }> } }
    ).axe.run();
    return violations.filter(({ impact }) => impact === "serious" || impact === "critical").map(({ id }) => id);
  });
  expect(faults).toEqual([]);
});

it("follows the end, stands still while its reader is elsewhere, and leads back", async () => {
  await daemon.number("follows", 0, 100);
  await watch("follows");
  await shown(100);
  const log = page.getByRole("log");
  const fromEnd = () => log.evaluate((e) => Math.round(e.scrollHeight - e.scrollTop - e.clientHeight));
  await eventually("it is at its end", async () => (await fromEnd()) < 2);
  await daemon.number("follows", 100, 20);
  await shown(120);
  await eventually("it is at its end again", async () => (await fromEnd()) < 2);
  await log.evaluate((e) => e.scrollTo(0, 100));
  const back = page.locator("[part=newest]");
  await back.waitFor();
  await daemon.number("follows", 120, 3);
  await eventually("it counts what is new", async () => (await back.textContent()) === "3 new ↓");
  expect(await log.evaluate((e) => e.scrollTop)).toBe(100);
  await back.click();
  await eventually("it is back at its end", async () => (await fromEnd()) < 2);
  expect(await back.isVisible()).toBe(false);
});

it("watches what its attributes say, as long as it is in the page", async () => {
  await daemon.number("first", 0, 2);
  await daemon.number("second", 5, 1);
  await watch("first");
  await shown(2);
  await page.evaluate(() => document.querySelector("jobcast-log")!.setAttribute("job", "second"));
  await shown(1);
  await eventually("one connection is left", () => gateway.openStreams === 1);
  await daemon.end("second", "FAILED");
  await eventually(
    "it says how the job ended",
    async () => (await page.locator("[part=status]").textContent()) === "failed",
  );
  await page.evaluate(() => document.querySelector("jobcast-log")!.setAttribute("job", "first"));
  await shown(2);
  await page.evaluate(() => document.querySelector("jobcast-log")!.remove());
  await eventually("no connection is left", () => gateway.openStreams === 0);
});

it("says why it stopped, and tries again when it is told to", async () => {
  await daemon.number("refused", 0, 2);
  gateway.plan = () => ({ kind: "answer", status: 403 });
  await watch("refused");
  const again = page.getByRole("button", { name: "Try again" });
  await again.waitFor();
  expect(await page.locator("[part=status]").textContent()).toMatch(/^stopped /);
  gateway.plan = () => null;
  await again.click();
  await shown(2);
});
