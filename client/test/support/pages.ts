// Builds the pages of the tests once, before all tests.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { PAGES } from "./gateway.ts";

export default async function setup(): Promise<void> {
  const root = join(import.meta.dirname, "../..");
  mkdirSync(PAGES, { recursive: true });
  await build({
    absWorkingDir: root,
    entryPoints: { observe: "test/pages/observe.ts", react: "test/pages/react.tsx" },
    outdir: PAGES,
    bundle: true,
    format: "esm",
    target: "es2022",
    jsx: "automatic",
    sourcemap: "inline",
    // package.json declares no side effects, which holds for the package and not for these pages.
    ignoreAnnotations: true,
    define: { "process.env.NODE_ENV": '"development"' },
  });
  for (const name of ["observe", "react"]) {
    const html = `<!doctype html><html lang="en"><meta charset="utf-8"><title>${name}</title><link rel="icon" href="data:,"><div id="root"></div><script type="module" src="/__test/${name}.js"></script></html>`;
    writeFileSync(join(PAGES, `${name}.html`), html);
  }
}
