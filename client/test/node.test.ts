// Behaviour that is easiest to see in Node: the async iterator, closing early, and mistakes that are reported at once.
import { createHmac } from "node:crypto";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { afterAll, beforeAll, describe, expect, it, vi } from "vitest";
import { type JobEvent, JobStream, JobStreamError } from "../src/index.js";
import { Daemon } from "./support/daemon.ts";
import { eventually } from "./support/eventually.ts";

let daemon: Daemon;
beforeAll(async () => {
  daemon = await Daemon.start();
});
afterAll(() => daemon.stop());
const at = () => ({ baseUrl: daemon.origin });

it("a loop over a stream yields every event, and ends with the job", async () => {
  await daemon.number("loop", 0, 300);
  const seen: unknown[] = [];
  const reading = (async () => {
    for await (const event of new JobStream("loop", at())) seen.push((event.payload as { n: number }).n);
  })();
  await eventually("it reads", () => seen.length === 300);
  await daemon.number("loop", 300, 5);
  await daemon.end("loop");
  await reading;
  expect(seen).toEqual(Array.from({ length: 305 }, (_, n) => n));
});

it("leaving the loop closes the stream", async () => {
  await daemon.number("left", 0, 10);
  const stream = new JobStream("left", at());
  for await (const _ of stream) break;
  expect(stream.state.status).toBe("closed");
  await eventually("no subscriber is left", async () => (await daemon.subscribers()) === 0);
});

it("a loop throws the error of a stream that fails", async () => {
  const loop = async () => {
    for await (const _ of new JobStream("of-nobody", at())) expect.unreachable();
  };
  const error = await loop().catch((error: unknown) => error);
  expect(error).toBeInstanceOf(JobStreamError);
  expect(error).toMatchObject({ name: "JobStreamError", code: "job.not_found", status: 404, retryable: false });
});

it("a loop ends when its stream is closed", async () => {
  const stream = new JobStream("left", at());
  const loop = (async () => {
    for await (const _ of stream);
  })();
  stream.close();
  await loop;
});

it("a loop that begins late yields what came before it, up to maxBuffered events", async () => {
  await daemon.number("late", 0, 30);
  const stream = new JobStream("late", at());
  let count = 0;
  stream.on("event", () => {
    count += 1;
  });
  await eventually("all have come", () => count === 30);
  const seen: unknown[] = [];
  for await (const event of stream) if (seen.push((event.payload as { n: number }).n) === 30) break;
  expect(seen).toEqual(Array.from({ length: 30 }, (_, n) => n));

  const short = new JobStream("late", { ...at(), maxBuffered: 10 });
  await eventually("all have come", () => short.state.isCaughtUp);
  const loop = async () => {
    for await (const _ of short) expect.unreachable();
  };
  await expect(loop()).rejects.toMatchObject({ code: "client.overflow", retryable: false });
});

it("the state that a stream has ended with stays after its loop, and after close()", async () => {
  await daemon.number("ended", 0, 1);
  await daemon.end("ended", "FAILED");
  const stream = new JobStream("ended", at());
  for await (const { jobId } of stream) expect(jobId).toBe("ended");
  stream.close();
  expect(stream.state).toMatchObject({ status: "complete", jobStatus: "FAILED" });
  const failed = new JobStream("of-nobody", at());
  await eventually("it fails", () => failed.state.status === "failed");
  failed.close();
  expect(failed.state).toMatchObject({ status: "failed", error: { code: "job.not_found" } });
});

it("`await using` closes a stream, and its own types are always heard", async () => {
  await daemon.write("using", [{ type: "state", payload: 1 }]);
  let kept: JobStream;
  const heard: unknown[] = [];
  {
    await using stream = new JobStream("using", at());
    kept = stream;
    stream.onType("state", ({ payload }) => heard.push(payload));
    await eventually("it is heard", () => heard.length === 1);
  }
  expect([kept.state.status, heard]).toEqual(["closed", [1]]);
});

it("the debug log says what a stream does", async () => {
  await daemon.number("debug", 0, 1);
  const log: unknown[][] = [];
  const stream = new JobStream("debug", { ...at(), debug: (...data) => log.push(data) });
  await eventually("it is open", () => stream.state.status === "open");
  stream.close();
  expect(log.every(([name, job]) => name === "jobcast" && job === "debug")).toBe(true);
  expect(log.map(([, , action]) => action)).toEqual(expect.arrayContaining(["start", "bytes", "close"]));
});

