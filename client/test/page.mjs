// Tries the live page in a real browser, on the real demo: node page.mjs <jobcast binary> [folder for screenshots]
// CHROMIUM names the browser (default /usr/bin/chromium).

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";
import { longestTaskMs } from "./support/longest-task.mjs";

const TIMEOUT_MS = 90_000;
/** The time for the longest job of the demo, with room for a slow machine. */
const JOB_MS = 180_000;
/** The longest task that the page may have while events come as they usually do, and when thousands come at once. */
const MAX_TASK_MS = 50;
const MAX_BURST_TASK_MS = 200;
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const [binary, screenshots] = process.argv.slice(2);
if (!binary) {
  console.error("usage: node page.mjs <jobcast binary> [folder]");
  process.exit(2);
}

const demo = spawn(binary, ["demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"], {
  stdio: ["ignore", "pipe", "inherit"],
});
const ended = new Promise((done) => {
  demo.once("exit", done);
  demo.once("error", done);
});
const killDemo = () => demo.kill("SIGKILL");
process.once("exit", killDemo);
for (const signal of ["SIGINT", "SIGTERM"]) process.once(signal, () => process.exit(1));

let browser;
try {
  const origin = await addressOfDemo();
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-background-networking", "--disable-gpu"],
  });
  await check(origin);
  console.log("the live page does what it promises");
} catch (error) {
  console.error(`FAILED: ${error.message}`);
  process.exitCode = 1;
} finally {
  await browser?.close();
  demo.kill("SIGTERM");
  const late = setTimeout(killDemo, 5000);
  await ended;
  clearTimeout(late);
}

async function addressOfDemo() {
  const printed = (async () => {
    for await (const line of createInterface({ input: demo.stdout })) {
      const address = /http:\/\/[^/\s]+/.exec(line);
      if (address) return address[0];
    }
    throw new Error("the demo ended without printing its address");
  })();
  return within(printed, TIMEOUT_MS, "the demo prints its address");
}

async function check(origin) {
  const seen = { errors: [], crashes: [], foreignRequests: [] };
  const page = await open(origin, seen, { width: 1440, height: 900 });
  await watchDemoJobs(page);
  await checkAccessibility(page, "a running job");
  await screenshot(page, "wide-light");
  await checkDark(page, "wide-dark");
  await watchOwnJob(page, origin);
  await checkAccessibility(page, "a cancelled job");
  await useKeyboard(page, origin);
  const phone = await open(origin, seen, { width: 390, height: 844 });
  await checkPhone(phone);
  await checkAccessibility(phone, "a phone");
  await screenshot(phone, "phone-light");
  await checkDark(phone, "phone-dark");
  await showLongJob(page, origin);
  await showManyEvents(page, origin);
  await showOddJobs(page, origin);
  await showEndedJob(page);
  await screenshot(page, "ended");
  assert.deepEqual(seen.errors, [], "the console shows errors");
  assert.deepEqual(seen.foreignRequests, [], "the page asked another host");
  // From here on answers are missing on purpose, which browsers write to the console.
  await showMissingJob(page, origin);
  await showOutage(page);
  assert.deepEqual(seen.crashes, [], "a script of the page failed");
}

function append(origin, job, events) {
  return send(origin, "POST", `${job}/events`, events);
}

async function send(origin, method, path, body) {
  const headers = { "Content-Type": "application/json" };
  const answer = await fetch(`${origin}/runner-jobs/${path}`, { method, headers, body: JSON.stringify(body) });
  assert.ok(answer.ok, `${method} ${path} was answered ${answer.status}`);
}

async function screenshot(page, name) {
  if (screenshots) await page.screenshot({ path: `${screenshots}/${name}.png` });
}

