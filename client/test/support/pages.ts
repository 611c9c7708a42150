// Builds the pages of the tests once, before all tests.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type BuildOptions, build } from "esbuild";
import { PAGES } from "./gateway.ts";

export default async function setup(): Promise<void> {
  const root = join(import.meta.dirname, "../..");
  mkdirSync(PAGES, { recursive: true });
  const common = {
    absWorkingDir: root,
    outdir: PAGES,
    bundle: true,
    format: "esm",
    target: "es2022",
    jsx: "automatic",
    sourcemap: "inline",
    // package.json declares no side effects, which holds for the package and not for these pages.
    ignoreAnnotations: true,
    define: { "process.env.NODE_ENV": '"development"' },
  } satisfies BuildOptions;
  await build({ ...common, entryPoints: { observe: "test/pages/observe.ts", "react-19": "test/pages/react.tsx" } });
  const modules = join(root, "test/react-18/node_modules");
  const alias = { react: join(modules, "react"), "react-dom": join(modules, "react-dom") };
  await build({ ...common, entryPoints: { "react-18": "test/pages/react.tsx" }, alias });
  for (const name of ["observe", "react-18", "react-19"]) {
    const html = `<!doctype html><html lang="en"><meta charset="utf-8"><title>${name}</title><link rel="icon" href="data:,"><div id="root"></div><script type="module" src="/__test/${name}.js"></script></html>`;
    writeFileSync(join(PAGES, `${name}.html`), html);
  }
}
