// Builds the pages of the tests once, before all tests.
import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type BuildOptions, build } from "esbuild";
import { PAGES } from "./gateway.ts";
import { svelte } from "./svelte.ts";

const NAMES = ["observe", "react-19", "vue", "svelte", "solid", "element"];
const FILES: Record<string, string> = { "react-19": "react.tsx", svelte: "svelte.js" };
/** The policy of the page with the element: it needs no exception. */
const STRICT = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:";

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
    plugins: [svelte("client")],
    define: { "process.env.NODE_ENV": '"development"' },
  } satisfies BuildOptions;
  const entryPoints = NAMES.map((name) => ({ in: `test/pages/${FILES[name] ?? `${name}.ts`}`, out: name }));
  await build({ ...common, entryPoints });
  const modules = join(root, "test/react-18/node_modules");
  const alias = { react: join(modules, "react"), "react-dom": join(modules, "react-dom") };
  await build({ ...common, entryPoints: { "react-18": "test/pages/react.tsx" }, alias });
  for (const name of [...NAMES, "react-18"]) {
    const policy = name === "element" ? `<meta http-equiv="Content-Security-Policy" content="${STRICT}">` : "";
    const html = `<!doctype html><html lang="en"><meta charset="utf-8">${policy}<title>${name}</title><link rel="icon" href="data:,"><main id="root"></main><script type="module" src="/__test/${name}.js"></script></html>`;
    writeFileSync(join(PAGES, `${name}.html`), html);
  }
}