/** Checks that axe finds no serious fault of accessibility. */
async function checkAccessibility(page, name) {
  await page.evaluate(AXE);
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const serious = violations.filter(({ impact }) => impact === "serious" || impact === "critical");
  const faults = serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" | ")}`);
  assert.deepEqual(faults, [], `axe finds in ${name}`);
  console.log(`ok: axe finds nothing serious in ${name}`);
}

async function checkDark(page, name) {
  await page.emulateMedia({ colorScheme: "dark" });
  await checkAccessibility(page, "the dark");
  await screenshot(page, name);
  await page.emulateMedia({ colorScheme: "light" });
}

/** Goes from the choice of a job to a dropped connection by Tab and Enter alone. */
async function useKeyboard(page, origin) {
  await append(origin, "browser-2", [
    { type: "job.started", payload: { name: "Cut short", steps: [{ id: "one", name: "One" }] } },
    { type: "step.started", stepId: "one", payload: {} },
    { type: "step.output", stepId: "one", payload: { line: "hello" } },
  ]);
  await until(page, "the new job is listed", () => document.querySelector('#jobs a[href$="=browser-2"]') !== null);
  await page.reload();
  await until(page, "jobs are listed again", () => document.querySelector('#jobs a[href$="=browser-2"]') !== null);
  const tabTo = async (selector) => {
    for (let press = 0; press < 30; press += 1) {
      await page.keyboard.press("Tab");
      const seen = await page.evaluate((selector) => {
        const { activeElement: focused } = document;
        const isMarked = focused.matches(":focus-visible") && getComputedStyle(focused).outlineStyle !== "none";
        const { top, bottom } = focused.getBoundingClientRect();
        return { isIt: focused.matches(selector), isSeen: isMarked && bottom > 0 && top < innerHeight };
      }, selector);
      assert.ok(seen.isSeen, `on the way to ${selector} the focus cannot be seen`);
      if (seen.isIt) return;
    }
    assert.fail(`Tab does not reach ${selector}`);
  };
  await tabTo(".skip");
  // The list has one stop. From there the arrow keys lead to each of its links.
  await tabTo("#jobs section a");
  await page.keyboard.press("Home");
  for (let press = 0; press < 60; press += 1) {
    if (await page.evaluate(() => document.activeElement.matches('[href$="=browser-2"]'))) break;
    await page.keyboard.press("ArrowDown");
  }
  await page.keyboard.press("Enter");
  await until(page, "the job is shown", () => document.getElementById("job-title").textContent === "Cut short");
  await until(page, "its step is drawn", () => document.querySelector("#steps button") !== null);
  await tabTo("#steps button");
  await page.keyboard.press("Enter");
  await until(page, "the step filters the output", () => !document.getElementById("show-all").hidden);
  await tabTo("#show-all");
  await page.keyboard.press("Enter");
  await until(page, "all steps are shown", () => document.getElementById("show-all").hidden);
  await tabTo("#pane");
  await screenshot(page, "keyboard");
  await until(page, "the stream is live", () => !document.getElementById("drop").disabled);
  await tabTo("#drop");
  await page.keyboard.press("Enter");
  await until(page, "it is offline", () => document.getElementById("state").textContent === "offline");
  await until(page, "it is live again", () => document.getElementById("state").textContent === "live");
  console.log("ok: the page can be used by keyboard alone");
}

/** Finds what is far away in a long output: by scrolling, by searching, and by a link. */
async function showLongJob(page, origin) {
  for (let from = 0; from < 70_001; from += 1000) {
    const count = Math.min(1000, 70_001 - from);
    const lines = Array.from({ length: count }, (_, n) => ({
      type: "step.output",
      stepId: `s${n % 2}`,
      payload: { line: `row ${from + n}${(from + n) % 7000 === 0 ? " needle" : ""}` },
    }));
    await append(origin, "long", lines);
  }
  await page.evaluate(() => (location.hash = "#job=long"));
  await until(page, "the page says how many lines it does not show", () => {
    const { rows, hidden } = {
      rows: document.querySelectorAll("#pane .line").length,
      hidden: document.querySelector(".older"),
    };
    const [count] = /[\d,]+/.exec(hidden.textContent) ?? ["0"];
    return (
      document.querySelector("#pane .line:last-child .text")?.textContent.startsWith("row 70000") &&
      Number(count.replace(",", "")) + rows === 70_001
    );
  });
  await page.click(".older button:last-of-type");
  await until(
    page,
    "the first line is shown",
    () => document.querySelector("#pane .line .text")?.textContent === "row 0 needle",
  );
  await page.keyboard.press("/");
  await page.keyboard.type("NEEDLE");
  await until(
    page,
    "the found lines are counted",
    () => document.getElementById("find-count").textContent === "8 lines in the newest 50,001",
  );
  for (const key of ["Enter", "Enter", "Enter", "Shift+Enter"]) await page.keyboard.press(key);
  await until(
    page,
    "the second found line is shown",
    () => document.querySelector("#pane .here .text")?.textContent === "row 28000 needle",
  );
  assert.equal(await page.textContent("#find-count"), "2 of 8 in the newest 50,001");
  await screenshot(page, "search");
  await checkAccessibility(page, "a search");
  await page.click("#pane .here .time");
  await until(page, "the line is in the address", () => location.hash.includes("line="));
  await page.reload();
  await until(page, "the line of the address is shown again", () => {
    const { top, bottom } = document.querySelector("#pane .target")?.getBoundingClientRect() ?? {};
    const pane = document.getElementById("pane").getBoundingClientRect();
    return (
      document.querySelector("#pane .target .text")?.textContent === "row 28000 needle" &&
      top >= pane.top &&
      bottom <= pane.bottom
    );
  });
  await until(page, "all of it is there", () => document.getElementById("count-events").dataset.value === "70001");
  const download = page.waitForEvent("download");
  await page.click("#download");
  const saved = readFileSync(await (await download).path(), "utf8")
    .trimEnd()
    .split("\n");
  assert.deepEqual(
    [saved.length, saved[70_000].endsWith("row 70000 needle")],
    [70_001, true],
    "the file is not the output",
  );
  console.log("ok: 70,001 lines can be read, searched, linked to and kept");
}

/** Jobs as real ones are: with long ids, with odd events, and not there. */
async function showOddJobs(page, origin) {
  const id = "0b0c2b7a-1d3e-4c55-9a77-0123e3f9c2ab.deploy-production-eu-west-1";
  const big = {
    service: "payments",
    regions: ["eu-west-1", "us-east-1"],
    replicas: 3,
    image: "registry.example.com/payments:1",
  };
  await append(origin, id, [
    { type: "job.started", timestamp: "2026-11-25T09:00:00.000Z", payload: { steps: [{ id: "only", name: "Only" }] } },
    { type: "step.started", stepId: "only", timestamp: "2026-11-25T09:00:00.100Z", payload: {} },
    { type: "step.output", stepId: "only", timestamp: "2026-11-25T09:00:00.200Z", payload: { line: "10%\r100%" } },
    {
      type: "step.output",
      stepId: "only",
      timestamp: "2026-11-25T09:00:00.300Z",
      payload: { line: "at https://example.com/a." },
    },
    { type: "deploy.plan", timestamp: "2026-11-25T09:00:01.000Z", payload: big },
    { type: "job.completed", timestamp: "2026-11-25T09:00:01.900Z", payload: {} },
  ]);
  await send(origin, "PUT", id, { status: "COMPLETED" });
  await page.evaluate((id) => (location.hash = `#job=${id}`), id);
  await until(page, "a job with a long id is shown", () => document.querySelectorAll("#pane .line").length === 6);
  const texts = await page.$$eval("#pane .text", (all) => all.map((text) => text.textContent));
  assert.equal(texts[2], "100%", "progress is not overwritten");
  const [link] = await page.$$eval("#pane .text a", (all) => all.map(({ href, rel }) => [href, rel]));
  assert.deepEqual(link, ["https://example.com/a", "noopener noreferrer"]);
  await page.click("#pane summary");
  await until(page, "a payload unfolds", () =>
    document.querySelector("#pane .json")?.textContent.includes('"replicas": 3'),
  );
  await until(page, "the axis fits the job", () => {
    const labels = [...document.querySelectorAll(".tick")].map(({ textContent }) => textContent);
    return labels.includes("1.5 s") && !labels.includes("2 s");
  });
  await until(page, "its age and the end of its id are in sight", () => {
    const link = [...document.querySelectorAll("#jobs a")].find(({ title }) => title.startsWith("0b0c2b7a"));
    const nav = document.getElementById("jobs").getBoundingClientRect();
    return [".when", ".id :last-child"].every((part) => {
      const { width, right } = link?.querySelector(part).getBoundingClientRect() ?? {};
      return width > 0 && right <= nav.right;
    });
  });
  const copied = await page.evaluate(() => {
    const range = document.createRange();
    range.selectNodeContents(document.getElementById("pane"));
    getSelection().removeAllRanges();
    getSelection().addRange(range);
    const data = new DataTransfer();
    document
      .getElementById("pane")
      .dispatchEvent(new ClipboardEvent("copy", { clipboardData: data, bubbles: true, cancelable: true }));
    return data.getData("text/plain").split("\n").length;
  });
  assert.ok(copied >= 6 && copied < 20, `six rows are copied as ${copied} lines`);
  await screenshot(page, "long-id");

  await page.fill("#job-find", "0B0C2B");
  await until(page, "a filter finds the job", () => document.querySelectorAll("#jobs section a").length === 1);
  await page.selectOption("#job-status-filter", "FAILED");
  await until(
    page,
    "its status is not that of the filter",
    () => document.querySelectorAll("#jobs section a").length === 0,
  );
  await page.fill("#job-find", "");
  await page.selectOption("#job-status-filter", "");

  await page.click(".mark a");
  await until(
    page,
    "the list is shown",
    () => document.getElementById("job").hidden && document.querySelectorAll("#jobs section a").length > 3,
  );
  await checkAccessibility(page, "the list");
  await screenshot(page, "list");
}

