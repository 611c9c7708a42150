// A soak: twenty clients with a connection each and two daemons, through a proxy that has another fault every second. Now
// and then a daemon is lost to kill -9, and the clocks of the clients are set an hour forward or back. Each client's account must be that of the table. SOAK_MINUTES makes it long.
import { afterAll, beforeAll, expect, it } from "vitest";
import { type Client, inChromium, inNode, type Watch } from "./support/client.ts";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { type Fault, Gateway, type Seen } from "./support/gateway.ts";
import { numbers, until, upTo } from "./support/world.ts";

const MINUTES = Number(process.env.SOAK_MINUTES ?? 0.4);
const JOBS = ["soak-a", "soak-b", "soak-c", "soak-d"];
const LIST = JOBS.map((job) => `job=${job}`).join("&");
/** The clients: of each job one in Chromium and three in Node, and of the list of all jobs one in Chromium and three in Node. */
const IN_CHROMIUM = 5;
const CLIENTS = 20;
/** A client's requests within any minute, at most: four polls a second for news, or less. A loop without pauses makes thousands. */
const MAX_REQUESTS_A_MINUTE = 240;
const HOUR_MS = 3_600_000;

/** Old answers to requests for events and streams, by their path, as a cache has them. */
const old = new Map<string, string>();
const cached = (contentType: string, { url }: Seen): Fault => {
  const body = old.get(url.pathname);
  return url.pathname.endsWith("/stream") === contentType.endsWith("stream") && body !== undefined
    ? { kind: "answer", status: 200, headers: { "Content-Type": contentType }, body }
    : null;
};
/** The faults, of which one holds for a second. */
const FAULTS: [string, (seen: Seen) => Fault][] = [
  ["none", () => null],
  ["404", () => ({ kind: "answer", status: 404 })],
  ["403", () => ({ kind: "answer", status: 403 })],
  ["a page", () => ({ kind: "answer", status: 200 })],
  ["502", () => ({ kind: "answer", status: 502 })],
  ["a redirect", () => ({ kind: "answer", status: 302, headers: { Location: "http://127.0.0.1:9/" } })],
  ["refused", () => ({ kind: "refuse" })],
  ["cut", () => ({ kind: "cut", bytes: 700 })],
  ["ended at its head", () => ({ kind: "end", bytes: 0 })],
  ["ended", () => ({ kind: "end", bytes: 900 })],
  ["in lumps", () => ({ kind: "lump", bytes: 4096 })],
  ["held", () => ({ kind: "buffer", head: false })],
  ["held with its head", () => ({ kind: "buffer", head: true })],
  ["byte by byte", () => ({ kind: "chop" })],
  ["late", () => ({ kind: "delay", ms: 700 })],
  ["polls from a cache", (seen) => cached("application/json", seen)],
  ["streams from a cache", (seen) => cached("text/event-stream", seen)],
];

let daemons: Daemon[] = [];
let proxy: Gateway;
let places: Client[] = [];
beforeAll(async () => {
  const settings = { "stream.retry": "500ms", "stream.heartbeat": "1s" };
  const first = await Daemon.start(settings);
  daemons = [first, await Daemon.start(settings, first.file)];
  proxy = await Gateway.before(() => daemons[Math.floor(Math.random() * 2)]!.origin);
  places = [await inChromium(() => proxy.origin), inNode()];
});
afterAll(async () => {
  for (const place of places) await place.stop();
  await proxy?.stop();
  for (const daemon of daemons.reverse()) await daemon.stop();
});

/** Watches a job, or all, as a client of its own: its token is its name, and nobody else has it. */
function begin(at: number): Promise<Watch> {
  const jobs = [...JOBS, JOBS][at % 5]!;
  return places[at < IN_CHROMIUM ? 0 : 1]!.watch(jobs, {
    baseUrl: proxy.origin,
    tokens: [`client-${at}`],
    heartbeatTimeoutMs: 4000,
    fallbackAfterMs: 2000,
    retry: { maxMs: 4000 },
  });
}

/** Writes each job's numbers in order, until it is stopped. A write is repeated, with its id, until it is answered. */
async function write(job: string, until: { isOver: boolean }): Promise<number> {
  for (let n = 0; ; n += 1) {
    const event = { id: `${job}-${n}`, payload: { n, text: "x".repeat(Math.floor(Math.random() * 300)) } };
    await eventually(`${job} ${n} is taken`, () => daemons[n % 2]!.write(job, [event]).then(() => true), 60_000);
    if (until.isOver) return n + 1;
    await new Promise((resolve) => setTimeout(resolve, 100 + Math.random() * 400));
  }
}

