// Many jobs on one connection: streams of one page that share it, and streams of lists.
import { createHmac } from "node:crypto";
import type { Browser, Page } from "playwright-core";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type JobEvent, JobStream, type JobStreamOptions } from "../src/index.js";
import { closeAll, inPage, launch, newPage } from "./support/client.ts";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { Gateway, problem } from "./support/gateway.ts";
import { Random } from "./support/random.ts";
import { numbers, untilCount, upTo } from "./support/world.ts";

let daemon: Daemon;
let gateway: Gateway;
let turn = 0;
const open: Watched[] = [];

beforeAll(async () => {
  daemon = await Daemon.start({ "source.end_grace": "100ms" });
  gateway = await Gateway.before(() => daemon.origin);
});
afterEach(async () => {
  for (const { stream } of open.splice(0)) stream.close();
  gateway.reset();
  await eventually("no connection is left", () => gateway.openStreams === 0);
});
afterAll(async () => {
  await gateway?.stop();
  await daemon?.stop();
});

interface Watched {
  stream: JobStream;
  jobs: readonly string[];
  /** The numbers that have come, by the job. */
  seen: Map<string, number[]>;
  resets: { jobId: string; reason: string }[];
  statuses: string[];
}

function watch(jobs: string | readonly string[], options: JobStreamOptions = {}): Watched {
  const stream = new JobStream(jobs, {
    baseUrl: gateway.origin,
    heartbeatTimeoutMs: 5000,
    fallbackAfterMs: 2500,
    retry: { initialMs: 50, maxMs: 200 },
    ...options,
  });
  const watched: Watched = { stream, jobs: [jobs].flat(), seen: new Map(), resets: [], statuses: [] };
  stream.on("event", ({ jobId, payload }: JobEvent) => {
    const { n } = payload as { n: number };
    watched.seen.set(jobId, [...(watched.seen.get(jobId) ?? []), n]);
  });
  stream.on("reset", ({ jobId, reason }) => watched.resets.push({ jobId, reason }));
  stream.on("state", ({ status }) => watched.statuses.push(status));
  open.push(watched);
  return watched;
}

/** Returns so many new jobs, each with `count` events. */
async function makeJobs(howMany: number, count: number): Promise<string[]> {
  turn += 1;
  const jobs = Array.from({ length: howMany }, (_, index) => `set-${turn}-${index}`);
  for (const job of jobs) await daemon.number(job, 0, count);
  return jobs;
}

const has = ({ seen, jobs }: Watched, count: number) =>
  eventually(`${jobs} has ${count} events of each`, () => jobs.every((job) => (seen.get(job) ?? []).length === count));
const oneConnection = () => eventually("there is one connection", () => gateway.openStreams === 1);
const sets = () => gateway.seen.filter(({ url }) => url.pathname === "/runner-jobs/events/stream");

