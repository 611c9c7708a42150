// Compiles components of Svelte, in a browser's way or in a server's.
import { readFileSync } from "node:fs";
import type { Plugin } from "esbuild";
import { compile } from "svelte/compiler";

export const svelte = (generate: "client" | "server"): Plugin => ({
  name: "svelte",
  setup: ({ onLoad }) =>
    onLoad({ filter: /\.svelte$/ }, ({ path }) => ({
      contents: compile(readFileSync(path, "utf8"), { generate, filename: path }).js.code,
      loader: "js",
    })),
});
