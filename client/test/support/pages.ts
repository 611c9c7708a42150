// Builds the pages of the tests once, before all tests.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { build } from "esbuild";
import { PAGES } from "./gateway.ts";
import { svelte } from "./svelte.ts";

const NAMES = ["observe", "react", "vue", "svelte", "solid", "element"];
const FILES: Record<string, string> = { react: "react.tsx", svelte: "svelte.js" };
/** The policy of the page with the element: it needs no exception. */
const STRICT = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:";

export default async function setup(): Promise<void> {
  const root = join(import.meta.dirname, "../..");
  mkdirSync(PAGES, { recursive: true });
  await build({
    absWorkingDir: root,
    entryPoints: NAMES.map((name) => ({ in: `test/pages/${FILES[name] ?? `${name}.ts`}`, out: name })),
    outdir: PAGES,
    bundle: true,
    format: "esm",
    target: "es2022",
    jsx: "automatic",
    sourcemap: "inline",
    // package.json declares no side effects, which holds for the package and not for these pages.
    ignoreAnnotations: true,
    plugins: [svelte("client")],
    define: { "process.env.NODE_ENV": '"development"' },
  });
  for (const name of NAMES) {
    const policy = name === "element" ? `<meta http-equiv="Content-Security-Policy" content="${STRICT}">` : "";
    const html = `<!doctype html><html lang="en"><meta charset="utf-8">${policy}<title>${name}</title><link rel="icon" href="data:,"><main id="root"></main><script type="module" src="/__test/${name}.js"></script></html>`;
    writeFileSync(join(PAGES, `${name}.html`), html);
  }
}
