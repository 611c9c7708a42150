// Many EventSources of the browser's own, each on the same fifty jobs, whose connections break at any byte, again and again: over
// two daemons by turns, on each store, while sixteen writers write. BREAKS says how often on all stores together.
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Page } from "playwright-core";
import { expect, it } from "vitest";
import { launch } from "./support/client.ts";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { Gateway, PAGES } from "./support/gateway.ts";
import { Postgres } from "./support/postgres.ts";
import { Random } from "./support/random.ts";
import { Redis } from "./support/redis.ts";

const BREAKS = Number(process.env.BREAKS ?? 300);
const JOBS = Array.from({ length: 50 }, (_, index) => `broken-${index}`);
const ADDRESS = `/runner-jobs/events/stream?${JOBS.map((job) => `job=${job}`).join("&")}`;
const WRITERS = 16;
/** A writer waits for less than this before each write. */
const PAUSE_MS = 600;
/** A browser opens six connections to a host: each page has one of its own. */
const HOSTS = 6;
const SOURCES_OF_A_PAGE = 5;
/** A connection breaks after fewer bytes of its stream than this: before its first event, or in the midst of one. */
const MOST_BYTES = 12_000;
/** A browser asks for no preflight with a longer id, and some proxies refuse one. */
const MAX_ID_BYTES = 128;
/** A break takes no longer, however busy the machine is. */
const PATIENCE_MS = 60_000 + BREAKS * 400;

interface Store {
  readonly name: string;
  /** The share of ids that may be longer than a browser sends unasked. */
  readonly longIds: number;
  start(): Promise<{ settings: Record<string, string>; stop(): unknown }>;
}

const INGEST = { "ingest.enabled": "true", "stream.retry": "20ms" };
const STORES: Store[] = [
  { name: "SQLite", longIds: 0, start: async () => ({ settings: INGEST, stop: () => {} }) },
  {
    name: "PostgreSQL",
    longIds: 0.05,
    async start() {
      const server = await Postgres.start();
      const settings = { ...INGEST, "source.kind": "postgres", "source.postgres.url": server.url };
      return { settings, stop: () => server.stop() };
    },
  },
  {
    name: "Redis",
    longIds: 1,
    async start() {
      const server = await Redis.start();
      const settings = { ...INGEST, "source.kind": "redis", "source.redis.url": server.url };
      return { settings, stop: () => server.stop() };
    },
  },
];

/** What one EventSource has been given. */
interface Account {
  /** The number that comes next of each job. */
  next: [string, number][];
  /** Events that did not come in their turn. */
  wrong: string[];
  /** Words of Jobcast's own that a reader who lacks nothing is never told. */
  said: string[];
  isClosed: boolean;
  ids: { all: number; long: number; longest: number };
}

const SCRIPT = `
  const accounts = Array.from({ length: ${SOURCES_OF_A_PAGE} }, () => {
    const next = new Map();
    const account = { wrong: [], said: [], ids: { all: 0, long: 0, longest: 0 } };
    const source = new EventSource(${JSON.stringify(ADDRESS)});
    source.addEventListener("step.output", ({ data, lastEventId }) => {
      const { jobId, payload } = JSON.parse(data);
      const expected = next.get(jobId) ?? 0;
      if (payload.n !== expected) account.wrong.push(jobId + ": " + payload.n + " instead of " + expected);
      next.set(jobId, payload.n + 1);
      account.ids.all += 1;
      account.ids.long += lastEventId.length > ${MAX_ID_BYTES} ? 1 : 0;
      account.ids.longest = Math.max(account.ids.longest, lastEventId.length);
    });
    for (const kind of ["stream.reset", "stream.error", "stream.bye", "stream.complete"])
      source.addEventListener(kind, ({ data }) => account.said.push(kind + " " + data));
    return () => ({ ...account, next: [...next], isClosed: source.readyState === EventSource.CLOSED });
  });`;

