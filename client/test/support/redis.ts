// A real Redis, on a port of its own and with nothing on disk.
import { type ChildProcess, spawn } from "node:child_process";
import { createClient } from "redis";
import { eventually } from "./eventually.ts";
import { freePort } from "./port.ts";

export class Redis {
  readonly #child: ChildProcess;

  private constructor(
    readonly url: string,
    port: number,
  ) {
    const settings = ["--port", `${port}`, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"];
    this.#child = spawn("redis-server", settings, { stdio: "ignore" });
  }

  static async start(): Promise<Redis> {
    const port = await freePort();
    const redis = new Redis(`redis://127.0.0.1:${port}/0`, port);
    await eventually("Redis answers", async () => {
      const client = createClient({ url: redis.url, socket: { reconnectStrategy: false } }).on("error", () => {});
      await client.connect();
      await client.close();
      return true;
    });
    return redis;
  }

  stop(): void {
    this.#child.kill("SIGKILL");
  }
}