async function showMissingJob(page, origin) {
  await page.evaluate(() => (location.hash = "#job=not-there"));
  await until(
    page,
    "a job that is not there is no failure",
    () => document.getElementById("state").dataset.state === "missing",
  );
  await checkAccessibility(page, "a job that is not there");
  await screenshot(page, "not-there");
  await append(origin, "not-there", [{ type: "step.output", payload: { line: "here" } }]);
  await until(page, "it is shown when it comes", () => document.querySelectorAll("#pane .line").length === 1);
}

/** Shows that the page stays smooth with 5,000 events in the past and 1,000 new ones at once. */
async function showManyEvents(page, origin) {
  const lines = (from, count) =>
    append(
      origin,
      "many",
      Array.from({ length: count }, (_, n) => ({
        type: "step.output",
        stepId: `s${n % 5}`,
        payload: { line: `line ${from + n}` },
      })),
    );
  for (let from = 0; from < 5000; from += 500) await lines(from, 500);
  await browser.startTracing(page, { categories: ["toplevel"] });
  await page.evaluate(() => (location.hash = "#job=many"));
  const counted = (n) =>
    until(
      page,
      `${n} events are counted`,
      (n) => document.querySelector('[data-count="events"]').dataset.value === `${n}`,
      n,
    );
  await counted(5000);
  await lines(5000, 500);
  await lines(5500, 500);
  await counted(6000);
  await until(
    page,
    "the last line is drawn",
    () => document.querySelector("#pane .line:last-child .text")?.textContent === "line 5999",
  );
  const blockedMs = longestTaskMs(await browser.stopTracing());
  await screenshot(page, "many");
  assert.ok(blockedMs < MAX_BURST_TASK_MS, `the page stood still for ${blockedMs} ms`);
  console.log(`ok: with 6,000 events the page stood still for ${Math.round(blockedMs)} ms at most`);
  await browser.startTracing(page, { categories: ["toplevel"] });
  for (let from = 6000; from < 7000; from += 20) {
    await lines(from, 20);
    await new Promise((resume) => setTimeout(resume, 100));
  }
  await counted(7000);
  const taskMs = longestTaskMs(await browser.stopTracing());
  assert.ok(taskMs < MAX_TASK_MS, `at 200 events a second a task took ${taskMs} ms`);
  console.log(`ok: at 200 events a second no task took more than ${Math.round(taskMs)} ms`);
}

