// Builds the package (dist/) and the module that Jobcast serves as /jobcast.js. That module is committed as
// ../src/http/page/jobcast.js, so that cargo needs no Node. `--check` does not write it; it fails if the committed
// module differs from the one built from client/src.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

const SERVED = new URL("../src/http/page/jobcast.js", import.meta.url);
const { version } = JSON.parse(readFileSync(new URL("package.json", import.meta.url), "utf8"));

// Names of fields that never leave the client: they are shortened in what is built. Everything else is public, or goes to
// other tabs.
const INTERNAL = `
  rules task taskId timerAtMs deadlineMs startedMs notBeforeMs lastWaitMs openedMs warning hasAnswered failures lastCode
  lastCodeCount flow suspectStreams isTokenAsked isAsked probes probeAtMs leaderView isFollower canPoll canStream hasEvents
  hasHeartbeat isEmpty isCut sleptMs waitMs isShared isBlocked isTokenOver giveUpAfter onAnswer onEvents onBytes
  onOffline onCursor forgetToken send broadcastEvents broadcastReset broadcastAlive broadcastView takeOver applyHeldBack
  hasSeen lastId dispatch deliver
`.match(/\w+/g);

const common = {
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  mangleProps: new RegExp(`^(${INTERNAL.join("|")})$`),
  absWorkingDir: import.meta.dirname,
  logLevel: "warning",
};

rmSync(new URL("dist", import.meta.url), { recursive: true, force: true });
await build({
  ...common,
  // The last four are loaded when they are needed.
  entryPoints: ["index", "react", "share", "poll", "diagnose", "loop"].map((name) => `src/${name}.ts`),
  outdir: "dist",
  splitting: true,
  chunkNames: "[name].[hash]",
  sourcemap: true,
  external: ["eventsource-parser", "react", "./index.js"],
});
execFileSync("node", ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json"], {
  stdio: "inherit",
  cwd: import.meta.dirname,
});

// This folder may stand alone. Then there is no daemon to build for.
if (!existsSync(new URL(".", SERVED))) process.exit();

const banner = `// jobcast-client ${version}, built from client/src by \`npm run build\` in client/; do not edit.`;
const served = await build({ ...common, entryPoints: ["src/index.ts"], write: false, banner: { js: banner } });
const [{ text }] = served.outputFiles;
if (!process.argv.includes("--check")) writeFileSync(SERVED, text);
else if (readFileSync(SERVED, "utf8") !== text) {
  console.error(
    "src/http/page/jobcast.js differs from the build of client/src: run `npm run build` in client/ and commit it",
  );
  process.exit(1);
}
