// Over HTTPS a browser speaks HTTP/2, over which its streams share one connection.
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import type { Browser } from "playwright-core";
import { afterAll, beforeAll, expect, it } from "vitest";
import { launch } from "./support/client.ts";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { upTo } from "./support/world.ts";

const STREAMS = 120;
const folder = mkdtempSync(join(tmpdir(), "jobcast-tls-"));
let daemon: Daemon;
let browser: Browser;

beforeAll(async () => {
  const [cert, key] = [join(folder, "cert.pem"), join(folder, "key.pem")];
  const make = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost";
  execFileSync("openssl", [...make.split(" "), "-out", cert, "-keyout", key], { stdio: "ignore" });
  daemon = await Daemon.start({ "http.tls.cert": cert, "http.tls.key": key });
  browser = await launch("--ignore-certificate-errors");
});
afterAll(async () => {
  await browser?.close();
  await daemon?.stop();
  rmSync(folder, { recursive: true, force: true });
});

/** A stream of the page, as the script in the page leaves it in the window. */
interface Source {
  numbers: number[];
  isOpen: boolean;
}
declare global {
  interface Window {
    sources: Source[];
    number(from: number, count: number): Promise<number>;
  }
}

it("a page opens 120 streams of one host at once, and each gets every event", async () => {
  const page = await browser.newPage();
  await page.goto(`${daemon.origin}/openapi.json`);
  await page.evaluate(() => {
    window.number = async (from, count) => {
      const events = Array.from({ length: count }, (_, index) => ({
        type: "step.output",
        payload: { n: from + index },
      }));
      const headers = { "Content-Type": "application/json" };
      const answer = await fetch("/runner-jobs/job/events", { method: "POST", headers, body: JSON.stringify(events) });
      return answer.status;
    };
  });
  expect(await page.evaluate(() => window.number(0, 5))).toBe(201);
  await page.evaluate((count) => {
    window.sources = Array.from({ length: count }, () => {
      const seen: Source = { numbers: [], isOpen: false };
      const source = new EventSource("/runner-jobs/job/events/stream");
      source.onopen = () => {
        seen.isOpen = true;
      };
      source.addEventListener("step.output", (event) => {
        seen.numbers.push(JSON.parse(event.data).payload.n);
      });
      return seen;
    });
  }, STREAMS);
  const seen = () => page.evaluate(() => window.sources);
  await eventually("all streams are open", async () => (await seen()).every((stream) => stream.isOpen));
  // With six connections to a host, nothing would be left for this request.
  expect(await page.evaluate(() => window.number(5, 50))).toBe(201);
  await eventually("all events are there", async () => (await seen()).every((stream) => stream.numbers.length >= 55));
  for (const stream of await seen()) expect(stream.numbers).toEqual(upTo(55));
  const protocols = await page.evaluate(() =>
    performance.getEntriesByType("resource").map((entry) => (entry as PerformanceResourceTiming).nextHopProtocol),
  );
  expect(new Set(protocols)).toEqual(new Set(["h2"]));
  expect(await daemon.subscribers()).toBe(STREAMS);
});
