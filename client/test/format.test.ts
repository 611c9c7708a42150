// The format of event streams by the standard (WHATWG HTML, "Server-sent events"). The cases cover the public
// web-platform tests in eventsource/, for the client in Node and in Chromium.
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type Client, inChromium, inNode } from "./support/client.ts";
import { Gateway } from "./support/gateway.ts";
import { Raw, type Script } from "./support/raw.ts";
import { untilStatus } from "./support/world.ts";

interface Case {
  name: string;
  sends: Script;
  payloads: unknown[];
  types?: string[];
  cursors?: string[];
  /** The cursor of the next connection. */
  resumes?: string | null;
  waits?: number;
  contentType?: string;
}

const BOM = "\uFEFF";
const WAIT = 7;
const CASES: Case[] = [
  {
    name: "a BOM at the start is skipped, and any other is not",
    sends: [`${BOM}data:a\n\n${BOM}data:b\n\ndata:c\n\n`],
    payloads: ["a", "c"],
  },
  {
    name: "the second of two BOMs at the start is not skipped",
    sends: [`${BOM}${BOM}data:a\n\ndata:b\n\n`],
    payloads: ["b"],
  },
  {
    name: "a BOM that arrives in pieces is skipped",
    sends: [Uint8Array.of(0xef), Uint8Array.of(0xbb), Uint8Array.of(0xbf), "data:a\n\n"],
    payloads: ["a"],
  },
  {
    name: "comments are skipped",
    sends: [`data:a\r:\0\n:\r\ndata:b\n:${"x".repeat(2000)}\rdata:c\n:data:fail\r:\r\ndata:d\n\n`],
    payloads: ["a\nb\nc\nd"],
  },
  {
    name: "an event that no empty line ends is dropped",
    sends: ["data:a\n\nid:t\ndata:b"],
    payloads: ["a"],
    resumes: null,
  },
  {
    name: "an event that ends with a whole line, and no empty one, is dropped",
    sends: ["data:a\n\ndata:b\n"],
    payloads: ["a"],
  },
  {
    name: "data may be empty or without a colon",
    sends: ["data:\n\ndata\ndata\n\ndata:a\n\n"],
    payloads: ["", "\n", "a"],
  },
  {
    name: "a type holds for one event, and an empty one is none",
    sends: ["event:t\ndata:x\n\ndata:x\n\nevent: \ndata:x\n\n"],
    payloads: ["x", "x", "x"],
    types: ["t", "message", "message"],
  },
  {
    name: "an id holds until another one comes",
    sends: ["id:1\ndata:a\n\ndata:b\n\n"],
    payloads: ["a", "b"],
    cursors: ["1", "1"],
    resumes: "1",
  },
  {
    name: "an empty id clears the id",
    sends: ["id:1\ndata:a\n\nid:\ndata:b\n\n"],
    payloads: ["a", "b"],
    cursors: ["1", ""],
    resumes: null,
  },
  {
    name: "an id with U+0000 is ignored",
    sends: ["id:1\ndata:a\n\nid:a\0b\ndata:b\n\n"],
    payloads: ["a", "b"],
    resumes: "1",
  },
  {
    name: "names of fields count exactly as they are written",
    sends: [
      "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
    ],
    payloads: ["\0\n 2\n1\n3\n\n4"],
  },
  {
    name: "unknown fields are ignored",
    sends: ["data:a\n data\ndata\nfoobar:xxx\njusttext\n:comment\n\n"],
    payloads: ["a\n"],
  },
  {
    name: "only one space after the colon is removed",
    sends: ["data:\ttest\rdata: \ndata:  x\n\n"],
    payloads: ["\ttest\n\n x"],
  },
  { name: "CR, LF and CRLF end a line", sends: ["data:a\r\ndata\ndata:b\r\n\r"], payloads: ["a\n\nb"] },
  { name: "CR alone ends a line", sends: ["data:a\r\rdata:b\r\r"], payloads: ["a", "b"] },
  {
    name: "a CRLF may arrive in two pieces",
    sends: ["data:a\r", "\ndata:b\r", "\n\r", "\n", "data:c\n\n"],
    payloads: ["a\nb", "c"],
  },
  {
    name: "a CR at the end of a piece ends a line",
    sends: ["data:a\r", "data:b\r", "\r", "data:c\r\r"],
    payloads: ["a\nb", "c"],
  },
  { name: "U+0000 is data like any other", sends: ["data:\0\n\n\n\n"], payloads: ["\0"] },
  {
    name: "a stream is UTF-8, whatever its charset parameter says",
    sends: ["data:ok…\n\n"],
    payloads: ["ok…"],
    contentType: "text/event-stream;charset=windows-1251",
  },
  {
    name: "a content type may be in capitals and have a parameter",
    sends: ["data:a\n\n"],
    payloads: ["a"],
    contentType: "TEXT/Event-Stream ; x=y",
  },
  {
    name: "invalid UTF-8 is replaced by U+FFFD",
    sends: [Uint8Array.of(0x64, 0x61, 0x74, 0x61, 0x3a, 0xff, 0x0a, 0x0a)],
    payloads: ["\uFFFD"],
  },
  {
    name: "a character may arrive in two pieces",
    sends: [
      Buffer.from("data:€𝄞\n\n").subarray(0, 7),
      Buffer.from("data:€𝄞\n\n").subarray(7, 10),
      Buffer.from("data:€𝄞\n\n").subarray(10),
    ],
    payloads: ["€𝄞"],
  },
  {
    name: "an event may have thousands of lines",
    sends: [`${"data:x\n".repeat(2000)}\n`],
    payloads: [Array(2000).fill("x").join("\n")],
  },
  { name: "retry sets the wait", sends: ["retry:130\ndata:a\n\n"], payloads: ["a"], waits: 130 },
  { name: "retry may have leading zeros", sends: ["retry:00130\ndata:a\n\n"], payloads: ["a"], waits: 130 },
  { name: "a retry of 0 is a short wait", sends: ["retry:0\ndata:a\n\n"], payloads: ["a"], waits: 100 },
  {
    name: "a retry that is no number is ignored",
    sends: ["retry:3000x\nretry:-1\nretry:\nretry\ndata:a\n\n"],
    payloads: ["a"],
    waits: WAIT,
  },
  {
    name: "data is parsed as JSON, and is a text if it is none",
    sends: ['data:{"a":[1]}\n\ndata:{"a"\n\n'],
    payloads: [{ a: [1] }, '{"a"'],
  },
];

