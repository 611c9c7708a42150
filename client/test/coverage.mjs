// Measures the share of src/ that the tests run, in Node and in Chromium together: node test/coverage.mjs
import { spawnSync } from "node:child_process";
import { existsSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { join, relative } from "node:path";
import convert from "ast-v8-to-istanbul";
import coverage from "istanbul-lib-coverage";
import { parseAstAsync } from "vite";

const root = join(import.meta.dirname, "..");
const out = join(root, "coverage");
rmSync(out, { recursive: true, force: true });
const env = { ...process.env, COVERAGE: join(out, "chromium") };
const run = spawnSync("npx", ["vitest", "run", "--coverage", "--coverage.reporter=json"], {
  cwd: root,
  env,
  stdio: "inherit",
});
const map = coverage.createCoverageMap(JSON.parse(readFileSync(join(out, "coverage-final.json"), "utf8")));
const asts = new Map();
for (const name of existsSync(env.COVERAGE) ? readdirSync(env.COVERAGE) : []) {
  for (const { source, functions } of JSON.parse(readFileSync(join(env.COVERAGE, name), "utf8"))) {
    if (!asts.has(source)) asts.set(source, await parseAstAsync(source));
    const inline = /sourceMappingURL=data:application\/json;base64,(\S+)/.exec(source);
    const sourceMap = JSON.parse(Buffer.from(inline[1], "base64").toString());
    sourceMap.sources = sourceMap.sources.map((path) => join(root, path.replace(/^(\.\.\/)+/, "")));
    map.merge(
      await convert({
        code: source,
        ast: asts.get(source),
        sourceMap,
        coverage: { functions, url: `file://${root}/x.js` },
      }),
    );
  }
}
const total = coverage.createCoverageSummary();
for (const file of map.files().filter((file) => relative(root, file).startsWith("src/"))) {
  const summary = map.fileCoverageFor(file).toSummary();
  total.merge(summary);
  console.log(
    relative(root, file).padEnd(24),
    `${summary.lines.pct} % of lines`,
    map.fileCoverageFor(file).getUncoveredLines().join(" "),
  );
}
console.log("all".padEnd(24), `${total.lines.pct} % of lines, ${total.branches.pct} % of branches`);
process.exit(run.status || (total.lines.pct < 90 ? 1 : 0));
