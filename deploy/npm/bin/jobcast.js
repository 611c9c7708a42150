#!/usr/bin/env node
// Starts the binary for this machine with the arguments as they are, and ends as it ends.

import { spawn } from "node:child_process";
import { accessSync, constants, realpathSync } from "node:fs";
import { delimiter, join } from "node:path";
import { fileURLToPath } from "node:url";

const own = fileURLToPath(import.meta.url);

function isExecutable(path) {
  try {
    accessSync(path, constants.X_OK);
    return realpathSync(path) !== realpathSync(own);
  } catch {
    return false;
  }
}

/** Paths at which the binary may be, the most wanted first. */
function candidates() {
  const carried = join(own, "..", "..", "vendor", `${process.platform}-${process.arch}`, "jobcast");
  // npx puts the folder of this very script first.
  const onPath = (process.env.PATH ?? "").split(delimiter).map((folder) => join(folder, "jobcast"));
  return [process.env.NPX_JOBCAST_BINARY, carried, ...onPath].filter(Boolean);
}

/** On the path there may be other launchers such as this one, which would start each other. */
const isNested = process.env.NPX_JOBCAST_LAUNCHED === "1";
const binary = isNested ? undefined : candidates().find(isExecutable);
if (!binary) {
  console.error(
    `jobcast: there is no binary for ${process.platform}-${process.arch} in this package, and none on PATH. ` +
      "Build one (cargo install --path . --locked) and name it in NPX_JOBCAST_BINARY.",
  );
  process.exit(1);
}

const child = spawn(binary, process.argv.slice(2), { stdio: "inherit", env: { ...process.env, NPX_JOBCAST_LAUNCHED: "1" } });
// The terminal sends Ctrl-C to both; whoever signals only this process means the child.
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => child.kill(signal));
child.on("error", (error) => {
  console.error(`jobcast: ${binary} cannot be started: ${error.message}`);
  process.exit(1);
});
child.on("exit", (code, signal) => process.exit(code ?? 128 + ({ SIGINT: 2, SIGKILL: 9, SIGTERM: 15 }[signal] ?? 1)));