for (const place of ["Node", "Chromium"]) {
  describe(place, () => {
    let raw: Raw;
    let proxy: Gateway;
    let client: Client;
    let job = 0;
    beforeAll(async () => {
      raw = await Raw.start();
      proxy = await Gateway.before(() => raw.origin);
      client = place === "Node" ? inNode() : await inChromium(() => proxy.origin);
    });
    afterEach(async () => {
      await client.reset();
      proxy.reset();
      raw.type = "text/event-stream";
      raw.headers = {};
    });
    afterAll(async () => {
      await client?.stop();
      await proxy?.stop();
      raw?.stop();
    });
    it.each(CASES)("$name", async ({ sends, payloads, types, cursors, resumes, waits, contentType }) => {
      const id = `raw-${(job += 1)}`;
      raw.type = contentType ?? raw.type;
      raw.send(id, sends);
      const options = { baseUrl: proxy.origin, fallback: "none", retry: { initialMs: WAIT, jitter: 0 } } as const;
      const now = await untilStatus(await client.watch(id, options), "complete");
      expect(now.events.map(({ payload }) => payload)).toEqual(payloads);
      if (types) expect(now.events.map(({ type }) => type)).toEqual(types);
      if (cursors) expect(now.events.map(({ cursor }) => cursor)).toEqual(cursors);
      const [first, second] = proxy.streams(id);
      expect(first?.headers.accept).toBe("text/event-stream");
      if (resumes !== undefined) expect(second?.url.searchParams.get("lastEventId")).toBe(resumes);
      if (waits !== undefined) expect(now.waits[0]).toBe(waits);
    });
    const options = { fallback: "none", retry: { initialMs: WAIT, jitter: 0 } } as const;
    const sent = (cursor: string, stepId: string) =>
      `id:${cursor}\ndata:${JSON.stringify({ id: "1", stepId, type: "x", payload: stepId })}\n\n`;

    it("repeats are told by the cursor where ids repeat, and by the id where they do not", async () => {
      const id = `raw-${(job += 1)}`;
      const script = [sent("a", "compile"), sent("b", "test"), sent("b", "test")];
      raw.headers = { "X-Jobcast-Unique": "cursor" };
      raw.send(id, script, script);
      const both = await untilStatus(await client.watch(id, { ...options, baseUrl: proxy.origin }), "complete");
      expect(both.events.map(({ stepId }) => stepId)).toEqual(["compile", "test"]);
      raw.headers = {};
      raw.send(`${id}-id`, script, script);
      const one = await untilStatus(await client.watch(`${id}-id`, { ...options, baseUrl: proxy.origin }), "complete");
      expect(one.events.map(({ stepId }) => stepId)).toEqual(["compile"]);
    });
    it("the job's status is live, and no event", async () => {
      const id = `raw-${(job += 1)}`;
      const status = (name: string) => `event:stream.status\ndata:{"jobId":"${id}","status":"${name}"}\n\n`;
      raw.send(id, [`:jobcast\n\n${status("QUEUED")}`, status("RUNNING"), "data:a\n\n"]);
      const now = await untilStatus(await client.watch(id, { ...options, baseUrl: proxy.origin }), "complete");
      expect(now.jobStatuses).toEqual([null, "QUEUED", "RUNNING"]);
      expect(now.events.map(({ payload }) => payload)).toEqual(["a"]);
    });
    it("another token is asked for when a stream says that its own has run out", async () => {
      const id = `raw-${(job += 1)}`;
      raw.send(id, ['event:stream.bye\ndata:{"reason":"expired","retryInMs":1}\n\n'], ["data:a\n\n"]);
      const tokens = ["one", "two", "three"];
      const watch = await client.watch(id, { ...options, baseUrl: proxy.origin, tokens });
      const now = await untilStatus(watch, "complete");
      expect(now.tokensAsked).toBe(2);
      const sent = proxy.streams(id).map(({ headers }) => headers.authorization);
      expect(sent).toEqual(["Bearer one", "Bearer two", "Bearer two"]);
    });
    it("parts of an event that could not be read are named in it", async () => {
      const id = `raw-${(job += 1)}`;
      const event = { id: "1", type: "x", payload: "\uFFFD", timestamp: null, unreadable: ["payload", "timestamp"] };
      raw.send(id, [`id:1\ndata:${JSON.stringify(event)}\n\n`]);
      const now = await untilStatus(await client.watch(id, { ...options, baseUrl: proxy.origin }), "complete");
      expect(now.events[0]).toMatchObject({ payload: "\uFFFD", unreadable: ["payload", "timestamp"] });
    });
    it("a content type that only begins like text/event-stream is refused", async () => {
      const id = `raw-${(job += 1)}`;
      raw.type = "text/event-stream-not";
      raw.send(id, ["data:a\n\n"]);
      const now = await untilStatus(
        await client.watch(id, { baseUrl: proxy.origin, fallback: "none", retry: { maxAttempts: 0 } }),
        "failed",
      );
      expect(now.events).toEqual([]);
    });
  });
}