/** Writes each job's numbers from 1 on in order, a few at a time, until it is stopped. Returns how many each job has. */
async function write(daemons: Daemon[], random: Random, until: { isOver: boolean }): Promise<Map<string, number>> {
  const written = new Map(JOBS.map((job) => [job, 1]));
  const one = async (writer: number) => {
    const own = JOBS.filter((_, index) => index % WRITERS === writer);
    while (!until.isOver) {
      const [job, count] = [random.of(own), 1 + random.below(3)];
      await random.of(daemons).number(job, written.get(job)!, count, "x".repeat(random.below(200)));
      written.set(job, written.get(job)! + count);
      await new Promise((resolve) => setTimeout(resolve, random.below(PAUSE_MS)));
    }
  };
  await Promise.all(Array.from({ length: WRITERS }, (_, writer) => one(writer)));
  return written;
}

async function run(store: Store, breaks: number): Promise<void> {
  const random = new Random();
  const { settings, stop } = await store.start();
  const first = await Daemon.start(settings);
  const daemons = [first, await Daemon.start(settings, first.file)];
  const proxy: Gateway = await Gateway.before(() => daemons[connections() % 2]!.origin);
  const connections = () => proxy.streams().length;
  writeFileSync(
    join(PAGES, "reconnects.html"),
    `<!doctype html><title>reconnects</title><link rel="icon" href="data:,"><script>${SCRIPT}</script>`,
  );
  const browser = await launch(
    "--host-resolver-rules=MAP *.test 127.0.0.1",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
  );
  for (const job of JOBS) await first.number(job, 0, 1);
  const writing = { isOver: false };
  const written = write(daemons, random, writing);
  try {
    proxy.breaksWithoutDaemon = true;
    proxy.plan = () => ({ kind: "cut", bytes: 1 + random.below(MOST_BYTES) });
    const pages: Page[] = [];
    const { port } = new URL(proxy.origin);
    for (let host = 0; host < HOSTS; host += 1) {
      const page = await browser.newPage();
      await page.goto(`http://host-${host}.test:${port}/__test/reconnects.html`);
      pages.push(page);
    }
    const accounts = async () =>
      (await Promise.all(pages.map((page) => page.evaluate("accounts.map((now) => now())")))).flat() as Account[];
    const sources = HOSTS * SOURCES_OF_A_PAGE;
    await eventually(`${breaks} breaks (${random.seed})`, () => connections() - sources >= breaks, PATIENCE_MS);
    const broken = connections() - sources;
    proxy.plan = () => null;
    writing.isOver = true;
    const counts = await written;
    // Whoever waits for the bytes after which it breaks has come far enough, or is cut once more.
    proxy.cut();
    await eventually(
      `all has come (${random.seed})`,
      async () => {
        const all = await accounts();
        return all.every(({ next, wrong, isClosed }) => {
          const has = new Map(next);
          return wrong.length > 0 || isClosed || JOBS.every((job) => (has.get(job) ?? 0) >= counts.get(job)!);
        });
      },
      PATIENCE_MS,
    );
    const all = await accounts();
    for (const { next, wrong, said, isClosed } of all) {
      expect([wrong, said, isClosed], random.seed).toEqual([[], [], false]);
      expect(new Map(next), random.seed).toEqual(counts);
    }
    const ids = all.map((account) => account.ids);
    const [given, long] = [ids.reduce((sum, { all }) => sum + all, 0), ids.reduce((sum, { long }) => sum + long, 0)];
    const longest = Math.max(...ids.map((id) => id.longest));
    const resumes = proxy.streams().flatMap(({ headers }) => headers["last-event-id"] ?? []);
    const longResumes = resumes.filter((id) => id.length > MAX_ID_BYTES).length;
    const events = [...counts.values()].reduce((sum, count) => sum + count, 0);
    console.log(
      `${store.name}: ${sources} EventSources, ${broken} breaks, ${events} events, ${given} received; ` +
        `${long} ids over ${MAX_ID_BYTES} bytes, longest ${longest}; ${longResumes} of ${resumes.length} resumes by such; ` +
        `${proxy.unanswered} requests unanswered`,
    );
    expect(long / given).toBeLessThanOrEqual(store.longIds);
  } finally {
    writing.isOver = true;
    await Promise.allSettled([written]);
    await browser.close();
    await proxy.stop();
    for (const daemon of daemons.reverse()) await daemon.stop();
    await stop();
  }
}

for (const store of STORES)
  it(
    `EventSources on ${JOBS.length} jobs have each event once and in order, over connections that break again and again, on ${store.name}`,
    () => run(store, Math.ceil(BREAKS / STORES.length)),
    2 * PATIENCE_MS + 60_000,
  );