it("an event of 8 MB in pieces of 1,460 bytes costs time in proportion to its size", async () => {
  const busyMs = async (size: number) => {
    const text = `data: "${"x".repeat(size)}"\n\n`;
    const server = createServer((_, response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      for (let at = 0; at < text.length; at += 1460) response.write(text.slice(at, at + 1460));
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    const before = process.cpuUsage();
    const stream = new JobStream("big", { baseUrl: `http://127.0.0.1:${(server.address() as AddressInfo).port}` });
    for await (const { payload } of stream) {
      expect(payload).toHaveLength(size);
      break;
    }
    server.closeAllConnections();
    server.close();
    return process.cpuUsage(before).user / 1000;
  };
  await busyMs(1e6);
  const [small, large] = [await busyMs(2e6), await busyMs(8e6)];
  // Four times the size; sixteen times the time would be a parser that reads everything again with each piece.
  expect(large).toBeLessThan(Math.max(small, 100) * 10);
});

it("an impossible address throws at once, and an aborted signal connects nothing", () => {
  expect(() => new JobStream("x")).toThrow("give baseUrl");
  const wrong = ["localhost:8080", "https://x:99999", "ftp://x", "http:", "http://", "/rel"];
  for (const baseUrl of [...wrong, "http://x/?y=1", "http://x?", "http://x/y#z", "http://u:p@x", "http://u@x/y"])
    expect(() => new JobStream("x", { baseUrl }), baseUrl).toThrow(`"${baseUrl}" and job "x" make no http address`);
  // A path may be part of it, and an at sign of that.
  for (const path of ["", "/", "/a/b", "/a/b/", "/@scope", "/a%20b"])
    new JobStream("x", { baseUrl: `http://127.0.0.1:1${path}`, signal: AbortSignal.abort() });
  expect(new JobStream("x", { ...at(), signal: AbortSignal.abort() }).state.status).toBe("closed");
});

it("a job id that is no segment of a path throws at once, and in a list fails alone", async () => {
  for (const job of [".", "..", "\ud800", "a\udc00"])
    expect(() => new JobStream(job, at()), job).toThrow(expect.objectContaining({ code: "client.address" }));
  for (const job of ["...", ".a", "a/..", "%2e%2e", "a?b#c", "😀"])
    new JobStream(job, { ...at(), signal: AbortSignal.abort() });
  await daemon.number("good", 0, 2);
  const list = new JobStream(["\ud800", "good", ".."], at());
  const seen: string[] = [];
  list.on("event", ({ jobId }) => seen.push(jobId));
  await eventually("the good job is read", () => seen.length === 2 && list.state.status === "open");
  for (const job of ["\ud800", ".."])
    expect(list.jobs.get(job)).toMatchObject({ status: "failed", error: { code: "client.address" } });
  await daemon.end("good");
  await eventually("the list is complete", () => list.state.status === "complete");
  const hopeless = new JobStream([".", ".."], at());
  await eventually("a list of nothing else fails", () => hopeless.state.status === "failed");
  expect(hopeless.state.error).toMatchObject({ code: "client.address", retryable: false });
});

it("a token that no header can hold fails at once and asks nobody, and a token function may give another", async () => {
  const fetch = vi.spyOn(globalThis, "fetch");
  for (const token of ["a\nb", "日本", "a\0b"]) {
    const stream = new JobStream("token", { ...at(), token });
    await eventually("it fails", () => stream.state.status === "failed");
    expect(stream.state.error).toMatchObject({ code: "client.token", retryable: false });
  }
  expect(fetch).not.toHaveBeenCalled();
  fetch.mockRestore();
  await daemon.number("token", 0, 1);
  const tokens = ["日本", "t"];
  const stream = new JobStream("token", { ...at(), token: () => tokens.shift()!, retry: { initialMs: 5 } });
  const codes: (string | undefined)[] = [];
  stream.on("state", ({ error }) => codes.push(error?.code));
  await eventually("it opens", () => stream.state.status === "open");
  expect(codes).toContain("client.token");
  stream.close();
});

it("a listener that throws does not stop the others, and one that was removed is not called", async () => {
  await daemon.number("thrower", 0, 3);
  const stream = new JobStream("thrower", at());
  const [heard, left]: [JobEvent[], JobEvent[]] = [[], []];
  const thrown: unknown[] = [];
  const before = process.listeners("uncaughtException");
  process.removeAllListeners("uncaughtException");
  process.on("uncaughtException", (error) => thrown.push(error));
  stream.on("event", () => {
    throw new Error("a listener's own");
  });
  stream.on("event", (event) => heard.push(event));
  stream.on("event", (event) => left.push(event))();
  await eventually("the others are called", () => heard.length === 3 && thrown.length === 3);
  process.removeAllListeners("uncaughtException");
  for (const listener of before) process.on("uncaughtException", listener);
  expect(left).toEqual([]);
  stream.close();
});

it("closing within a batch delivers no more of it, and reconnect() goes on there", async () => {
  await daemon.number("batch", 0, 10);
  const stream = new JobStream("batch", at());
  const seen: unknown[] = [];
  stream.on("event", ({ payload }) => {
    seen.push((payload as { n: number }).n);
    if (seen.length === 4) stream.close();
  });
  await eventually("it closes", () => stream.state.status === "closed");
  expect(seen).toHaveLength(4);
  stream.reconnect();
  await eventually("the rest comes", () => seen.length === 10);
  expect(seen).toEqual(Array.from({ length: 10 }, (_, n) => n));
  stream.close();
});

it("a token function that throws is called again, and its token is sent", async () => {
  await daemon.number("token", 0, 1);
  let calls = 0;
  const token = async () => {
    calls += 1;
    if (calls < 3) throw new Error("the API is down");
    return "t";
  };
  const stream = new JobStream("token", { ...at(), token, retry: { initialMs: 5 } });
  const codes: (string | undefined)[] = [];
  stream.on("state", ({ error }) => codes.push(error?.message));
  await eventually("it opens", () => stream.state.status === "open");
  expect(codes).toContain("token() failed: Error: the API is down");
  stream.close();
});

describe("where tokens run out", () => {
  const secret = "for tests alone, and long enough";
  let guarded: Daemon;
  beforeAll(async () => {
    guarded = await Daemon.start({
      "auth.mode": "jwt",
      "auth.jwt.secret": secret,
      "auth.jwt.leeway": "0s",
      // A client that waited as it is told to would be seen to wait.
      "stream.retry": "1h",
    });
  });
  afterAll(() => guarded.stop());

  function sign(seconds: number): string {
    const part = (claims: object) => Buffer.from(JSON.stringify(claims)).toString("base64url");
    const claims = { sub: "ann", "jobcast.jobs": ["*"], exp: Date.now() / 1000 + seconds };
    const text = `${part({ alg: "HS256" })}.${part(claims)}`;
    return `${text}.${createHmac("sha256", secret).update(text).digest("base64url")}`;
  }

  it.each([1, 2])(
    "%i streams with a token function go on with another token at once, and lose nothing",
    async (count) => {
      const jobs = Array.from({ length: count }, (_, index) => `renewed-${count}-${index}`);
      let calls = 0;
      const token = () => {
        calls += 1;
        return sign(2.5);
      };
      const streams = jobs.map((job) => new JobStream(job, { baseUrl: guarded.origin, token }));
      const seen: unknown[] = [];
      const statuses = new Set<string>();
      for (const stream of streams) {
        stream.on("event", ({ payload }) => seen.push((payload as { n: number }).n));
        stream.on("state", ({ status }) => statuses.add(status));
      }
      for (const job of jobs) await guarded.number(job, 0, 1);
      let n = 1;
      await eventually("three tokens were asked for", async () => {
        for (const job of jobs) await guarded.number(job, n, 1);
        n += 1;
        return calls >= 3 && streams.every(({ state }) => state.status === "open");
      });
      await eventually("everything has come", () => seen.length === n * count);
      const expected = Array.from({ length: n }, (_, index) => Array(count).fill(index)).flat();
      expect(seen.sort((a, b) => Number(a) - Number(b))).toEqual(expected);
      expect(statuses).toEqual(new Set(["connecting", "open"]));
      expect(calls).toBeLessThanOrEqual(3 + count);
      for (const stream of streams) stream.close();
    },
  );

  it("tokens that are nearly over make no client go round in circles", async () => {
    let calls = 0;
    const token = () => {
      calls += 1;
      return sign(0.9);
    };
    const stream = new JobStream("near", { baseUrl: guarded.origin, token, retry: { initialMs: 100 } });
    await eventually("it is refused", () => stream.state.status === "retrying" || stream.state.status === "failed");
    expect(calls).toBeLessThanOrEqual(2);
    stream.close();
  });

  it("a token that is no function, and has run out, ends the stream", async () => {
    await guarded.number("fixed", 0, 1);
    const stream = new JobStream("fixed", { baseUrl: guarded.origin, token: sign(-5) });
    await eventually("it fails", () => stream.state.status === "failed");
    expect(stream.state.error).toMatchObject({ status: 401, retryable: false });
  });
});