/** Kills the demo, so it comes last. */
async function showOutage(page) {
  await page.evaluate(() => (location.hash = "#job=browser-2"));
  await until(page, "the stream is live", () => document.getElementById("state").dataset.state === "live");
  // A try that nobody answers is over before the next frame.
  await page.evaluate(() => {
    const retry = document.getElementById("retry-in");
    const note = () => (window.hasTried ||= retry.textContent === "Trying now…");
    new MutationObserver(note).observe(retry, { childList: true, characterData: true, subtree: true });
  });
  killDemo();
  await until(page, "the outage is announced", () =>
    document.getElementById("notice").textContent.includes("The connection is lost"),
  );
  await until(page, "it is not called live", () => document.getElementById("state").dataset.state === "reconnecting");
  await until(page, "it counts down to the next try", () =>
    /^Trying again in \d+ s\.$/.test(document.getElementById("retry-in").textContent),
  );
  await until(page, "the next try comes", () => window.hasTried);
  await until(page, "trying again can be had at once", () => !document.getElementById("retry-now").hidden);
  await checkAccessibility(page, "an outage");
  await screenshot(page, "outage");
}

async function watchDemoJobs(page) {
  await until(page, "jobs are listed", () => document.querySelectorAll("#jobs li a").length >= 3);
  await until(page, "bars of steps are drawn", () =>
    [...document.querySelectorAll("#steps .bar")].some((bar) => bar.getBoundingClientRect().width > 1),
  );
  await until(page, "output is shown", () => document.querySelectorAll("#pane .line").length > 0);
  // The chosen job may end. Then another one is watched, by the link of the notice.
  const before = await count(page, "events");
  await until(
    page,
    "the counter grows",
    (before) => {
      if (document.getElementById("state").textContent === "complete") document.querySelector("#notice a")?.click();
      return Number(document.querySelector('[data-count="events"]').dataset.value) > before;
    },
    before,
  );
}

