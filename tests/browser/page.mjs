// The live page in a real browser, on the real demo: node page.mjs <jobcast binary>
// CHROMIUM names the browser (default /usr/bin/chromium).

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { chromium } from "playwright-core";

const PATIENCE_MS = 30_000;
/** The longest job of the demo, with room for a slow machine. */
const JOB_MS = 180_000;

const [binary] = process.argv.slice(2);
if (!binary) {
  console.error("usage: node page.mjs <jobcast binary>");
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
    args: ["--no-sandbox", "--disable-background-networking"],
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
  return within(printed, PATIENCE_MS, "the demo prints its address");
}

async function check(origin) {
  const seen = { errors: [], strangers: [] };
  const page = await open(origin, seen, { width: 1440, height: 900 });
  await jobsOfTheDemo(page);
  await jobOfOurOwn(page, origin);
  await onAPhone(await open(origin, seen, { width: 390, height: 844 }));
  await anEndedJob(page);
  assert.deepEqual(seen.errors, [], "the console shows errors");
  assert.deepEqual(seen.strangers, [], "the page asked another host");
}

async function jobsOfTheDemo(page) {
  await until(page, "jobs are listed", () => document.querySelectorAll("#jobs li a").length >= 3);
  await until(page, "bars of steps are drawn", () =>
    [...document.querySelectorAll("#steps .bar")].some((bar) => bar.getBoundingClientRect().width > 1),
  );
  await until(page, "output is shown", () => document.querySelectorAll("#pane .line").length > 0);
  // whatever the chosen job does, one of the others is still at work
  const before = await count(page, "events");
  await until(
    page,
    "the counter grows",
    (before) => {
      if (document.getElementById("state").textContent === "complete") document.querySelector("#told a")?.click();
      return Number(document.querySelector('[data-count="events"]').dataset.value) > before;
    },
    before,
  );
}

/** Nobody but the test writes to this one, so that numbers can be exact. */
async function jobOfOurOwn(page, origin) {
  const write = async (path, method, body) => {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(`${origin}/runner-jobs/${path}`, { method, headers, body: JSON.stringify(body) });
    assert.ok(answer.ok, `${method} ${path} was answered ${answer.status}`);
  };
  const append = (...events) => write("browser-1/events", "POST", events);
  const line = (stepId, text) => ({ type: "step.output", stepId, payload: { line: text } });
  const counted = (expected) =>
    until(page, `${expected} events are counted`, (n) => document.querySelector('[data-count="events"]').dataset.value === `${n}`, expected);

  const steps = [{ id: "first", name: "First" }, { id: "second", name: "Second" }];
  await append(
    { type: "job.started", payload: { name: "Our own", steps } },
    { type: "step.started", stepId: "first", payload: {} },
    line("first", "\u001b[31mred\u001b[0m <b>bold</b>"),
    { type: "of.nobody", payload: { weight: 7 } },
  );
  await page.evaluate(() => (location.hash = "#job=browser-1"));
  await counted(4);
  const lines = await page.$$eval("#pane .text", (texts) => texts.map((text) => text.textContent));
  assert.ok(lines.includes("red <b>bold</b>"), `output is not shown as plain text: ${lines.join(" | ")}`);
  assert.ok(lines.includes('of.nobody {"weight":7}'), `an unknown type is not shown: ${lines.join(" | ")}`);

  await until(page, "the stream is live", () => !document.getElementById("drop").disabled);
  await page.click("#drop");
  await until(page, "the page says that it is offline", () => document.getElementById("state").textContent === "offline");
  await append(line("first", "missed 1"), line("first", "missed 2"), line("second", "missed 3"));
  assert.equal(await count(page, "events"), 4, "an event came although the connection was dropped");
  await counted(7);
  await until(page, "the page says what it missed", () => document.getElementById("told").textContent.includes("3 missed events"));
  await append(line("second", "after"));
  await counted(8);
  assert.equal(await count(page, "repeats"), 0, "an event came twice after the connection was dropped");
  assert.equal(await count(page, "connections"), 2, "dropping once does not make two connections");
  assert.notEqual(await page.textContent("#resumed-from"), "–", "the page does not say where it went on from");

  await page.click("#steps li:nth-child(2) button");
  await until(page, "a step filters the output", () => {
    const tags = [...document.querySelectorAll("#pane .tag")].map((tag) => tag.textContent);
    return tags.length === 2 && tags.every((tag) => tag === "second");
  });
  await write("browser-1", "PUT", { status: "CANCELLED" });
  await until(page, "the end is told", () => document.getElementById("state").textContent === "complete");
  assert.equal(await page.textContent("#job-status"), "cancelled");
}

async function onAPhone(phone) {
  await until(phone, "the phone shows a job", () => document.querySelectorAll("#pane .line").length > 0);
  const [content, viewport] = await phone.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(content <= viewport, `at 390 px the document is ${content} px wide and can be pushed aside`);
}

async function anEndedJob(page) {
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
  page.on("pageerror", (error) => seen.errors.push(error.message));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (url.protocol !== "data:" && url.origin !== origin) seen.strangers.push(request.url());
  });
  await page.goto(`${origin}/`);
  return page;
}

function count(page, name) {
  return page.$eval(`[data-count="${name}"]`, (counter) => Number(counter.dataset.value));
}

/** Waits for a condition of the page, and says which one when it does not come. */
async function until(page, what, condition, given, timeout = PATIENCE_MS) {
  try {
    await page.waitForFunction(condition, given, { timeout });
  } catch (error) {
    const state = await page.evaluate(() => `${document.title} | ${document.getElementById("state")?.textContent}`);
    throw new Error(`"${what}" did not come true within ${timeout / 1000} s (${error.message.split("\n")[0]}; ${state})`);
  }
  console.log(`ok: ${what}`);
}

async function within(promise, ms, what) {
  let timer;
  const late = new Promise((_, fail) => {
    timer = setTimeout(() => fail(new Error(`"${what}" did not come true within ${ms / 1000} s`)), ms);
  });
  try {
    return await Promise.race([promise, late]);
  } finally {
    clearTimeout(timer);
  }
}
