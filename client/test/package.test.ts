// The package as others get it: packed, in a project of its own, and as the module that Jobcast serves.
import { execFile, spawn } from "node:child_process";
import { once } from "node:events";
import { cpSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify, stripVTControlCharacters } from "node:util";
import { build } from "esbuild";
import { compile } from "svelte/compiler";
import { afterAll, beforeAll, expect, it } from "vitest";
import { launch } from "./support/client.ts";
import { BINARY, Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";
import { Gateway, PAGES } from "./support/gateway.ts";

const root = join(import.meta.dirname, "..");
const app = join(mkdtempSync(join(tmpdir(), "jobcast-app-")), "app");
const run = promisify(execFile);
const bin = (name: string) => join(root, "node_modules/.bin", name);
let daemon: Daemon;
let packed: string[];

beforeAll(async () => {
  daemon = await Daemon.start();
  const filter = (path: string) => !/(node_modules|dist)$/.test(path);
  cpSync(join(root, "examples/react"), app, { recursive: true, filter });
  mkdirSync(join(app, "node_modules/jobcast-client"), { recursive: true });
  // Packages that npm would install beside it.
  for (const name of ["@types", "eventsource-parser", "react", "react-dom", "solid-js", "vite", "vitest", "vue"])
    symlinkSync(join(root, "node_modules", name), join(app, "node_modules", name));
  const { stdout } = await run("npm", ["pack", "--json", "--pack-destination", app], { cwd: root });
  const [{ filename, files }] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }];
  packed = files.map(({ path }) => path);
  await run("tar", ["-xzf", join(app, filename), "-C", join(app, "node_modules/jobcast-client"), "--strip", "1"]);
});
afterAll(async () => {
  await daemon?.stop();
  rmSync(join(app, ".."), { recursive: true, force: true });
});

it("the modules that Jobcast serves are the build of client/src", async () => {
  for (const name of ["jobcast.js", "jobcast-log.js"]) {
    const served = await (await fetch(`${daemon.origin}/${name}`)).text();
    expect(served).toBe(readFileSync(join(root, "../src/http/page", name), "utf8"));
  }
  await run("node", ["build.mjs", "--check"], { cwd: root });
});

it("the package holds dist, src, its licences and its README, and nothing else", () => {
  const rest = packed.filter((path) => !/^(dist|src)\/[\w.]+$/.test(path)).sort();
  expect(rest).toEqual(["LICENSE-APACHE", "LICENSE-MIT", "README.md", "package.json"]);
  for (const name of ["index", "react", "vue", "svelte", "solid", "element"])
    expect(packed).toContain(`dist/${name}.d.ts`);
});

it("this folder can be packed where it stands alone", async () => {
  const alone = join(app, "../alone");
  const left = /(node_modules|dist|coverage)$/;
  cpSync(root, alone, { recursive: true, filter: (path) => !left.test(path) });
  symlinkSync(join(root, "node_modules"), join(alone, "node_modules"));
  const { stdout } = await run("npm", ["pack", "--json", "--dry-run"], { cwd: alone });
  const [{ files }] = JSON.parse(stdout) as [{ files: { path: string }[] }];
  expect(files.map(({ path }) => path)).toContain("dist/index.js");
});

it("the React part says that it is for clients, as Next.js wants it", () => {
  expect(readFileSync(join(app, "node_modules/jobcast-client/dist/react.js"), "utf8")).toMatch(/^"use client";/);
});

it("a program that reads a job in a loop ends by itself", async () => {
  await daemon.number("packed", 0, 3);
  writeFileSync(
    join(app, "read.mjs"),
    `import { JobStream } from "jobcast-client";
    const options = { baseUrl: process.argv[2], share: true };
    const stream = new JobStream("packed", options);
    stream.on("event", ({ payload }) => payload.n === 2 && stream.close());
    for await (const { payload } of new JobStream("packed", options)) {
      console.log(payload.n);
      if (payload.n === 2) break;
    }`,
  );
  const { stdout } = await run("node", ["read.mjs", daemon.origin], { cwd: app });
  expect(stdout).toBe("0\n1\n2\n");
});

it("the types and the examples of the README compile in a strict project", async () => {
  const readme = readFileSync(join(root, "README.md"), "utf8");
  const examples = [...readme.matchAll(/^```tsx?\n(.*?)^```/gms)].map(([, code]) => code!);
  expect(examples.length).toBeGreaterThan(8);
  // The example that is a test runs with the other tests.
  const test = readFileSync(join(root, "examples/react/src/JobScreen.test.tsx"), "utf8");
  expect(examples).toContain(test);
  // An example of a component of Svelte compiles, or throws.
  const components = [...readme.matchAll(/^```svelte\n(.*?)^```/gms)].map(([, code]) => compile(code!, {}));
  expect(components.flatMap(({ warnings }) => warnings.map(({ message }) => message))).toEqual([]);
  expect(components).toHaveLength(1);
  for (const [at, code] of examples.entries())
    if (code !== test) writeFileSync(join(app, `src/readme-${at}.tsx`), `${code}export {};\n`);
  for (const [module, moduleResolution] of [
    ["nodenext", "nodenext"],
    ["esnext", "bundler"],
  ]) {
    const compilerOptions = {
      ...{ target: "es2022", lib: ["es2022", "dom", "dom.iterable"], module, moduleResolution, jsx: "react-jsx" },
      ...{ strict: true, exactOptionalPropertyTypes: true, noEmit: true, types: [] },
    };
    writeFileSync(join(app, "tsconfig.json"), JSON.stringify({ compilerOptions, include: ["src"] }));
    const { stdout } = await run("node", [bin("tsc"), "-p", app]).catch((error: { stdout: string }) => error);
    expect(stdout).toBe("");
  }
});

