// How a stream is to be read (WHATWG HTML, "Server-sent events"): what the public web-platform tests in eventsource/ ask
// for, asked of our client in Node and in Chromium.
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import { type Client, inChromium, inNode } from "./support/client.ts";
import { Gateway } from "./support/gateway.ts";
import { Raw, type Script } from "./support/raw.ts";
import { untilStatus } from "./support/world.ts";

interface Case {
  name: string;
  says: Script;
  hears: unknown[];
  types?: string[];
  cursors?: string[];
  /** What the next connection asks to go on after. */
  resumes?: string | null;
  waits?: number;
  contentType?: string;
}

const BOM = "\uFEFF";
const WAIT = 7;
const CASES: Case[] = [
  {
    name: "a BOM at the start is no part of it",
    says: [`${BOM}data:a\n\n${BOM}data:b\n\ndata:c\n\n`],
    hears: ["a", "c"],
  },
  { name: "of two BOMs one is", says: [`${BOM}${BOM}data:a\n\ndata:b\n\n`], hears: ["b"] },
  {
    name: "a BOM in pieces",
    says: [Uint8Array.of(0xef), Uint8Array.of(0xbb), Uint8Array.of(0xbf), "data:a\n\n"],
    hears: ["a"],
  },
  {
    name: "comments",
    says: [`data:a\r:\0\n:\r\ndata:b\n:${"x".repeat(2000)}\rdata:c\n:data:fail\r:\r\ndata:d\n\n`],
    hears: ["a\nb\nc\nd"],
  },
  { name: "what no empty line ends is dropped", says: ["data:a\n\nid:t\ndata:b"], hears: ["a"], resumes: null },
  { name: "even with its line whole", says: ["data:a\n\ndata:b\n"], hears: ["a"] },
  {
    name: "data may be empty, or without a colon",
    says: ["data:\n\ndata\ndata\n\ndata:a\n\n"],
    hears: ["", "\n", "a"],
  },
  {
    name: "types",
    says: ["event:t\ndata:x\n\ndata:x\n\nevent: \ndata:x\n\n"],
    hears: ["x", "x", "x"],
    types: ["t", "message", "message"],
  },
  {
    name: "an id stays until another comes",
    says: ["id:1\ndata:a\n\ndata:b\n\n"],
    hears: ["a", "b"],
    cursors: ["1", "1"],
    resumes: "1",
  },
  {
    name: "an empty id clears it",
    says: ["id:1\ndata:a\n\nid:\ndata:b\n\n"],
    hears: ["a", "b"],
    cursors: ["1", ""],
    resumes: null,
  },
  { name: "an id with U+0000 is none", says: ["id:1\ndata:a\n\nid:a\0b\ndata:b\n\n"], hears: ["a", "b"], resumes: "1" },
  {
    name: "fields as they are written",
    says: [
      "data:\0\ndata:  2\rData:1\ndata\0:2\ndata:1\r\0data:4\nda-ta:3\rdata_5\ndata:3\rdata:\r\n data:32\ndata:4\n\n",
    ],
    hears: ["\0\n 2\n1\n3\n\n4"],
  },
  { name: "unknown fields", says: ["data:a\n data\ndata\nfoobar:xxx\njusttext\n:comment\n\n"], hears: ["a\n"] },
  { name: "one space is taken away, no more", says: ["data:\ttest\rdata: \ndata:  x\n\n"], hears: ["\ttest\n\n x"] },
  { name: "CR, LF and CRLF", says: ["data:a\r\ndata\ndata:b\r\n\r"], hears: ["a\n\nb"] },
  { name: "CR alone", says: ["data:a\r\rdata:b\r\r"], hears: ["a", "b"] },
  {
    name: "a piece ends between CR and LF",
    says: ["data:a\r", "\ndata:b\r", "\n\r", "\n", "data:c\n\n"],
    hears: ["a\nb", "c"],
  },
  {
    name: "a piece ends after CR, and another line follows",
    says: ["data:a\r", "data:b\r", "\r", "data:c\r\r"],
    hears: ["a\nb", "c"],
  },
  { name: "U+0000 is data like any other", says: ["data:\0\n\n\n\n"], hears: ["\0"] },
  {
    name: "always UTF-8",
    says: ["data:ok…\n\n"],
    hears: ["ok…"],
    contentType: "text/event-stream;charset=windows-1251",
  },
  {
    name: "a type in capitals, with a parameter",
    says: ["data:a\n\n"],
    hears: ["a"],
    contentType: "TEXT/Event-Stream ; x=y",
  },
  {
    name: "what is no UTF-8 is replaced",
    says: [Uint8Array.of(0x64, 0x61, 0x74, 0x61, 0x3a, 0xff, 0x0a, 0x0a)],
    hears: ["\uFFFD"],
  },
  {
    name: "a piece ends within UTF-8",
    says: [
      Buffer.from("data:€𝄞\n\n").subarray(0, 7),
      Buffer.from("data:€𝄞\n\n").subarray(7, 10),
      Buffer.from("data:€𝄞\n\n").subarray(10),
    ],
    hears: ["€𝄞"],
  },
  { name: "many lines", says: [`${"data:x\n".repeat(2000)}\n`], hears: [Array(2000).fill("x").join("\n")] },
  { name: "retry", says: ["retry:30\ndata:a\n\n"], hears: ["a"], waits: 30 },
  { name: "retry with leading zeros", says: ["retry:0030\ndata:a\n\n"], hears: ["a"], waits: 30 },
  {
    name: "a retry that is no number",
    says: ["retry:3000x\nretry:-1\nretry:\nretry\ndata:a\n\n"],
    hears: ["a"],
    waits: WAIT,
  },
  {
    name: "JSON is read, and what is none is text",
    says: ['data:{"a":[1]}\n\ndata:{"a"\n\n'],
    hears: [{ a: [1] }, '{"a"'],
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
    });
    afterAll(async () => {
      await client?.stop();
      await proxy?.stop();
      raw?.stop();
    });
    it.each(CASES)("$name", async ({ says, hears, types, cursors, resumes, waits, contentType }) => {
      const id = `raw-${(job += 1)}`;
      raw.type = contentType ?? raw.type;
      raw.say(id, says);
      const options = { baseUrl: proxy.origin, fallback: "none", retry: { initialMs: WAIT, jitter: 0 } } as const;
      const now = await untilStatus(await client.watch(id, options), "complete");
      expect(now.events.map(({ payload }) => payload)).toEqual(hears);
      if (types) expect(now.events.map(({ type }) => type)).toEqual(types);
      if (cursors) expect(now.events.map(({ cursor }) => cursor)).toEqual(cursors);
      const [first, second] = proxy.streams(id);
      expect(first?.headers.accept).toBe("text/event-stream");
      if (resumes !== undefined) expect(second?.url.searchParams.get("lastEventId")).toBe(resumes);
      if (waits !== undefined) expect(now.waits[0]).toBe(waits);
    });
    it("is no event stream by a type that only begins like one", async () => {
      const id = `raw-${(job += 1)}`;
      raw.type = "text/event-stream-not";
      raw.say(id, ["data:a\n\n"]);
      const now = await untilStatus(await client.watch(id, { baseUrl: proxy.origin, fallback: "none" }), "failed");
      expect(now.events).toEqual([]);
    });
  });
}