describe("streams of one page", () => {
  it("share one connection, and each gets its own job to its end", async () => {
    const jobs = await makeJobs(20, 5);
    const all = jobs.map((job) => watch(job));
    for (const one of all) await has(one, 5);
    expect(gateway.seen.filter(({ url }) => url.pathname.endsWith("/stream"))).toHaveLength(1);
    await eventually("all are caught up", () => all.every(({ stream }) => stream.state.isCaughtUp));
    for (const job of jobs) await daemon.number(job, 5, 3);
    await daemon.end(jobs[3]!, "FAILED");
    for (const one of all) await has(one, 8);
    await eventually("one is complete", () => all[3]!.stream.state.status === "complete");
    expect(all[3]!.stream.state.jobStatus).toBe("FAILED");
    for (const [index, { seen, resets, stream }] of all.entries()) {
      expect([seen.get(jobs[index]!), resets]).toEqual([upTo(8), []]);
      if (index !== 3) expect(stream.state.status).toBe("open");
    }
    expect(gateway.openStreams).toBe(1);
  });

  it("alone has the address of its job; with others it shares theirs, and nothing is lost or repeated", async () => {
    const jobs = await makeJobs(3, 40);
    const first = watch(jobs[0]!);
    await has(first, 40);
    expect([sets().length, gateway.streams(jobs[0]).length]).toEqual([0, 1]);
    const others = jobs.slice(1).map((job) => watch(job));
    for (const one of others) await has(one, 40);
    await oneConnection();
    for (const job of jobs) await daemon.number(job, 40, 2);
    for (const one of [first, ...others]) await has(one, 42);
    expect(first.seen.get(jobs[0]!)).toEqual(upTo(42));
    // What happened to the connection did not show.
    expect(new Set(first.statuses)).toEqual(new Set(["connecting", "open"]));
    expect([first, ...others].flatMap(({ resets }) => resets)).toEqual([]);
  });

  it("the last one that is left goes on where it stands, and so does one that comes back to its job alone", async () => {
    const jobs = await makeJobs(2, 10);
    const all = jobs.map((job) => watch(job));
    for (const one of all) await has(one, 10);
    await eventually("they have a place", () => all.every(({ stream }) => stream.state.cursor !== null));
    const requests = gateway.seen.length;
    all[1]!.stream.close();
    await eventually("the connection is for one job", () => gateway.seen.length > requests);
    await daemon.number(jobs[0]!, 10, 2);
    await has(all[0]!, 12);
    const { cursor } = all[0]!.stream.state;
    all[0]!.stream.close();
    for (const job of jobs) await daemon.number(job, job === jobs[0] ? 12 : 10, 1);
    const again = [
      watch(jobs[0]!, { from: cursor!, share: false }),
      watch(jobs[1]!, { from: all[1]!.stream.state.cursor!, share: false }),
    ];
    await eventually("they have more", () => again.every(({ seen }) => seen.size === 1));
    expect(again.map(({ seen, jobs }) => seen.get(jobs[0]!))).toEqual([[12], [10]]);
    expect([...all, ...again].flatMap(({ resets }) => resets)).toEqual([]);
  });

  it("a second stream of a job that is under way gets its whole history, too", async () => {
    const jobs = await makeJobs(2, 30);
    const all = jobs.map((job) => watch(job));
    for (const one of all) await has(one, 30);
    const again = watch(jobs[0]!);
    await has(again, 30);
    await oneConnection();
    await daemon.number(jobs[0]!, 30, 1);
    for (const one of [all[0]!, again]) {
      await has(one, 31);
      expect(one.seen.get(jobs[0]!)).toEqual(upTo(31));
    }
  });

  it("begin as each says: `from`, `last`, `types`", async () => {
    const [job, other] = await makeJobs(2, 20);
    const [all, last, now] = [watch(job!), watch(job!, { last: 3 }), watch(job!, { from: "now" })];
    const typed = watch(job!, { types: ["other.*"] });
    watch(other!);
    await has(all, 20);
    await has(last, 3);
    await eventually("they are open", () =>
      [now, typed].every(({ stream }) => stream.state.status === "open" && stream.state.isCaughtUp),
    );
    await daemon.write(job!, [{ type: "other.one", payload: { n: 20 } }]);
    await has(all, 21);
    await has(last, 4);
    await has(now, 1);
    await has(typed, 1);
    expect([last, now, typed].map(({ seen }) => seen.get(job!))).toEqual([[17, 18, 19, 20], [20], [20]]);
  });

  it("are one connection, however they begin, also where nothing happens, as many as there may be", async () => {
    const jobs = [...(await makeJobs(199, 8)), "set-waiting"];
    await daemon.end("set-waiting", "QUEUED");
    // The connection of the list is later than those of the others.
    gateway.plan = ({ url }) => (url.searchParams.get("last") === "5" ? { kind: "delay", ms: 300 } : null);
    const list = jobs.map((job) => watch(job, { last: 5 }));
    const opened = [watch(jobs[7]!), watch(jobs[199]!)];
    for (const one of list.slice(0, -1)) await has(one, 5);
    await has(opened[0]!, 8);
    await oneConnection();
    opened.push(watch(jobs[11]!));
    await has(opened[2]!, 8);
    await oneConnection();
    // One goes, and another that comes has its place.
    list.splice(20, 1)[0]?.stream.close();
    jobs.splice(20, 1);
    const [next] = await makeJobs(1, 8);
    await has(watch(next!, { last: 3 }), 3);
    await oneConnection();
    for (const job of jobs) await daemon.number(job, 8, 1);
    await eventually("they have more", () =>
      [...list, ...opened].every(({ seen, jobs }) => seen.get(jobs[0]!)?.at(-1) === 8),
    );
    expect(opened.map(({ seen, jobs }) => seen.get(jobs[0]!))).toEqual([upTo(9), [8], upTo(9)]);
    expect(list.map(({ seen, jobs }) => seen.get(jobs[0]!))).toEqual([...Array(198).fill(upTo(6, 3)), [8]]);
    expect([...list, ...opened].flatMap(({ resets }) => resets)).toEqual([]);
    expect(gateway.openStreams).toBe(1);
  });

  it("are as few connections as Jobcast and the proxies before it allow", async () => {
    const small = await Daemon.start({ "stream.max_set": "3" });
    const between = await Gateway.before(() => small.origin);
    between.plan = ({ url }) => (url.href.length > 300 ? { kind: "answer", status: 414 } : null);
    const jobs = Array.from({ length: 11 }, (_, index) => `few-${index}-${"long".repeat(index)}`);
    for (const job of jobs) await small.number(job, 0, 3);
    const all = jobs.map((job) => watch(job, { baseUrl: between.origin }));
    for (const one of all) await has(one, 3);
    await eventually("there are four connections", () => between.openStreams === 4);
    for (const job of jobs) await small.number(job, 3, 1);
    for (const one of all) await has(one, 4);
    expect(all.map(({ seen, jobs }) => seen.get(jobs[0]!))).toEqual(jobs.map(() => upTo(4)));
    expect(all.flatMap(({ resets }) => resets)).toEqual([]);
    for (const { stream } of open) stream.close();
    await between.stop();
    await small.stop();
  });

  it("have a connection of their own with `share: false`", async () => {
    const jobs = await makeJobs(3, 2);
    const all = jobs.map((job) => watch(job, { share: false }));
    for (const one of all) await has(one, 2);
    expect([gateway.openStreams, sets().length]).toEqual([3, 0]);
  });

  it("have a connection each where Jobcast knows no sets of jobs", async () => {
    gateway.plan = ({ url }) =>
      url.pathname === "/runner-jobs/events/stream" ? problem(404, "request.not_found") : null;
    const jobs = await makeJobs(3, 5);
    const all = jobs.map((job) => watch(job));
    for (const one of all) await has(one, 5);
    expect(gateway.openStreams).toBe(3);
    expect(all.every(({ stream }) => stream.state.status === "open")).toBe(true);
  });

  it("wait for a job that is not there yet, and fail alone if it may not be watched", async () => {
    const [job] = await makeJobs(1, 2);
    const all = [watch(job!), watch("set-late"), watch("set-later")];
    await has(all[0]!, 2);
    await daemon.number("set-late", 0, 3);
    await has(all[1]!, 3);
    expect(all[1]!.stream.state).toMatchObject({ status: "open", isCaughtUp: true });
    expect(all[2]!.seen.size).toBe(0);

    const secret = "a secret of the tests, with 32 bytes and more";
    const guarded = await Daemon.start({ "auth.mode": "jwt", "auth.jwt.secret": secret });
    const between = await Gateway.before(() => guarded.origin);
    const jobs = ["mine", "others", "mine-too"];
    for (const one of jobs) await guarded.number(one, 0, 2);
    const claims = { exp: Math.floor(Date.now() / 1000) + 3600, "jobcast.jobs": ["mine", "mine-too"] };
    const part = (value: unknown) => Buffer.from(JSON.stringify(value)).toString("base64url");
    const signed = `${part({ alg: "HS256" })}.${part(claims)}`;
    const token = `${signed}.${createHmac("sha256", secret).update(signed).digest("base64url")}`;
    const options = { baseUrl: between.origin, token };
    const [mine, others, mineToo] = jobs.map((one) => watch(one, options));
    const list = watch(jobs, { ...options, share: false });
    const refused = () => [others!.stream.state, list.stream.jobs.get("others")!];
    await eventually("one has failed", () => refused().every(({ status }) => status === "failed"));
    for (const { error } of refused()) expect(error).toMatchObject({ code: "auth.forbidden", retryable: false });
    for (const one of jobs) await guarded.number(one, 2, 1);
    for (const one of [mine!, mineToo!]) await has(one, 3);
    await eventually("the list has theirs", () =>
      ["mine", "mine-too"].every((one) => list.seen.get(one)?.length === 3),
    );
    expect([others!.seen.size, list.seen.has("others"), list.resets]).toEqual([0, false, []]);
    for (const { stream } of [mine!, mineToo!, list]) expect(stream.state.status).toBe("open");
    for (const { stream } of open) stream.close();
    await between.stop();
    await guarded.stop();
  });

  it("are told of a reset of their own job alone", async () => {
    const lone = await Daemon.start();
    const between = await Gateway.before(() => lone.origin);
    const jobs = ["kept", "lost", "other"];
    for (const job of jobs) await lone.number(job, 0, 3);
    const all = jobs.map((job) => watch(job, { baseUrl: between.origin }));
    for (const one of all) await has(one, 3);
    await lone.kill();
    lone.sql("DELETE FROM job_events WHERE job_id = 'lost'");
    await lone.restart();
    for (const job of jobs) await lone.number(job, 3, 1);
    await eventually("all have more", () => all.every(({ seen, jobs }) => seen.get(jobs[0]!)?.at(-1) === 3));
    expect(all.map(({ resets }) => resets.map(({ jobId }) => jobId))).toEqual([[], ["lost"], []]);
    expect(all.map(({ seen, jobs }) => seen.get(jobs[0]!))).toEqual([upTo(4), [0, 1, 2, 3], upTo(4)]);
    for (const { stream } of open) stream.close();
    await between.stop();
    await lone.stop();
  });

  it("poll with one cursor where streams do not get through", async () => {
    gateway.plan = ({ url }) => (url.pathname.endsWith("/stream") ? { kind: "buffer", head: true } : null);
    const jobs = await makeJobs(5, 3);
    const all = jobs.map((job) => watch(job, { fallbackAfterMs: 400 }));
    for (const one of all) await has(one, 3);
    await eventually("all poll", () => all.every(({ stream }) => stream.state.status === "polling"));
    for (const job of jobs) await daemon.number(job, 3, 2);
    const late = (await makeJobs(1, 4)).map((job) => watch(job, { fallbackAfterMs: 400 }));
    for (const one of all) await has(one, 5);
    await has(late[0]!, 4);
    const polls = gateway.seen.filter(({ url }) => url.pathname.endsWith("/events"));
    expect(polls.every(({ url }) => url.pathname === "/runner-jobs/events")).toBe(true);
    await daemon.end(jobs[0]!, "CANCELLED");
    await eventually("one has ended", () => all[0]!.stream.state.status === "complete");
    expect(all[0]!.stream.state.jobStatus).toBe("CANCELLED");
  });

  it("a page over HTTP/1.1 has room for other requests, however many jobs it watches", async () => {
    const jobs = await makeJobs(20, 3);
    let browser: Browser | undefined;
    let page: Page | undefined;
    try {
      browser = await launch();
      const context = await browser.newContext();
      page = await newPage(context);
      await page.goto(`${gateway.origin}/__test/observe.html`);
      const watches = [];
      for (const job of jobs) watches.push(await inPage(page, job, { baseUrl: gateway.origin }));
      for (const one of watches) expect(numbers(await untilCount(one, 3))).toEqual(upTo(3));
      const status = await page.evaluate(async () => (await fetch("/runner-jobs?limit=1")).status);
      expect(status).toBe(200);
      await oneConnection();
      for (const job of jobs) await daemon.number(job, 3, 2);
      for (const one of watches) expect(numbers(await untilCount(one, 5))).toEqual(upTo(5));
      await closeAll(context);
    } finally {
      await browser?.close();
    }
  });
});

