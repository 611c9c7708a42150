// A soak: twenty clients and two daemons, through a proxy that has another fault every second and now and then loses a
// daemon to kill -9. Each client's account must be that of the table. SOAK_MINUTES=30 makes it long.
import { afterAll, beforeAll, expect, it } from "vitest";
import { type JobEvent, JobStream } from "../src/index.js";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { type Fault, Gateway, type Seen } from "./support/gateway.ts";
import { upTo } from "./support/world.ts";

const MINUTES = Number(process.env.SOAK_MINUTES ?? 1);
const JOBS = ["soak-a", "soak-b", "soak-c", "soak-d"];
const CLIENTS = 20;
/** A client's requests in a minute of nothing but faults, at most. A loop without pauses makes thousands. */
const MAX_REQUESTS_PER_MINUTE = 120;

/** Old answers of the JSON address, by its path, as a cache has them. */
const old = new Map<string, string>();
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
  [
    "from a cache",
    ({ url }) =>
      old.has(url.pathname)
        ? { kind: "answer", status: 200, headers: { "Content-Type": "application/json" }, body: old.get(url.pathname)! }
        : null,
  ],
];

class Account {
  readonly numbers: number[] = [];
  readonly statuses = new Set<string>();
  readonly stream: JobStream;
  constructor(
    readonly job: string,
    baseUrl: string,
  ) {
    this.stream = new JobStream(job, {
      baseUrl,
      heartbeatTimeoutMs: 4000,
      fallbackAfterMs: 2000,
      retry: { maxMs: 4000 },
    });
    this.stream.on("event", ({ payload }: JobEvent) => this.numbers.push((payload as { n: number }).n));
    this.stream.on("state", ({ status }) => this.statuses.add(status));
    this.stream.on("reset", () => this.statuses.add("reset"));
  }
}

let daemons: Daemon[] = [];
let proxy: Gateway;
beforeAll(async () => {
  const settings = { "stream.retry": "500ms", "stream.heartbeat": "1s" };
  const first = await Daemon.start(settings);
  daemons = [first, await Daemon.start(settings, first.file)];
  proxy = await Gateway.before(() => daemons[Math.floor(Math.random() * 2)]!.origin);
});
afterAll(async () => {
  await proxy?.stop();
  for (const daemon of daemons.reverse()) await daemon.stop();
});

/** Writes each job's numbers in order, until it is stopped. A write is repeated, with its id, until it is answered. */
function write(job: string, until: { isOver: boolean }): Promise<number> {
  return (async () => {
    for (let n = 0; ; n += 1) {
      const event = { id: `${job}-${n}`, payload: { n, text: "x".repeat(Math.floor(Math.random() * 300)) } };
      await eventually(`${job} ${n} is taken`, () => daemons[n % 2]!.write(job, [event]).then(() => true), 60_000);
      if (until.isOver) return n + 1;
      await new Promise((resolve) => setTimeout(resolve, 100 + Math.random() * 400));
    }
  })();
}

it(
  `${CLIENTS} clients give a true account after ${MINUTES} min of a new fault every second`,
  async () => {
    const writing = { isOver: false };
    const writers = JOBS.map((job) => write(job, writing));
    const accounts = Array.from({ length: CLIENTS }, (_, at) => new Account(JOBS[at % JOBS.length]!, proxy.origin));
    await eventually("all have begun", () => accounts.every(({ numbers }) => numbers.length > 0));
    for (const job of JOBS) {
      const path = `/runner-jobs/${job}/events`;
      old.set(path, await (await fetch(daemons[0]!.origin + path)).text());
    }
    const began = performance.now();
    const endsAt = began + MINUTES * 60_000;
    const used = new Set<string>();
    while (performance.now() < endsAt) {
      const [name, plan] = FAULTS[Math.floor(Math.random() * FAULTS.length)]!;
      used.add(name);
      proxy.plan = plan;
      proxy.isFrozen = Math.random() < 0.1;
      if (Math.random() < 0.3) proxy.cut();
      if (Math.random() < 0.05) {
        const daemon = daemons[Math.floor(Math.random() * 2)]!;
        await daemon.kill();
        await daemon.restart();
      }
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
    const minutes = (performance.now() - began) / 60_000;
    const requests = proxy.seen.length / CLIENTS / minutes;
    console.log(`soak: ${used.size} kinds of faults, ${requests.toFixed(1)} requests a minute and client`);
    proxy.plan = () => null;
    proxy.isFrozen = false;
    proxy.cut();
    writing.isOver = true;
    const written = await Promise.all(writers);
    for (const job of JOBS) await daemons[0]!.end(job);
    await eventually(
      "all are complete",
      () => accounts.every(({ stream }) => stream.state.status === "complete"),
      60_000,
    );
    for (const { job, numbers, statuses } of accounts) {
      expect([...statuses]).not.toContain("failed");
      expect([...statuses]).not.toContain("reset");
      expect(numbers.join()).toBe(upTo(written[JOBS.indexOf(job)]!).join());
    }
    expect(requests).toBeLessThan(MAX_REQUESTS_PER_MINUTE);
  },
  (MINUTES + 4) * 60_000,
);
