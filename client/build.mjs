// Builds the package (dist/) and the modules that Jobcast serves. These are committed in ../src/http/page, so that cargo
// needs no Node. `--check` does not write them; it fails if a committed module differs from the one built from client/src.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { build } from "esbuild";

/** The served modules: the core and the element for any page, and the terminal's looks for the live page. */
const SERVED = { "jobcast.js": "src/index.ts", "jobcast-log.js": "src/element.ts", "terminal.js": "src/terminal.ts" };
/** The served modules load the core from where they are served themselves. */
const servedCore = {
  name: "served-core",
  setup: ({ onResolve }) => onResolve({ filter: /^\.\/index\.js$/ }, () => ({ path: "./jobcast.js", external: true })),
};
const { version } = JSON.parse(readFileSync(new URL("package.json", import.meta.url), "utf8"));

// Names of fields that never leave the client: they are shortened in what is built. Everything else is public, or goes to
// other tabs.
const INTERNAL = `
  begin view toldRetryMs rules task taskId timerAtMs deadlineMs startedMs notBeforeMs lastWaitMs openedMs warning hasAnswered failures lastCode
  lastCodeCount flow suspectStreams isTokenAsked isAsked probes probeAtMs leaderView isFollower canPoll canStream hasEvents
  hasHeartbeat isEmpty isCut sleptMs waitMs isShared isBlocked isTokenOver giveUpAfter onAnswer onEvents onBytes
  onWake onCursor forgetToken send broadcastEvents broadcastReset broadcastAlive broadcastView takeOver applyHeldBack
  seenIds options lastId dispatch deliver handlers members shared uniquePart emit wake urls carry wrap query jobIds resumeAt
  resumeAfter sameToken scope goesOn goOn phase isGuest inner carrier hasOwn snapshot publish untilMs openOrClose subscribers
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
  // The last five are loaded when they are needed.
  entryPoints: [
    ...["index", "react", "vue", "svelte", "solid", "element"],
    ...["share", "together", "poll", "diagnose", "loop"],
  ].map((name) => `src/${name}.ts`),
  outdir: "dist",
  splitting: true,
  chunkNames: "[name].[hash]",
  sourcemap: true,
  external: ["eventsource-parser", "react", "vue", "solid-js", "./index.js"],
});
execFileSync("node", ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json"], {
  stdio: "inherit",
  cwd: import.meta.dirname,
});

// This folder may stand alone. Then there is no daemon to build for.
const page = new URL("../src/http/page/", import.meta.url);
if (!existsSync(page)) process.exit();

const banner = `// jobcast-client ${version}, built from client/src by \`npm run build\` in client/; do not edit.`;
for (const [name, entry] of Object.entries(SERVED)) {
  const served = await build({
    ...common,
    entryPoints: [entry],
    write: false,
    banner: { js: banner },
    plugins: [servedCore],
  });
  const [{ text }] = served.outputFiles;
  const file = new URL(name, page);
  if (!process.argv.includes("--check")) writeFileSync(file, text);
  else if (!existsSync(file) || readFileSync(file, "utf8") !== text) {
    console.error(
      `src/http/page/${name} differs from the build of client/src: run \`npm run build\` in client/ and commit it`,
    );
    process.exit(1);
  }
}