describe("a stream of a list", () => {
  it("delivers the events of its jobs, knows each of them, and is complete when all have ended", async () => {
    const jobs = await makeJobs(4, 10);
    const list = watch(jobs);
    expect([...list.stream.jobs.keys()]).toEqual(jobs);
    await has(list, 10);
    await oneConnection();
    await daemon.end(jobs[0]!, "FAILED");
    await eventually("one has ended", () => list.stream.jobs.get(jobs[0]!)?.status === "complete");
    expect(list.stream.state).toMatchObject({ status: "open", isCaughtUp: true });
    expect(list.stream.jobs.get(jobs[0]!)?.jobStatus).toBe("FAILED");
    for (const job of jobs.slice(1)) {
      await daemon.number(job, 10, 1);
      await daemon.end(job);
    }
    await eventually("it is complete", () => list.stream.state.status === "complete");
    for (const [index, job] of jobs.entries()) expect(list.seen.get(job)).toEqual(upTo(index === 0 ? 10 : 11));
    expect([...list.stream.jobs.values()].map(({ status }) => status)).toEqual(Array(4).fill("complete"));
  });

  it("hears of a job that goes on after its end, with a late line or because it is run again, and of its next end", async () => {
    const [job, other] = await makeJobs(2, 5);
    const list = watch([job!, other!]);
    const statuses: string[] = [];
    list.stream.on("state", () => {
      const { status, jobStatus } = list.stream.jobs.get(job!)!;
      const now = `${status} ${jobStatus}`;
      if (statuses.at(-1) !== now) statuses.push(now);
    });
    const is = (expected: string) => eventually(`it is ${expected}`, () => statuses.at(-1) === expected);
    await has(list, 5);
    await daemon.end(job!, "FAILED");
    await is("complete FAILED");
    // A reconnect tells its end once more, and does not show.
    const connections = sets().length;
    const changes = statuses.length;
    gateway.cut();
    await eventually("it connects anew", () => sets().length > connections && gateway.openStreams === 1);
    await daemon.number(other!, 5, 1);
    await eventually("the other goes on", () => list.seen.get(other!)?.length === 6);
    expect(statuses).toHaveLength(changes);
    await daemon.number(job!, 5, 1);
    await eventually("the late line has come", () => list.seen.get(job!)?.length === 6);
    await is("complete FAILED");
    await daemon.end(job!, "RUNNING");
    await is("open RUNNING");
    for (let n = 6; n < 20; n += 1) await daemon.number(job!, n, 1);
    await eventually("the next run has come", () => list.seen.get(job!)?.length === 20);
    await oneConnection();
    await daemon.end(job!, "COMPLETED");
    await is("complete COMPLETED");
    await daemon.end(other!, "CANCELLED");
    await eventually("all have ended", () => list.stream.state.status === "complete");
    expect([list.seen.get(job!), list.seen.get(other!), list.resets]).toEqual([upTo(20), upTo(6), []]);
  });

  it("is read by a loop, and goes on after close() where it was", async () => {
    const jobs = await makeJobs(3, 5);
    const list = watch(jobs, { share: false });
    await has(list, 5);
    expect(gateway.openStreams).toBe(1);
    list.stream.close();
    expect(list.stream.state.status).toBe("closed");
    for (const job of jobs) await daemon.number(job, 5, 2);
    list.stream.reconnect();
    await has(list, 7);
    for (const job of jobs) expect(list.seen.get(job)).toEqual(upTo(7));
    for (const job of jobs) await daemon.end(job);
    let count = 0;
    for await (const { jobId } of new JobStream(jobs, { baseUrl: gateway.origin }))
      count += jobs.includes(jobId) ? 1 : 0;
    expect(count).toBe(21);
  });

  it("goes on from its cursor in another stream, and a new job in it begins with its history", async () => {
    const jobs = await makeJobs(3, 5);
    const before = watch(jobs.slice(0, 2));
    await has(before, 5);
    await eventually("it has a place", () => before.stream.state.cursor !== null);
    const { cursor } = before.stream.state;
    before.stream.close();
    for (const job of jobs) await daemon.number(job, 5, 1);
    const after = watch(jobs, { from: cursor! });
    await eventually("it goes on", () => after.seen.get(jobs[2]!)?.length === 6 && after.seen.size === 3);
    expect(jobs.map((job) => after.seen.get(job))).toEqual([[5], [5], upTo(6)]);
  });
});