/** Keeps the answers that there are now, for later. */
async function fillCache(): Promise<void> {
  const { origin } = daemons[0]!;
  const paths = [...JOBS.map((job) => `/runner-jobs/${job}/events?`), `/runner-jobs/events?${LIST}&`];
  for (const path of paths) {
    old.set(path.split("?")[0]!, await (await fetch(`${origin}${path}ids=full`)).text());
    const stream = await fetch(`${origin}${path.replace("?", "/stream?")}ids=full`);
    const reader = stream.body!.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    while (!text.includes(": live")) text += (await reader.read()).value;
    await reader.cancel();
    old.set(`${path.split("?")[0]}/stream`, text);
  }
}

/** The most of these times that lie within one minute. */
function mostInAMinute(times: readonly number[]): number {
  let first = 0;
  return times.reduce((most, time, last) => {
    while (times[first]! < time - 60_000) first += 1;
    return Math.max(most, last - first + 1);
  }, 0);
}

/** Lets each fault hold for a second, chosen by chance. Returns the kinds that there were, and the times of each client's requests. */
async function misbehave(): Promise<{ kinds: Set<string>; requests: Map<string, number[]> }> {
  const [kinds, requests] = [new Set<string>(), new Map<string, number[]>()];
  let fault = FAULTS[0]![1];
  proxy.plan = (seen) => {
    const client = seen.headers.authorization ?? "";
    requests.set(client, [...(requests.get(client) ?? []), performance.now()]);
    return fault(seen);
  };
  let restarted = Promise.resolve();
  let offMs = 0;
  const endsAt = performance.now() + MINUTES * 60_000;
  while (performance.now() < endsAt) {
    const [name, plan] = FAULTS[Math.floor(Math.random() * FAULTS.length)]!;
    kinds.add(name);
    fault = plan;
    proxy.isFrozen = Math.random() < 0.1;
    if (Math.random() < 0.3) proxy.cut();
    // What measures time here goes by the monotonic clock. A clock that jumps forward looks like sleep.
    if (Math.random() < 0.1) {
      const others = [-HOUR_MS, 0, HOUR_MS].filter((other) => other !== offMs);
      offMs = others[Math.floor(Math.random() * others.length)]!;
      kinds.add("the time of day is set");
      for (const place of places) await place.setTimeOfDay(offMs);
    }
    // A fault holds for its second, however long the daemon takes to come back.
    if (Math.random() < 0.05)
      restarted = restarted.then(async () => {
        const daemon = daemons[Math.floor(Math.random() * 2)]!;
        await daemon.kill();
        await daemon.restart();
      });
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
  await restarted;
  for (const place of places) await place.setTimeOfDay(0);
  proxy.reset();
  return { kinds, requests };
}

it(
  `${CLIENTS} clients give a true account after ${MINUTES} min of a new fault every second`,
  async () => {
    const writing = { isOver: false };
    const writers = JOBS.map((job) => write(job, writing));
    const watches: Watch[] = [];
    for (let at = 0; at < CLIENTS; at += 1) watches.push(await begin(at));
    for (const watch of watches)
      await until(watch, "it has begun", ({ isCaughtUp, events }) => isCaughtUp && events[0]);
    await eventually("each has a connection of its own", () => proxy.openStreams === CLIENTS);
    await fillCache();
    const { kinds, requests } = await misbehave();
    writing.isOver = true;
    const written = await Promise.all(writers);
    for (const job of JOBS) await daemons[0]!.end(job);
    let states: Awaited<ReturnType<Watch["current"]>>[] = [];
    const areOver = async () => {
      states = await Promise.all(watches.map((watch) => watch.current()));
      return states.every(({ status }) => status === "complete" || status === "failed");
    };
    await eventually("all are complete", areOver, 60_000).catch((error: Error) => {
      throw new Error(`${error.message}: ${JSON.stringify(states)}`);
    });
    const seen = await Promise.all(watches.map((watch) => watch.now()));
    for (const [at, now] of seen.entries()) {
      expect([now.status, now.statuses.includes("failed") && now.errors.at(-1), now.resets], `client ${at}`).toEqual([
        "complete",
        false,
        [],
      ]);
      for (const [index, job] of JOBS.entries()) {
        const isWatched = at % 5 === index || at % 5 === JOBS.length;
        const events = now.events.filter(({ jobId }) => jobId === job);
        expect(numbers({ ...now, events }), `client ${at}`).toEqual(upTo(isWatched ? written[index]! : 0));
      }
    }
    const times = [...requests.values()];
    const mean = times.flat().length / CLIENTS / MINUTES;
    const most = Math.max(...times.map(mostInAMinute));
    console.log(
      `soak: ${kinds.size} kinds of faults, ${written.join(" + ")} events; a client's requests in a minute: ` +
        `${mean.toFixed(1)} on average, ${most} at most`,
    );
    expect(most).toBeLessThan(MAX_REQUESTS_A_MINUTE);
  },
  (MINUTES + 4) * 60_000,
);
