// A real PostgreSQL, on a port of its own and in a temporary directory. It refuses to run as root: then it is the user `postgres`.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { BINARY } from "./daemon.ts";
import { eventually } from "./eventually.ts";
import { freePort } from "./port.ts";

const INSTALLED = "/usr/lib/postgresql";
const AS_POSTGRES = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"];

/** The words that run a program of PostgreSQL: of the newest version that is installed, else of the search path. */
function words(program: string, ...more: string[]): [string, string[]] {
  const versions = existsSync(INSTALLED)
    ? readdirSync(INSTALLED).sort((one, other) => Number(one) - Number(other))
    : [];
  const installed = join(INSTALLED, versions.at(-1) ?? "", "bin", program);
  const all = [...(process.getuid?.() === 0 ? AS_POSTGRES : []), existsSync(installed) ? installed : program, ...more];
  return [all[0]!, all.slice(1)];
}

export class Postgres {
  readonly #child: ChildProcess;

  private constructor(
    readonly url: string,
    readonly folder: string,
    port: number,
  ) {
    const data = join(folder, "data");
    const run = (program: string, ...more: string[]) =>
      execFileSync(...words(program, ...more), { cwd: "/", stdio: "ignore" });
    run("initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", data);
    const settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "fsync=off", `port=${port}`];
    const set = settings.flatMap((setting) => ["-c", setting]);
    this.#child = spawn(...words("postgres", "-D", data, ...set), { cwd: "/", stdio: "ignore" });
  }

  /** Starts a server with the tables that `jobcast schema postgres` makes. */
  static async start(): Promise<Postgres> {
    const port = await freePort();
    // Its user makes the directory, which is to be its own.
    const folder = mkdtempSync(join(tmpdir(), "jobcast-postgres-"));
    if (process.getuid?.() === 0) execFileSync("chown", ["postgres", folder]);
    const postgres = new Postgres(`postgres://postgres@127.0.0.1:${port}/postgres`, folder, port);
    const ask = (...more: string[]) => execFileSync("psql", ["-q", "-v", "ON_ERROR_STOP=1", ...more, postgres.url]);
    await eventually("PostgreSQL answers", () => ask("-c", "SELECT 1"));
    const schema = execFileSync(BINARY, ["schema", "postgres"]);
    execFileSync("psql", ["-q", "-v", "ON_ERROR_STOP=1", postgres.url], {
      input: schema,
      stdio: ["pipe", "ignore", "pipe"],
    });
    return postgres;
  }

  async stop(): Promise<void> {
    this.#child.kill("SIGQUIT");
    await eventually("PostgreSQL ends", () => this.#child.exitCode !== null || this.#child.signalCode !== null);
    rmSync(this.folder, { recursive: true, force: true });
  }
}
