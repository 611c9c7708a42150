// The recipe for a language model's answer: its writer, its settings and its page, as they are.
import { execFile } from "node:child_process";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { join } from "node:path";
import { promisify } from "node:util";
import { transform } from "esbuild";
import type { Browser, BrowserContext, Page } from "playwright-core";
import { afterAll, beforeAll, expect, it } from "vitest";
import { closeAll, launch, newPage } from "./support/client.ts";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { PAGES } from "./support/gateway.ts";
import { Redis } from "./support/redis.ts";

const run = promisify(execFile);
const RECIPE = join(import.meta.dirname, "../../recipes/llm-answer");
const { PICTURES } = process.env;
/** The writer, where it finds the packages of this folder. */
const WRITER = join(PAGES, "recipe/writer.mjs");
interface Writer {
  write(answerId: string, pieces: AsyncIterable<string>): Promise<void>;
  close(): Promise<void>;
}

let redis: Redis;
let daemon: Daemon;
let site: Server;
let browser: Browser;
let context: BrowserContext;
let writer: Writer;
let origin = "";

beforeAll(async () => {
  site = createServer((_, answer) => {
    const html = readFileSync(join(RECIPE, "page.html"), "utf8").replaceAll("http://localhost:8080", daemon.origin);
    answer.writeHead(200, { "Content-Type": "text/html" }).end(html);
  });
  await new Promise<void>((resolve) => site.listen(0, "127.0.0.1", resolve));
  origin = `http://127.0.0.1:${(site.address() as AddressInfo).port}`;
  redis = await Redis.start();
  daemon = await Daemon.start({
    config: join(RECIPE, "jobcast.toml"),
    "source.redis.url": redis.url,
    "http.cors.origins": origin,
  });
  mkdirSync(join(PAGES, "recipe"), { recursive: true });
  const { code } = await transform(readFileSync(join(RECIPE, "writer.ts"), "utf8"), { loader: "ts" });
  writeFileSync(WRITER, code);
  process.env.REDIS_URL = redis.url;
  writer = await import(WRITER);
  browser = await launch();
  context = await browser.newContext();
});
afterAll(async () => {
  if (context) await closeAll(context);
  await browser?.close();
  await writer?.close();
  await daemon?.stop();
  redis?.stop();
  site?.close();
});

async function open(id: string): Promise<Page> {
  const page = await newPage(context);
  await page.goto(`${origin}/?id=${id}`);
  return page;
}
const shows = (page: Page, answer: string, state: string) =>
  eventually(`the page shows "${answer}", ${state}`, async () => {
    const shown = [await page.textContent("#answer"), await page.textContent("#state")];
    return `${shown}` === `${[answer, state]}`;
  });
async function picture(page: Page, name: string): Promise<void> {
  if (PICTURES) await page.screenshot({ path: join(PICTURES, `llm-answer-${name}.png`) });
}

/** An answer of which each piece comes when it is told to. */
class Model implements AsyncIterable<string> {
  readonly #pieces: string[] = [];
  #end: "none" | "well" | "badly" = "none";
  say(...pieces: string[]): void {
    this.#pieces.push(...pieces);
  }
  end(how: "well" | "badly"): void {
    this.#end = how;
  }
  async *[Symbol.asyncIterator](): AsyncGenerator<string> {
    for (;;) {
      await eventually("the model goes on", () => this.#pieces.length > 0 || this.#end !== "none");
      const piece = this.#pieces.shift();
      if (piece !== undefined) yield piece;
      else if (this.#end === "well") return;
      else throw new Error("the model broke");
    }
  }
}

it("an answer comes piece by piece, and a reload or a second device in the middle of it loses nothing", async () => {
  const model = new Model();
  const written = writer.write("a", model);
  model.say("Hel", "lo, ", "42");
  const page = await open("a");
  await shows(page, "Hello, 42", "open");
  model.say("\n<b>not HTML</b> ", "true");
  const soFar = "Hello, 42\n<b>not HTML</b> true";
  await shows(page, soFar, "open");
  await picture(page, "open");
  await page.reload();
  const second = await open("a");
  for (const one of [page, second]) await shows(one, soFar, "open");
  model.say(" null", " 😀");
  model.end("well");
  await written;
  const whole = `${soFar} null 😀`;
  for (const one of [page, second]) await shows(one, whole, "COMPLETED");
  await page.reload();
  await shows(page, whole, "COMPLETED");
  await picture(page, "completed");
});

it("an answer that breaks off says so, and keeps what there is", async () => {
  const model = new Model();
  const written = writer.write("broken", model).catch((error: Error) => error.message);
  model.say("Once upon a");
  const page = await open("broken");
  await shows(page, "Once upon a", "open");
  model.end("badly");
  await shows(page, "Once upon a", "FAILED");
  expect(await written).toBe("the model broke");
});

it("the writer by itself writes an answer, which its page shows", async () => {
  await run("node", [WRITER], { env: { ...process.env, REDIS_URL: redis.url } });
  const page = await newPage(context);
  await page.goto(origin);
  await shows(page, "Hello, 42!", "COMPLETED");
});

/** Uses the writer in Python as a program would: one answer to its end, and one that breaks off. */
const IN_PYTHON = `
import writer

def broken():
    yield "Once upon a"
    raise RuntimeError("the model broke")

writer.write("python", iter(["Hel", "lo, ", "42", "\\n<b>not HTML</b> ", "true", " 😀"]))
try:
    writer.write("python-broken", broken())
except RuntimeError as error:
    print(error)
`;

it("the writer in Python does the same: an answer to its end, and one that breaks off", async () => {
  const env = { ...process.env, REDIS_URL: redis.url, PYTHONDONTWRITEBYTECODE: "1" };
  // The interpreter of the system has the packages of the system.
  const { stdout } = await run("/usr/bin/python3", ["-c", IN_PYTHON], { cwd: RECIPE, env });
  expect(stdout).toBe("the model broke\n");
  await shows(await open("python"), "Hello, 42\n<b>not HTML</b> true 😀", "COMPLETED");
  await shows(await open("python-broken"), "Once upon a", "FAILED");
});
