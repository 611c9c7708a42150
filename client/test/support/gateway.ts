// A proxy between client and daemon that has the faults of real networks: it cuts, delays, buffers, refuses, and leaves
// connections open and silent.

import { readFileSync } from "node:fs";
import { createServer, type IncomingMessage, request, type Server, type ServerResponse } from "node:http";
import type { AddressInfo, Socket } from "node:net";
import { join } from "node:path";

/** The fault of one request; `null` lets it through. */
export type Fault =
  | { kind: "answer"; status: number; headers?: Record<string, string>; body?: string }
  /** A stream that begins with these bytes and stays open. */
  | { kind: "stream"; body: string; headers?: Record<string, string> }
  /** The answer is held until all of it is there; with `head` its status and headers, too. */
  | { kind: "buffer"; head: boolean }
  /** The connection breaks after so many bytes of the body. */
  | { kind: "cut"; bytes: number }
  /** The answer ends after so many bytes of its body, as if that were all. */
  | { kind: "end"; bytes: number }
  /** The body is passed on in pieces of so many bytes; what is left over is held. */
  | { kind: "lump"; bytes: number }
  /** Each byte is sent alone. */
  | { kind: "chop" }
  /** The request is passed on after so long. */
  | { kind: "delay"; ms: number }
  | { kind: "refuse" }
  | null;

/** An error as Jobcast itself says it (RFC 9457). */
export const problem = (status: number, code: string): Fault => ({
  kind: "answer",
  status,
  headers: { "Content-Type": "application/problem+json" },
  body: JSON.stringify({ code, status, detail: "said by Jobcast" }),
});

export interface Seen {
  readonly method: string;
  readonly url: URL;
  readonly headers: IncomingMessage["headers"];
}

export const PAGES = join(import.meta.dirname, "../../node_modules/.cache/jobcast-client-test");
const KINDS: Record<string, string> = { html: "text/html", js: "text/javascript", css: "text/css" };

export class Gateway {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #streams = new Set<ServerResponse>();
  #target: () => string;
  /** Chooses the fault of each request, but for the test's own pages. */
  plan: (seen: Seen) => Fault = () => null;
  /** A stream that sends bytes while this is set stays open, and passes no byte on any more. */
  isFrozen = false;
  /** Where the daemon cannot be reached, the connection breaks, instead of a 502, after which an `EventSource` asks no more. */
  breaksWithoutDaemon = false;
  /** The requests of which the daemon has answered nothing. */
  unanswered = 0;
  seen: Seen[] = [];

  private constructor(target: () => string) {
    this.#target = target;
    this.#server = createServer((from, to) => this.#handle(from, to));
    this.#server.on("connection", (socket) => {
      this.#sockets.add(socket);
      socket.on("close", () => this.#sockets.delete(socket));
      socket.on("error", () => {});
    });
  }

  static async before(target: () => string): Promise<Gateway> {
    const proxy = new Gateway(target);
    await new Promise<void>((resolve) => proxy.#server.listen(0, "127.0.0.1", resolve));
    return proxy;
  }

  get origin(): string {
    return `http://127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  /** Resets the plan and the record, and cuts open streams. */
  reset(): void {
    this.plan = () => null;
    this.isFrozen = false;
    this.seen = [];
    this.cut();
  }

  /** Breaks all open streams. */
  cut(): void {
    for (const stream of this.#streams) stream.destroy();
  }

  get openStreams(): number {
    return this.#streams.size;
  }

  streams(job = ""): Seen[] {
    return this.seen.filter(({ url, method }) => method === "GET" && url.pathname.includes(job) && isStream(url));
  }

  polls(job = ""): Seen[] {
    return this.seen.filter(({ url }) => url.pathname.includes(job) && url.pathname.endsWith("/events"));
  }

  async stop(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #handle(from: IncomingMessage, to: ServerResponse): void {
    const url = new URL(from.url ?? "/", this.origin);
    if (url.pathname.startsWith("/__test/")) return page(url.pathname.slice("/__test/".length), to);
    const seen = { method: from.method ?? "", url, headers: from.headers };
    this.seen.push(seen);
    const fault = this.plan(seen);
    if (fault?.kind === "refuse") return void from.socket.destroy();
    if (fault?.kind === "answer") {
      to.writeHead(fault.status, { "Content-Type": "text/html", ...fault.headers });
      return void to.end(fault.body ?? "<h1>Sorry</h1>");
    }
    if (fault?.kind === "stream") {
      to.writeHead(200, { "Content-Type": "text/event-stream", ...fault.headers });
      return void to.write(fault.body);
    }
    if (isStream(url)) {
      this.#streams.add(to);
      to.on("close", () => this.#streams.delete(to));
    }
    const target = this.#target();
    const onward = request(target + from.url, {
      method: from.method,
      headers: { ...from.headers, host: new URL(target).host },
      agent: false,
    });
    const fail = () => {
      if (!to.headersSent && !to.destroyed) this.unanswered += 1;
      if (to.headersSent || this.breaksWithoutDaemon) to.destroy();
      else to.writeHead(502, { "Content-Type": "text/html" }).end("<h1>502 Bad Gateway</h1>");
    };
    onward.on("error", fail);
    to.on("close", () => onward.destroy());
    onward.on("response", (answer) => {
      answer.on("error", fail);
      const head = () => to.writeHead(answer.statusCode ?? 502, answer.headers).flushHeaders();
      const isHeld = fault?.kind === "buffer" && isStream(url);
      const held: Buffer[] = [];
      if (!isHeld || !fault.head) head();
      let left = fault?.kind === "cut" || fault?.kind === "end" ? fault.bytes : Number.POSITIVE_INFINITY;
      const finish = () => (fault?.kind === "end" ? to.end() : to.destroy());
      if (left === 0) finish();
      let lump = Buffer.alloc(0);
      let isSilent = false;
      answer.on("data", async (bytes: Buffer) => {
        if (isHeld) return void held.push(bytes);
        isSilent ||= this.isFrozen && isStream(url);
        if (isSilent) return;
        if (fault?.kind === "chop") {
          answer.pause();
          for (const byte of bytes) {
            to.write(Buffer.of(byte));
            await new Promise(setImmediate);
          }
          return void answer.resume();
        }
        if (fault?.kind === "lump" && isStream(url)) {
          lump = Buffer.concat([lump, bytes]);
          const whole = lump.length - (lump.length % fault.bytes);
          to.write(lump.subarray(0, whole));
          lump = lump.subarray(whole);
          return;
        }
        const part = bytes.subarray(0, left);
        left -= part.length;
        if (part.length > 0) to.write(part, () => left <= 0 && finish());
      });
      answer.on("end", () => {
        if (isHeld && fault.head) head();
        for (const bytes of held) to.write(bytes);
        to.end();
      });
      answer.on("close", () => answer.complete || to.destroy());
    });
    if (fault?.kind === "delay") setTimeout(() => from.pipe(onward), fault.ms);
    else from.pipe(onward);
  }
}

const isStream = (url: URL) => url.pathname.endsWith("/events/stream");

function page(name: string, to: ServerResponse): void {
  try {
    const text = readFileSync(join(PAGES, name));
    to.writeHead(200, {
      "Content-Type": `${KINDS[name.split(".").at(-1) ?? ""] ?? "text/plain"}; charset=utf-8`,
      "Cache-Control": "no-store",
    }).end(text);
  } catch {
    to.writeHead(404).end();
  }
}
