// The live page in the networks of others, and what it makes of streams that are not as they should be. `page.mjs` tries
// the rest of it on the demo.
import { randomUUID } from "node:crypto";
import { createServer, request, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { expect, it } from "vitest";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { Gateway } from "./support/gateway.ts";
import { longestTaskMs } from "./support/longest-task.mjs";
import { browser, daemon, gateway, page, usePage } from "./support/stage.ts";

/** The seconds for which 200 jobs write, and the folder that keeps a picture of the page then (`npm run page-load`). */
const LOAD_SECONDS = Number(process.env.LOAD_SECONDS ?? 5);
const { PICTURES } = process.env;

usePage();

const open = (job: string, more = "") => page.goto(`${gateway.origin}/#job=${job}${more}`);
const state = (expected: string) =>
  eventually(`it is ${expected}`, async () => (await page.getAttribute("#state", "data-state")) === expected);
const lines = () => page.locator("#pane .text").allTextContents();
const shown = (expected: string[]) =>
  eventually(`${expected} is shown`, async () => `${await lines()}` === `${expected}`);
const notice = async () => [await page.getAttribute("#notice-box", "data-tone"), await page.textContent("#notice")];
const output = (line: string) => ({ stepId: "s", payload: { line } });

/** Answers each stream with these messages, and leaves it open. */
function say(...messages: string[]): void {
  const body = messages.map((message) => `${message}\n\n`).join("");
  gateway.plan = ({ url }) => (url.pathname.endsWith("/stream") ? { kind: "stream", body } : null);
}

function event(id: string, more: object): string {
  const all = { id, jobId: "odd", stepId: null, type: "step.output", timestamp: "2026-11-25T09:00:00.000Z", ...more };
  return `id: ${id}\nevent: ${all.type}\ndata: ${JSON.stringify({ actor: null, payload: {}, ...all })}`;
}

it("works under a prefix that a proxy takes off, and shows no toys outside of the demo", async () => {
  const proxy: Server = createServer((from, to) => {
    const target = new URL((from.url ?? "").replace("/deep/prefix", ""), daemon.origin);
    const onward = request(target, {
      method: from.method,
      headers: { ...from.headers, host: target.host },
      agent: false,
    });
    onward.on("response", (answer) => {
      to.writeHead(answer.statusCode ?? 502, answer.headers).flushHeaders();
      answer.pipe(to);
    });
    onward.on("error", () => to.destroy());
    to.on("close", () => onward.destroy());
    from.pipe(onward);
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  await daemon.write("prefixed", [output("here")]);
  await page.goto(`http://127.0.0.1:${(proxy.address() as AddressInfo).port}/deep/prefix/#job=prefixed`);
  await shown(["here"]);
  await page.locator('#jobs a[href="#job=prefixed"]').waitFor();
  for (const toy of await page.locator("[data-demo]").all()) expect(await toy.isVisible()).toBe(false);
  expect(await page.locator("[data-demo]").count()).toBe(2);
  await page.close();
  proxy.closeAllConnections();
  proxy.close();
});

it("goes back to the list, and keeps a token in the address and out of its links", async () => {
  await daemon.write("first", [output("one")]);
  await daemon.write("second", [output("two")]);
  await page.goto(`${gateway.origin}/#token=t`);
  await page.locator('#jobs a[href="#job=first"]').click();
  await shown(["one"]);
  expect(page.url()).toContain("#job=first&token=t");
  await page.locator('#jobs a[href="#job=second"]').click();
  await shown(["two"]);
  await page.goBack();
  await shown(["one"]);
  await page.goBack();
  await eventually("no job is shown", async () => !(await page.isVisible("#job")));
  expect(await page.locator("#jobs section a").count()).toBeGreaterThan(1);
  expect(await page.locator('a[href*="token"]').count()).toBe(0);
});

it("keeps the chosen step in the address: a reload, or a link to it, shows its lines alone", async () => {
  for (const stepId of ["build", "test", "build"])
    await daemon.write("stepped", [{ ...output(`of ${stepId}`), stepId }]);
  await open("stepped");
  await shown(["of build", "of test", "of build"]);
  const step = page.locator("#steps button", { hasText: "test" });
  const isChosen = async () => {
    await shown(["of test"]);
    expect(new URLSearchParams(new URL(page.url()).hash.slice(1)).get("step")).toBe("test");
    await eventually("the step is pressed", async () => (await step.getAttribute("aria-pressed")) === "true");
    expect(await page.isVisible("#show-all")).toBe(true);
  };
  await step.click();
  await isChosen();
  await page.reload();
  await isChosen();
  const link = page.url();
  await page.locator("#show-all").click();
  await shown(["of build", "of test", "of build"]);
  expect(page.url()).not.toContain("step=");
  await page.goto("about:blank");
  await page.goto(link);
  await isChosen();
});

it("says which part of an event cannot be read", async () => {
  say(
    event("1", { payload: { line: "l\ufffdst" }, unreadable: ["payload"] }),
    event("2", { type: "x", unreadable: ["timestamp"] }),
  );
  await open("odd");
  await shown(["unreadable: payload l\ufffdst", "unreadable: timestamp x "]);
});

it("shows events of a source whose ids repeat", async () => {
  gateway.plan = ({ url }) => {
    if (!url.pathname.endsWith("/stream")) return null;
    const body = [1, 2].map((cursor) =>
      event("same", { payload: { line: `${cursor}` } }).replace("id: same", `id: ${cursor}`),
    );
    return { kind: "stream", body: `${body.join("\n\n")}\n\n`, headers: { "X-Jobcast-Unique": "cursor" } };
  };
  await open("odd");
  await shown(["1", "2"]);
});

it("says that history was lost, and shows what there is", async () => {
  const reset = 'event: stream.reset\ndata: {"reason":"trimmed","cursor":null}';
  say(event("1", { payload: { line: "gone" } }), reset, event("2", { payload: { line: "all there is" } }));
  await open("odd");
  await shown(["all there is"]);
  await state("live");
  const text = "The history could not be continued (trimmed). What was shown was thrown away; this is all there is.";
  expect(await notice()).toEqual(["warn", text]);
});

it("says that the store is away while Jobcast holds the stream", async () => {
  const away = { code: "source.unavailable", message: "the event store does not answer", retryable: true };
  say(event("1", { payload: { line: "before" } }), `event: stream.error\ndata: ${JSON.stringify(away)}`);
  await open("odd");
  await state("waiting");
  const text = "The event store does not answer (source.unavailable). The stream is held, and nothing gets lost.";
  expect(await notice()).toEqual(["warn", text]);
  expect(await lines()).toEqual(["before"]);
});

it("says that a right was lost, keeps what was shown, and tries again when it is told to", async () => {
  await daemon.write("secret", [output("seen")]);
  await open("secret");
  await state("live");
  gateway.plan = () => ({
    kind: "answer",
    status: 403,
    headers: { "Content-Type": "application/problem+json" },
    body: '{"code":"auth.forbidden","status":403,"detail":"no"}',
  });
  gateway.cut();
  await state("denied");
  expect(await notice()).toEqual(["bad", "You may not watch this job any more."]);
  expect(await lines()).toEqual(["seen"]);
  gateway.plan = () => null;
  await page.getByRole("button", { name: "Try again" }).click();
  await state("live");
});

it("counts down to the next try, and tries at once when it is told to", async () => {
  await daemon.write("away", [output("seen")]);
  await open("away");
  await state("live");
  gateway.plan = () => ({ kind: "answer", status: 503, headers: { "Retry-After": "600" } });
  gateway.cut();
  await eventually("it counts down", async () =>
    /Trying again in \d{3} s/.test((await page.textContent("#retry-in")) ?? ""),
  );
  gateway.plan = () => null;
  await page.getByRole("button", { name: "Try now" }).click();
  await state("live");
});

it("its list is live: the state, the progress and the last line of each job, on the one connection of the page", async () => {
  const jobs = ["live-1", "live-2", "live-3"];
  for (const job of jobs) await daemon.write(job, [{ type: "job.started", payload: { name: `Job ${job}` } }]);
  await open("live-1");
  await state("live");
  const last = (job: string) => page.locator(`#jobs a[href="#job=${job}"] .last`).textContent();
  const lastIs = (job: string, expected: string) =>
    eventually(`the last line of ${job} is ${expected}`, async () => (await last(job)) === expected);
  for (const job of jobs) await daemon.write(job, [output(`\u001b[31mred\u001b[0m of ${job}`)]);
  for (const job of jobs) await lastIs(job, `red of ${job}`);
  await shown(["job started · Job live-1", "red of live-1"]);
  await daemon.write("live-2", [{ type: "step.progress", stepId: "s", payload: { percent: 42 } }]);
  const link = page.locator('#jobs a[href="#job=live-2"]');
  await eventually("progress is shown", () => link.locator(".progress").isVisible());
  expect(await link.textContent()).toContain("running 42 %");
  await daemon.end("live-3", "FAILED");
  await eventually("it is among the ended ones", () =>
    page.locator('section:has(h2:text("Ended")) a[href="#job=live-3"][data-status="FAILED"]').isVisible(),
  );
  await eventually("there is one connection", () => gateway.openStreams === 1);
  // Another job is opened, with all of its output, and the connection is one again.
  await page.goto(`${gateway.origin}/#job=live-2`);
  await eventually("its output is shown", async () => (await lines()).includes("red of live-2"));
  await daemon.write("live-2", [output("more")]);
  await eventually("more is shown", async () => (await lines()).at(-1) === "more");
  await lastIs("live-2", "more");
  await eventually("there is one connection", () => gateway.openStreams === 1);
});

it("shows that a job is run again after its end, in its list and in its picture", async () => {
  for (const job of ["again-1", "again-2"]) {
    await daemon.write(job, [output("first")]);
    await daemon.end(job, "FAILED");
  }
  await open("again-1");
  await state("complete");
  const link = (job: string) => page.locator(`section:has(h2:text("Running")) a[href="#job=${job}"]`);
  const lists = () => gateway.seen.filter(({ url }) => url.pathname === "/runner-jobs").length;
  const before = lists();
  await eventually("the list has been read since they ended", () => lists() > before + 1);
  for (const job of ["again-1", "again-2"]) {
    await daemon.end(job, "RUNNING");
    await daemon.write(job, [output("second")]);
  }
  await state("live");
  await shown(["first", "second"]);
  expect(await page.getAttribute("#job-status", "data-status")).toBe("RUNNING");
  expect(await page.textContent("#notice")).toBe("");
  for (const job of ["again-1", "again-2"])
    await eventually(`${job} is running`, async () => (await link(job).locator(".last").textContent()) === "second");
});

it("shows what happens after the end of a job between two reads of the list: a run that goes on, and a whole one", async () => {
  const jobs = ["between-1", "between-2"];
  for (const job of jobs) await daemon.write(job, [output("first")]);
  await open("between-1");
  await state("live");
  const link = (group: string, job: string) =>
    page.locator(`section:has(h2:text("${group}")) a[href="#job=${job}"] .last`);
  const listed = async (group: string, line: string) => {
    for (const job of jobs)
      await eventually(
        `${job} is among ${group} with ${line}`,
        async () => (await link(group, job).textContent()) === line,
      );
  };
  const setAll = (status: string) => Promise.all(jobs.map((job) => daemon.end(job, status)));
  const writeAll = (line: string) => Promise.all(jobs.map((job) => daemon.write(job, [output(line)])));
  await listed("Running", "first");
  const withoutList: typeof gateway.plan = ({ url }) =>
    url.pathname === "/runner-jobs" ? { kind: "answer", status: 503 } : null;
  gateway.plan = withoutList;
  await setAll("FAILED");
  await state("complete");
  await listed("Ended", "first");
  await setAll("RUNNING");
  await writeAll("second");
  gateway.plan = () => null;
  await state("live");
  await shown(["first", "second"]);
  await listed("Running", "second");
  await setAll("FAILED");
  await state("complete");
  await listed("Ended", "second");
  gateway.plan = withoutList;
  await setAll("RUNNING");
  await writeAll("third");
  await setAll("FAILED");
  gateway.plan = () => null;
  await shown(["first", "second", "third"]);
  await listed("Ended", "third");
  await state("complete");
});

it("with 200 jobs at 200 events a second it has one connection, and no task of more than 50 ms", async () => {
  const many = await Daemon.start();
  const between = await Gateway.before(() => many.origin);
  const jobs = Array.from({ length: 200 }, () => randomUUID());
  await many.number("old", 0, 1);
  for (const [index, job] of jobs.entries())
    await many.write(job, [{ type: "job.started", payload: { name: `Build ${index}` } }, output("compiling")]);
  // It shows an older job than those in its list, and then one of them.
  await page.goto(`${between.origin}/#job=old`);
  await eventually("all jobs are listed", async () => (await page.locator("#jobs section a .last").count()) === 200);
  await eventually("all have their last line", async () => {
    const texts = await page.locator("#jobs section a .last").allTextContents();
    return texts.filter((text) => text !== "").length >= 199;
  });
  await eventually("there is one connection", () => between.openStreams === 1);
  await page.goto(`${between.origin}/#job=${jobs[3]}`);
  await shown(["job started · Build 3", "compiling"]);
  await eventually("there is one connection", () => between.openStreams === 1);
  await page.evaluate(() => {
    const entries: number[] = [];
    new PerformanceObserver((list) => entries.push(...list.getEntries().map(({ duration }) => duration))).observe({
      type: "longtask",
    });
    Object.assign(window, { longTasks: entries });
  });
  await browser.startTracing(page, { categories: ["toplevel"] });
  const began = Date.now();
  for (let second = 0; second < LOAD_SECONDS; second += 1) {
    for (let part = 0; part < 10; part += 1) {
      const of = Array.from({ length: 20 }, (_, index) => jobs[(part * 20 + index) % 200]!);
      await Promise.all(of.map((job) => many.write(job, [output(`line ${second} of ${job}`)])));
      await page.waitForTimeout(Math.max(0, began + (second * 10 + part + 1) * 100 - Date.now()));
    }
  }
  await eventually("the last lines are shown", async () => {
    const texts = await page.locator("#jobs section a .last").allTextContents();
    return texts.every((text) => text.startsWith(`line ${LOAD_SECONDS - 1} of`));
  });
  const tookMs = Date.now() - began;
  const taskMs = longestTaskMs(await browser.stopTracing());
  // The browser's own count goes by the clock on the wall, in which other programs on the machine have their part.
  const long = await page.evaluate(() => (window as unknown as { longTasks: number[] }).longTasks);
  const rate = Math.round((200 * LOAD_SECONDS * 1000) / tookMs);
  console.log(
    `200 jobs at ${rate} events a second for ${LOAD_SECONDS} s: no task took more than ${Math.round(taskMs)} ms of the thread's time; ` +
      `${long.length} long tasks by PerformanceObserver${long.length > 0 ? `, up to ${Math.max(...long)} ms` : ""}`,
  );
  if (PICTURES) await page.screenshot({ path: join(PICTURES, "page-load.png") });
  expect(taskMs).toBeLessThan(50);
  expect(between.openStreams).toBe(1);
  await page.close();
  await between.stop();
  await many.stop();
});

it("says of a login page that answers for the list what it is", async () => {
  gateway.plan = ({ url }) =>
    url.pathname === "/runner-jobs"
      ? { kind: "answer", status: 200, headers: { "Content-Type": "text/html" }, body: "<h1>Sign in</h1>" }
      : null;
  await page.goto(gateway.origin);
  await page.getByText("answered by something else than Jobcast (200, text/html)").waitFor();
});
