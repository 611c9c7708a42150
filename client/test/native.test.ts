// Fifty jobs on one EventSource of the browser's own, without this client: what `Last-Event-ID` alone promises.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, expect, it } from "vitest";
import { launch } from "./support/client.ts";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { Gateway, PAGES } from "./support/gateway.ts";
import { Random } from "./support/random.ts";
import { upTo } from "./support/world.ts";

const JOBS = Array.from({ length: 50 }, (_, index) => `native-${index}`);
const ADDRESS = `/runner-jobs/events/stream?${JOBS.map((job) => `job=${job}`).join("&")}`;
const CONNECTIONS = 40;
/** A browser asks for no preflight with a longer id, and some proxies refuse one. */
const MAX_ID_BYTES = 128;

let daemons: Daemon[] = [];
let proxy: Gateway;
/** The number of connections that the page has made. */
const connections = () => proxy.streams().length;

beforeAll(async () => {
  const first = await Daemon.start();
  daemons = [first, await Daemon.start({}, first.file)];
  proxy = await Gateway.before(() => daemons[connections() % 2]!.origin);
});
afterAll(async () => {
  await proxy?.stop();
  for (const daemon of daemons.reverse()) await daemon.stop();
});

/** Writes each job's numbers from 2 on in order, a few of a job at a time, until it is stopped. Returns how many each job has. */
async function write(random: Random, until: { isOver: boolean }): Promise<Map<string, number>> {
  const written = new Map(JOBS.map((job) => [job, 2]));
  const next = async (job: string) => {
    const count = 1 + random.below(3);
    await random.of(daemons).number(job, written.get(job)!, count, "x".repeat(random.below(200)));
    written.set(job, written.get(job)! + count);
  };
  while (!until.isOver) {
    await Promise.all(random.some(JOBS, 5).map(next));
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
  for (const job of JOBS) await next(job);
  return written;
}

it(`an EventSource on ${JOBS.length} jobs has each event once and in order, over ${CONNECTIONS} connections that break, to two daemons by turns`, async () => {
  const random = new Random();
  writeFileSync(
    join(PAGES, "native.html"),
    `<!doctype html><title>native</title><link rel="icon" href="data:,"><script>
      const seen = new Map();
      const source = new EventSource(${JSON.stringify(ADDRESS)});
      let events = 0;
      let resets = 0;
      let longest = 0;
      source.addEventListener("step.output", ({ data, lastEventId }) => {
        const { jobId, payload } = JSON.parse(data);
        if (!seen.has(jobId)) seen.set(jobId, []);
        seen.get(jobId).push(payload.n);
        events += 1;
        longest = Math.max(longest, new TextEncoder().encode(lastEventId).length);
      });
      source.addEventListener("stream.reset", () => { resets += 1; });
      const now = () => ({ events, resets, longest });
      const newest = () => [...seen].map(([job, numbers]) => [job, numbers.at(-1)]);
    </script>`,
  );
  for (const job of JOBS) await daemons[0]!.number(job, 0, 2);
  const writing = { isOver: false };
  const written = write(random, writing);
  const browser = await launch();
  try {
    const page = await browser.newPage();
    const now = () => page.evaluate("now()") as Promise<Record<"events" | "resets" | "longest", number>>;
    // Every third connection breaks after so many bytes: before its first event, or in the middle of one.
    proxy.plan = () => (connections() % 3 === 0 ? { kind: "cut", bytes: 1 + random.below(10_000) } : null);
    await page.goto(`${proxy.origin}/__test/native.html`);
    for (let number = 1; number <= CONNECTIONS; number = connections()) {
      const { events } = await now();
      const hasBroken = () => connections() > number;
      if (number % 3 > 0) {
        const hasNews = async () => proxy.openStreams > 0 && (await now()).events > events;
        await eventually(`connection ${number} brings news (${random.seed})`, hasNews);
        proxy.cut();
      }
      await eventually(`the browser connects after connection ${number} (${random.seed})`, hasBroken);
    }
    writing.isOver = true;
    const counts = await written;
    await eventually(`all has come (${random.seed})`, async () => {
      const newest = new Map((await page.evaluate("newest()")) as [string, number][]);
      return JOBS.every((job) => newest.get(job) === counts.get(job)! - 1);
    });
    const numbers = new Map((await page.evaluate("[...seen]")) as [string, number[]][]);
    for (const job of JOBS) expect(numbers.get(job), `${job} ${random.seed}`).toEqual(upTo(counts.get(job)!));
    const { resets, longest } = await now();
    expect(resets).toBe(0);
    expect(longest).toBeLessThanOrEqual(MAX_ID_BYTES);
    const [first, ...later] = proxy.streams().map(({ headers }) => headers["last-event-id"]);
    expect([first, later.filter((id) => id === undefined)]).toEqual([undefined, []]);
  } finally {
    writing.isOver = true;
    await Promise.allSettled([written]);
    await browser.close();
  }
}, 180_000);