it("whatever comes and goes on a page, each stream gets each event of its jobs once and in order", async () => {
  const random = new Random();
  const jobs = await makeJobs(10, 6);
  const written = new Map(jobs.map((job) => [job, 6]));
  const write = async (job: string, count: number) => {
    const from = written.get(job)!;
    written.set(job, from + count);
    await daemon.number(job, from, count);
  };
  const all: Watched[] = [];
  const begin = (jobs: string | string[], options?: JobStreamOptions) => all.push(watch(jobs, options));
  const steps = [
    () => begin(random.of(jobs)),
    () => begin(random.of(jobs), { last: random.below(4) }),
    () => begin(random.some(jobs, 4)),
    () => begin(random.some(jobs, 4), { share: false }),
    () => open.length > 0 && open.splice(random.below(open.length), 1)[0]?.stream.close(),
    () => open.length > 0 && random.of(open).stream.reconnect(),
    () => gateway.cut(),
    () => write(random.of(jobs), 1 + random.below(5)),
    () => write(random.of(jobs), 1 + random.below(5)),
    () => daemon.end(random.of(jobs), random.of(["FAILED", "RUNNING"])),
    () => new Promise((resume) => setTimeout(resume, random.below(30))),
  ];
  for (let step = 0; step < 250; step += 1) await random.of(steps)();
  for (const job of jobs) await daemon.end(job, "RUNNING");
  await eventually(`all are open (${random.seed})`, () => open.every(({ stream }) => stream.state.isCaughtUp), 60_000);
  for (const job of jobs) await write(job, 1);
  const isDone = ({ seen, jobs, stream }: Watched) =>
    stream.state.status === "complete" || jobs.every((job) => seen.get(job)?.at(-1) === written.get(job)! - 1);
  await eventually(`everything has come (${random.seed})`, () => open.every(isDone), 60_000);
  for (const { seen, resets, stream } of all) {
    expect(resets, random.seed).toEqual([]);
    for (const got of seen.values()) {
      expect(got, random.seed).toEqual(upTo(got.length, got[0]));
      if (stream.options.last === undefined) expect(got[0], random.seed).toBe(0);
    }
  }
  const lists = open.filter(({ stream }) => stream.options.share === false).length;
  await eventually("the others share one connection", () => gateway.openStreams <= 1 + lists, 60_000);
});
