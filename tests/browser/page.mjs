// The demo in a real browser: page.mjs JOBCAST
// Fails with a line that says what was not seen.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { chromium } from "playwright-core";

const PATIENCE = 60_000;
let browser;

// A page that notes whatever should not happen.
async function open(options) {
  const context = await browser.newContext(options);
  const page = await context.newPage();
  page.setDefaultTimeout(PATIENCE);
  const wrong = [];
  const asked = new Set();
  page.on("pageerror", (error) => wrong.push(error.message));
  page.on("console", (message) => message.type() === "error" && wrong.push(message.text()));
  page.on("request", (request) => asked.add(new URL(request.url()).origin));
  return { page, wrong, asked };
}

const number = (page, id) => page.locator(`#${id}`).textContent().then(Number);
const grows = (page, id, beyond) =>
  page.waitForFunction(([id, beyond]) => Number(document.getElementById(id).textContent) > beyond, [id, beyond]);
const is = (page, state) => page.waitForSelector(`#state[data-state=${state}]`);

async function theWidePageIsAlive(origin) {
  const { page, wrong, asked } = await open({ viewport: { width: 1440, height: 900 } });
  await page.goto(origin);
  await page.waitForFunction(() => document.querySelectorAll("#jobs li").length >= 3);
  await page.waitForSelector("#steps .bar:not([hidden])");
  await is(page, "live");
  await grows(page, "events", await number(page, "events"));
  await page.waitForSelector(".line[data-tone=plain]");

  const before = await number(page, "events");
  await page.click("#drop");
  await is(page, "offline");
  // the job may end meanwhile: then coming back brings the rest and the end
  await page.waitForSelector("#state:is([data-state=live], [data-state=complete])");
  await grows(page, "events", before);
  assert.equal(await number(page, "repeats"), 0, "events were repeated after coming back");
  assert.ok((await number(page, "connections")) >= 2, "it did not come back");

  assert.deepEqual(wrong, [], "the page complained");
  for (const other of asked) assert.ok(other === origin || other === "null", `the page asked ${other} for something`);
}

async function thePhonePageFits(origin) {
  const { page, wrong } = await open({ viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true });
  await page.goto(origin);
  await page.waitForSelector("#steps .bar:not([hidden])");
  const [content, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(content <= window, `the page is ${content} wide on a window of ${window}`);
  assert.deepEqual(wrong, [], "the page complained");
}

async function anEndedJobIsShownWhole(origin) {
  const { page, wrong } = await open({ viewport: { width: 1440, height: 900 }, reducedMotion: "reduce" });
  await page.goto(origin);
  const ended = page.locator("#jobs a:is([data-status=COMPLETED], [data-status=FAILED], [data-status=CANCELLED])");
  await ended.first().click();
  await is(page, "complete");
  const said = await page.evaluate(async () => {
    const job = decodeURIComponent(location.hash.replace("#job=", ""));
    const all = await fetch(`/runner-jobs/${encodeURIComponent(job)}/events?limit=1000`).then((answer) => answer.json());
    return { events: all.events.length, status: all.status };
  });
  await page.waitForFunction((events) => document.getElementById("events").textContent === String(events), said.events);
  assert.equal(await page.locator("#badge").textContent(), said.status.toLowerCase());
  assert.deepEqual(wrong, [], "the page complained");
}

const demo = spawn(process.argv[2], ["demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
try {
  const origin = await new Promise((found, failed) => {
    demo.stdout.on("data", (text) => {
      const address = /http:\/\/[\d.:]+/.exec(text);
      if (address) found(address[0]);
    });
    demo.stderr.on("data", (text) => process.stderr.write(text));
    demo.once("exit", (code) => failed(new Error(`the demo ended with ${code} before it said where it is`)));
  });
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox", "--disable-background-networking"],
  });
  await theWidePageIsAlive(origin);
  await thePhonePageFits(origin);
  await anEndedJobIsShownWhole(origin);
} finally {
  await browser?.close();
  // in peace, so that it takes its files with it
  demo.kill("SIGTERM");
  await once(demo, "exit");
}
