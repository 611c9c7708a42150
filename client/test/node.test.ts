// Behaviour that is easiest to see in Node: the async iterator, closing early, and mistakes that are reported at once.
import { afterAll, beforeAll, expect, it } from "vitest";
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

it("an impossible address throws at once, and an aborted signal connects nothing", () => {
  expect(() => new JobStream("x")).toThrow("give baseUrl");
  expect(new JobStream("x", { ...at(), signal: AbortSignal.abort() }).state.status).toBe("closed");
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
