import { describe, expect, it } from "vitest";
import { PLAIN, plainText, readLine } from "../src/terminal.js";

const E = "\u001b[";

describe("colours", () => {
  it.each([
    [`${E}31mred`, { colour: 1 }],
    [`${E}97;44mboth`, { colour: 15, background: 4 }],
    [`${E}38;5;208morange`, { colour: "rgb(255 135 0)" }],
    [`${E}38;5;9mof the theme`, { colour: 9 }],
    [`${E}48;5;244mgrey`, { background: "rgb(128 128 128)" }],
    [`${E}38;2;1;2;3mexact`, { colour: "rgb(1 2 3)" }],
    [`${E}38:2::1:2:3;1mwith colons`, { colour: "rgb(1 2 3)", isBold: true }],
    [`${E}58;5;3;4ma colour of the line below`, { isUnderlined: true }],
    [
      `${E}1;2;3;4;7;9mall`,
      { isBold: true, isDim: true, isItalic: true, isUnderlined: true, isInverse: true, isStruck: true },
    ],
    [`${E}1;31m${E}22;39mback`, {}],
    [`${E}31m${E}mreset`, {}],
    [`${E}38;2;999;2;3mnone`, {}],
    [`${E}38mnone`, {}],
    [`${E}12345mnone`, {}],
  ])("%j", (text, style) => {
    expect(readLine(text).runs.at(-1)?.style).toEqual(style);
  });

  it("go on in the next line until they are taken back", () => {
    const { style } = readLine(`${E}32mgreen`);
    expect(readLine("goes on", style).runs).toEqual([{ text: "goes on", style: { colour: 2 } }]);
    expect(readLine(`${E}0m`, style).style).toBe(PLAIN);
  });
});

describe("text", () => {
  it.each([
    ["plain\ttext", "plain\ttext"],
    ["10%\r50%\r100%", "100%"],
    ["100%\rok", "ok0%"],
    [`100%\r${E}Kok`, "ok"],
    [`100%${E}2K${E}1Gok`, "ok"],
    ["ab\bc", "ac"],
    ["windows\r", "windows"],
    ["two\nlines", "two lines"],
    [`${E}2J${E}10;5Hgone\u001b]0;title\u0007 and\u001b]8;;http://x/\u001b\\ link\u001b]8;;\u001b\\`, "gone and link"],
    ["\u009b31mred \u0090string\u009c\u001b(Bend\u001b", "red end"],
    ["\u001bPnever ends", ""],
    [`half${E}`, "half"],
    ["🦀\r🐟x", "🐟x"],
    ["bell\u0007\u0000", "bell"],
    ["", ""],
  ])("%j", (text, expected) => {
    expect(plainText(text)).toBe(expected);
  });

  it("is read in a time that grows with its length", () => {
    for (const text of [`${E}1;`.repeat(50_000), "\u001b".repeat(100_000), "a\r".repeat(100_000)]) {
      expect(plainText(text).length).toBeLessThan(text.length);
    }
  });
});