/** Watches a job to which only this test writes, so that the numbers are exact. */
async function watchOwnJob(page, origin) {
  const write = (...events) => append(origin, "browser-1", events);
  const line = (stepId, text) => ({ type: "step.output", stepId, payload: { line: text } });
  const counted = (expected) =>
    until(
      page,
      `${expected} events are counted`,
      (n) => document.querySelector('[data-count="events"]').dataset.value === `${n}`,
      expected,
    );

  const steps = [
    { id: "first", name: "First" },
    { id: "second", name: "Second" },
  ];
  await write(
    { type: "job.started", payload: { name: "Our own", steps } },
    { type: "step.started", stepId: "first", payload: {} },
    line("first", "\u001b[31mred\u001b[0m <b>bold</b>"),
    { type: "of.nobody", payload: { weight: 7 } },
  );
  await page.evaluate(() => (location.hash = "#job=browser-1"));
  await counted(4);
  await until(page, "output is shown as plain text", () =>
    [...document.querySelectorAll("#pane .text")].some((text) => text.textContent === "red <b>bold</b>"),
  );
  const colour = await page.$eval("#pane .text span", (span) => getComputedStyle(span).color);
  assert.equal(colour, "rgb(255, 143, 134)", "red is not red");
  await until(page, "an unknown type is shown", () =>
    [...document.querySelectorAll("#pane .text")].some((text) => text.textContent === 'of.nobody {"weight":7}'),
  );

  await until(page, "the stream is live", () => !document.getElementById("drop").disabled);
  await page.click("#drop");
  await until(
    page,
    "the page says that it is offline",
    () => document.getElementById("state").textContent === "offline",
  );
  await write(line("first", "missed 1"), line("first", "missed 2"), line("second", "missed 3"));
  assert.equal(await count(page, "events"), 4, "an event came although the connection was dropped");
  await counted(7);
  await until(page, "the page says what it missed", () =>
    document.getElementById("notice").textContent.includes("3 missed events"),
  );
  await write(line("second", "after"));
  await counted(8);
  assert.equal(await count(page, "repeats"), 0, "an event came twice after the connection was dropped");
  assert.equal(await count(page, "connections"), 2, "dropping once does not make two connections");
  assert.notEqual(await page.textContent("#resumed-from"), "–", "the page does not say where it went on from");

  await page.click("#steps li:nth-child(2) button");
  await until(page, "a step filters the output", () => {
    const tags = [...document.querySelectorAll("#pane .tag")].map((tag) => tag.textContent);
    return tags.length === 2 && tags.every((tag) => tag === "second");
  });
  await send(origin, "PUT", "browser-1", { status: "CANCELLED" });
  await until(page, "the end is shown", () => document.getElementById("state").textContent === "complete");
  assert.equal(await page.textContent("#job-status"), "cancelled");
}

async function checkPhone(phone) {
  await until(phone, "the phone shows a job", () => document.querySelectorAll("#pane .line").length > 0);
  const [content, viewport] = await phone.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(content <= viewport, `at 390 px the document is ${content} px wide and can be pushed aside`);
}

async function showEndedJob(page) {
  const ended = '#jobs a:is([data-status="COMPLETED"], [data-status="FAILED"]):not([aria-current])';
  await until(page, "a job of the demo ends", (ended) => document.querySelector(ended) !== null, ended, JOB_MS);
  await page.click(ended);
  await until(page, "it is shown to its end", () => {
    const status = document.getElementById("job-status").textContent;
    return document.getElementById("state").textContent === "complete" && ["completed", "failed"].includes(status);
  });
}

async function open(origin, seen, viewport) {
  const context = await browser.newContext({ viewport });
  const page = await context.newPage();
  page.on("console", (message) => message.type() === "error" && seen.errors.push(message.text()));
  page.on("pageerror", (error) => seen.crashes.push(error.message));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol !== "data:" && url.origin !== origin) seen.foreignRequests.push(request.url());
  });
  await page.goto(`${origin}/`);
  return page;
}

function count(page, name) {
  return page.$eval(`[data-count="${name}"]`, (counter) => Number(counter.dataset.value));
}

/** Waits for a condition of the page. The error names the condition. */
async function until(page, name, condition, given, timeout = TIMEOUT_MS) {
  try {
    await page.waitForFunction(condition, given, { timeout });
  } catch (error) {
    const state = await page.evaluate(() => `${document.title} | ${document.getElementById("state")?.textContent}`);
    throw new Error(
      `"${name}" did not come true within ${timeout / 1000} s (${error.message.split("\n")[0]}; ${state})`,
    );
  }
  console.log(`ok: ${name}`);
}

async function within(promise, ms, name) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`"${name}" did not come true within ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
