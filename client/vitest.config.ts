import { defineConfig } from "vitest/config";

const src = (name: string) => new URL(`src/${name}`, import.meta.url).pathname;

// The tests wait for conditions. Their time-outs allow for a slow machine.
export default defineConfig({
  resolve: {
    alias: [
      { find: /^jobcast-client\/(\w+)$/, replacement: src("$1.ts") },
      { find: /^jobcast-client$/, replacement: src("index.ts") },
    ],
  },
  test: {
    include: ["test/*.test.ts", "examples/react/src/*.test.tsx"],
    globalSetup: ["test/support/pages.ts"],
    testTimeout: 90_000,
    hookTimeout: 60_000,
    maxWorkers: 3,
    coverage: { provider: "v8", include: ["src/**"], reporter: ["text"] },
  },
});
