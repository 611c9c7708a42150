// A server that sends any bytes, also such as Jobcast never sends and the standard of event streams allows.
import { createServer, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** The bytes of one connection, in pieces that arrive apart. After them the connection ends. */
export type Script = readonly (string | Uint8Array)[];

export class Raw {
  readonly #scripts = new Map<string, Script[]>();
  readonly #server = createServer((request, response) => {
    const [, , job = "", , kind] = (request.url ?? "").split(/[/?]/);
    if (kind !== "stream" && !(request.url ?? "").includes("/stream")) return response.writeHead(404).end();
    const script = this.#scripts.get(job)?.shift();
    // 204 tells the client to stop.
    if (!script) return response.writeHead(204).end();
    response.writeHead(200, { "Content-Type": this.type, ...this.headers });
    void play(script, response);
  });
  type = "text/event-stream";
  headers: Record<string, string> = {};

  static async start(): Promise<Raw> {
    const raw = new Raw();
    await new Promise<void>((resolve) => raw.#server.listen(0, "127.0.0.1", resolve));
    return raw;
  }

  get origin(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Sets one script for each connection to come. */
  send(job: string, ...scripts: Script[]): void {
    this.#scripts.set(job, scripts);
  }

  stop(): void {
    this.#server.closeAllConnections();
    this.#server.close();
  }
}

async function play(script: Script, response: ServerResponse): Promise<void> {
  for (const piece of script) {
    response.write(piece);
    await new Promise((resolve) => setTimeout(resolve, 15));
  }
  response.end();
}
