// A real Jobcast in a temporary directory.
import { type ChildProcess, execFileSync, spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { stripVTControlCharacters } from "node:util";
import { eventually } from "./eventually.ts";

export const BINARY = process.env.JOBCAST ?? join(import.meta.dirname, "../../../target/release/jobcast");

export interface Numbered {
  type?: string;
  stepId?: string;
  id?: string;
  payload: unknown;
}

export class Daemon {
  #child!: ChildProcess;
  #log = "";
  readonly #folder = mkdtempSync(join(tmpdir(), "jobcast-client-"));
  readonly #settings: Record<string, string>;
  http = "127.0.0.1:0";
  admin = "127.0.0.1:0";

  /** The file of its events. */
  readonly file: string;

  private constructor(file: string | undefined, settings: Record<string, string>) {
    this.file = file ?? join(this.#folder, "jobs.db");
    this.#settings = settings;
  }

  /**
   * Starts a daemon, with settings by their dotted names. Its default times are short, so that tests are fast. With `file`
   * it has the events of another daemon.
   */
  static async start(settings: Record<string, string> = {}, file?: string): Promise<Daemon> {
    const daemon = new Daemon(file, {
      "stream.retry": "100ms",
      "stream.heartbeat": "300ms",
      "source.poll_interval": "50ms",
      "source.settle": "50ms",
      "source.appear": "300ms",
      "hub.linger": "1s",
      "shutdown.grace": "0s",
      ...settings,
    });
    await daemon.#spawn();
    return daemon;
  }

  get origin(): string {
    return `${this.#settings["http.tls.cert"] ? "https" : "http"}://${this.http}`;
  }

  async #spawn(): Promise<void> {
    const env: Record<string, string> = { PATH: process.env.PATH ?? "", RUST_BACKTRACE: "0" };
    const settings = {
      ...this.#settings,
      "http.listen": this.http,
      "admin.listen": this.admin,
      "source.sqlite.path": this.file,
    };
    for (const [key, value] of Object.entries(settings))
      env[`JOBCAST_${key.replaceAll(".", "__").toUpperCase()}`] = value;
    this.#log = "";
    this.#child = spawn(BINARY, ["serve"], { env, cwd: this.#folder, stdio: ["ignore", "pipe", "pipe"] });
    const append = (bytes: Buffer) => {
      this.#log += bytes.toString();
    };
    this.#child.stdout?.on("data", append);
    this.#child.stderr?.on("data", append);
    await eventually("the daemon listens", async () => {
      if (this.#child.exitCode !== null) throw new Error(`the daemon ended: ${this.#log}`);
      const text = stripVTControlCharacters(this.#log);
      const [http, admin] = [
        /\bhttp\b\D*?(127\.0\.0\.1:\d+)/.exec(text)?.[1],
        /\badmin\b\D*?(127\.0\.0\.1:\d+)/.exec(text)?.[1],
      ];
      if (!http || !admin) return false;
      [this.http, this.admin] = [http, admin];
      return this.#isReady();
    });
  }

  async #isReady(): Promise<boolean> {
    // While the source is down the answer is 200, too, and says so.
    const answer = (await (await fetch(`http://${this.admin}/readyz`)).json()) as { status: string };
    return answer.status === "ready";
  }

  ready(): Promise<void> {
    return eventually("the daemon is ready", () => this.#isReady());
  }

  /** Changes the store without the daemon, by the `sqlite3` program. */
  sql(statement: string): void {
    execFileSync("sqlite3", ["-cmd", ".timeout 5000", this.file, statement]);
  }

  signal(name: NodeJS.Signals): void {
    this.#child.kill(name);
  }

  async ended(): Promise<void> {
    await eventually("the daemon ends", () => this.#child.exitCode !== null || this.#child.signalCode !== null);
  }

  /** Kills the daemon like `kill -9`. */
  async kill(): Promise<void> {
    this.signal("SIGKILL");
    await this.ended();
  }

  /** Starts the daemon again, with the same addresses and the same file. */
  async restart(): Promise<void> {
    await this.#spawn();
  }

  async stop(): Promise<void> {
    this.signal("SIGCONT");
    await this.kill();
    rmSync(this.#folder, { recursive: true, force: true });
  }

  async write(job: string, events: readonly Numbered[]): Promise<void> {
    await this.#send(
      "POST",
      `/runner-jobs/${job}/events`,
      events.map((event) => ({ type: "step.output", ...event })),
    );
  }

  /** Writes `count` events with the payloads `{n}`, where `n` counts from `from`. */
  async number(job: string, from: number, count: number, text?: string): Promise<void> {
    const events = Array.from({ length: count }, (_, index) => ({
      payload: { n: from + index, ...(text && { text }) },
    }));
    for (let first = 0; first < count; first += 200) await this.write(job, events.slice(first, first + 200));
  }

  async end(job: string, status = "COMPLETED"): Promise<void> {
    await this.#send("PUT", `/runner-jobs/${job}`, { status });
  }

  async #send(method: string, path: string, body: unknown): Promise<void> {
    const headers = { "Content-Type": "application/json" };
    const answer = await fetch(this.origin + path, { method, headers, body: JSON.stringify(body) });
    const text = await answer.text();
    if (!answer.ok) throw new Error(`${method} ${path}: ${answer.status} ${text}`);
  }

  async subscribers(): Promise<number> {
    const text = await (await fetch(`http://${this.admin}/metrics`)).text();
    return Number(/^jobcast_subscribers (\d+)/m.exec(text)?.[1] ?? 0);
  }
}
