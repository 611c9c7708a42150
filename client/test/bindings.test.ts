// The bindings for Vue, Svelte and Solid, each in its real framework.
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { pathToFileURL } from "node:url";
import { build } from "esbuild";
import { createComponent } from "solid-js";
import { renderToString as renderSolid } from "solid-js/web";
import { afterAll, afterEach, beforeEach, describe, expect, it, vi } from "vitest";
import { createSSRApp, h } from "vue";
import { renderToString as renderVue } from "vue/server-renderer";
import { createJobStream } from "../src/solid.js";
import { useJobStream } from "../src/vue.js";
import { eventually } from "./support/eventually.ts";
import { daemon, gateway, page, usePage } from "./support/stage.ts";
import { svelte } from "./support/svelte.ts";

usePage();

const show = (jobId: string | null) => page.evaluate((id) => window.binding.show(id), jobId);
const numbers = async () => (await page.locator("li").allTextContents()).map((text) => JSON.parse(text).n);
const shown = (expected: number[]) =>
  eventually(`${expected} are shown`, async () => `${await numbers()}` === `${expected}`);
const status = (expected: string) =>
  eventually(`it is ${expected}`, async () => (await page.locator("h2").textContent()) === expected);

describe.each(["vue", "svelte", "solid"])("%s", (name) => {
  beforeEach(async () => {
    await page.goto(`${gateway.origin}/__test/${name}.html`);
    await status("closed");
  });

  it("shows a job as it happens, through a lost connection, to its end", async () => {
    const job = `${name}-1`;
    await daemon.number(job, 0, 3);
    await show(job);
    await shown([0, 1, 2]);
    await status("open");
    gateway.cut();
    await daemon.number(job, 3, 2);
    await shown([0, 1, 2, 3, 4]);
    await daemon.end(job);
    await status("complete");
  });

  it("shows another job when the id changes, and leaves no connection behind", async () => {
    await daemon.number(`${name}-2`, 0, 2);
    await daemon.number(`${name}-3`, 7, 2);
    await show(`${name}-2`);
    await shown([0, 1]);
    await show(`${name}-3`);
    await shown([7, 8]);
    await eventually("one connection is left", () => gateway.openStreams === 1);
    await show(null);
    await status("closed");
    await shown([]);
    await eventually("no connection is left", () => gateway.openStreams === 0);
    await show(`${name}-3`);
    await shown([7, 8]);
    await page.evaluate(() => window.binding.leave());
    await eventually("no connection is left", () => gateway.openStreams === 0);
  });

  it("shows many jobs on one connection, and a list that changes keeps what stays in it", async () => {
    const jobs = [5, 6, 7, 8].map((number) => `${name}-${number}`);
    for (const job of jobs) await daemon.number(job, 0, 3);
    const showAll = (ids: string[]) => page.evaluate((ids) => window.binding.showAll(ids), ids);
    const all = () =>
      page.locator("p").evaluateAll((rows) => rows.map(({ id, textContent }) => `${id}: ${textContent}`));
    const shown = (expected: string[]) =>
      eventually(`${expected} is shown`, async () => `${await all()}` === `${expected}`);
    await showAll(jobs.slice(0, 3));
    await shown(jobs.slice(0, 3).map((job) => `${job}: 0,1,2`));
    await showAll(jobs.slice(1));
    for (const job of jobs) await daemon.number(job, 3, 1);
    await shown(jobs.slice(1).map((job) => `${job}: 0,1,2,3`));
    await eventually("there is one connection", () => gateway.openStreams === 1);
    await showAll([]);
    await shown([]);
    await eventually("no connection is left", () => gateway.openStreams === 0);
  });

  it("connects anew after it was refused", async () => {
    const job = `${name}-4`;
    await daemon.number(job, 0, 1);
    gateway.plan = () => ({ kind: "answer", status: 403 });
    await show(job);
    await status("failed");
    gateway.plan = () => null;
    await page.getByText("Again").click();
    await shown([0]);
  });
});

describe("on the server", () => {
  const fetched = vi.spyOn(globalThis, "fetch");
  const folder = mkdtempSync(join(tmpdir(), "jobcast-svelte-"));
  beforeEach(() => void fetched.mockClear());
  afterEach(() => expect(fetched).not.toHaveBeenCalled());
  afterAll(() => {
    fetched.mockRestore();
    rmSync(folder, { recursive: true });
  });

  it("Vue renders that it connects, and asks for nothing", async () => {
    const app = createSSRApp({
      setup: () => {
        const { job } = useJobStream("of-the-server", { baseUrl: "http://127.0.0.1:1" });
        return () => h("p", job.value.state.status);
      },
    });
    expect(await renderVue(app)).toBe("<p>connecting</p>");
  });

  it("Solid renders that it connects, and asks for nothing", () => {
    const Job = () => createJobStream(() => "of-the-server", { baseUrl: "http://127.0.0.1:1" }).job().state.status;
    expect(renderSolid(() => createComponent(Job, {}))).toBe("connecting");
  });

  it("Svelte renders that it connects, and asks for nothing", async () => {
    const outfile = join(folder, "server.mjs");
    await build({
      absWorkingDir: join(import.meta.dirname, ".."),
      stdin: {
        contents: `import { render } from "svelte/server"; import Job from "./test/pages/Job.svelte";
          export const body = () => render(Job, { props: { first: "of-the-server" } }).body;`,
        resolveDir: join(import.meta.dirname, ".."),
      },
      outfile,
      bundle: true,
      format: "esm",
      platform: "node",
      plugins: [svelte("server")],
    });
    const { body } = (await import(pathToFileURL(outfile).href)) as { body(): string };
    expect(body()).toContain("<h2>connecting</h2>");
  });
});