it("the types need no DOM: they compile, libraries and all, in a project of Node alone", async () => {
  writeFileSync(
    join(app, "node-only.ts"),
    `import { CONNECTING, JobStream } from "jobcast-client";
    import { jobStream } from "jobcast-client/svelte";
    const stream = new JobStream("job", { baseUrl: "http://127.0.0.1:1", credentials: "include" });
    stream.on("state", (state) => state.status === "retrying" && state.retryAt.toFixed());
    export const shown = [CONNECTING.status, jobStream("job", { signal: AbortSignal.abort() })];`,
  );
  const compilerOptions = {
    ...{ target: "es2022", lib: ["es2022"], module: "nodenext", types: ["node"] },
    ...{ strict: true, exactOptionalPropertyTypes: true, skipLibCheck: false, noEmit: true },
  };
  writeFileSync(join(app, "tsconfig.node.json"), JSON.stringify({ compilerOptions, files: ["node-only.ts"] }));
  const project = join(app, "tsconfig.node.json");
  const { stdout } = await run("node", [bin("tsc"), "-p", project]).catch((error: { stdout: string }) => error);
  expect(stdout).toBe("");
});

it("the example builds, and two tabs of it show a job over one connection", async () => {
  const out = join(PAGES, "example");
  await run(bin("vite"), ["build", "--base", "/__test/example/", "--outDir", out, "--emptyOutDir"], { cwd: app });
  const gateway = await Gateway.before(() => daemon.origin);
  const browser = await launch();
  await daemon.number("example", 0, 3, "hello");
  const context = await browser.newContext();
  const tabs = [await context.newPage(), await context.newPage()];
  for (const tab of tabs) await tab.goto(`${gateway.origin}/__test/example/index.html?job=example`);
  const shown = (count: number) =>
    eventually(`${count} events are shown`, async () => {
      for (const tab of tabs) if ((await tab.locator("li").count()) !== count) return false;
      return true;
    });
  await shown(3);
  await daemon.number("example", 3, 2);
  await shown(5);
  expect(gateway.streams("example")).toHaveLength(1);
  await daemon.end("example");
  for (const tab of tabs) await tab.getByText("the job has ended · completed").waitFor();
  await browser.close();
  await gateway.stop();
});

/** Starts a program, and returns the first address that it prints, and how to stop it. */
async function start(program: string, args: string[], env: Record<string, string> = {}) {
  const child = spawn(program, args, { cwd: root, env: { ...process.env, ...env } });
  let printed = "";
  for (const output of [child.stdout, child.stderr]) output.on("data", (bytes) => void (printed += bytes));
  const address = () => /http:\/\/[\d.]+:\d+/.exec(stripVTControlCharacters(printed))?.[0];
  await eventually(`${program} prints an address: ${printed}`, address);
  const ended = once(child, "exit");
  const stop = async () => {
    child.kill();
    await ended;
  };
  return { origin: address()!, stop };
}

it("the example runs beside `jobcast demo` as it stands here: the jobs of the demo, and the screen of one", async () => {
  const demo = await start(BINARY, ["demo", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]);
  const example = await start(bin("vite"), ["examples/react", "--host", "127.0.0.1", "--port", "0"], {
    JOBCAST: demo.origin,
  });
  const browser = await launch();
  const page = await browser.newPage();
  await page.goto(example.origin);
  await page.locator("main li a").first().click();
  await page.locator("ol li").first().waitFor();
  await page
    .getByRole("status")
    .getByText(/live|has ended/)
    .waitFor();
  await browser.close();
  await example.stop();
  await demo.stop();
});

it("the first example of each README shows a job in a browser", async () => {
  const first = (file: string, language: string) =>
    new RegExp(`^\`\`\`${language}\n(.*?)^\`\`\``, "ms").exec(readFileSync(join(root, file), "utf8"))![1]!;
  const mount = `import { createRoot } from "react-dom/client";
    createRoot(document.getElementById("root")!).render(<Log jobId="build-7" />);`;
  writeFileSync(join(app, "src/first.tsx"), `${first("README.md", "tsx")}${mount}`);
  await build({
    entryPoints: { first: join(app, "src/first.tsx") },
    outdir: PAGES,
    bundle: true,
    format: "esm",
    jsx: "automatic",
    define: { "process.env.NODE_ENV": '"production"' },
  });
  const page = (script: string) => `<!doctype html><main id="root"></main><script type="module" ${script}</script>`;
  writeFileSync(join(PAGES, "first-react.html"), page('src="/__test/first.js">'));
  writeFileSync(join(PAGES, "first.html"), page(`>${first("../README.md", "js")}`));
  const gateway = await Gateway.before(() => daemon.origin);
  const browser = await launch();
  await daemon.write("build-7", [{ payload: { line: "hello" } }]);
  const [plain, react] = [await browser.newPage(), await browser.newPage()];
  const logged: string[] = [];
  plain.on("console", (message) => logged.push(message.text()));
  await plain.goto(`${gateway.origin}/__test/first.html`);
  await react.goto(`${gateway.origin}/__test/first-react.html`);
  await react.getByText('{"line":"hello"}').waitFor();
  await daemon.write("build-7", [{ payload: { line: "again" } }]);
  await react.getByText('{"line":"again"}').waitFor();
  await daemon.end("build-7");
  await react.getByRole("status").getByText("complete").waitFor();
  await eventually("the end is logged", () => logged.some((line) => line.startsWith("complete")));
  expect(logged.filter((line) => line === "hello" || line === "again")).toEqual(["hello", "again"]);
  await browser.close();
  await gateway.stop();
});
