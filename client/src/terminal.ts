// Text as a terminal shows it: colours (ECMA-48, "SGR", with the 256 and the direct colours of ISO 8613-6), carriage
// returns that overwrite, and addresses that can be followed. Everything else that drives a terminal is dropped. The text
// is foreign input: it becomes text nodes and links to http and https only, and never markup.

/** The looks of a run of characters. A colour is a CSS colour, or the number of one of the 16 colours of a theme. */
export interface TextStyle {
  readonly colour?: number | string;
  readonly background?: number | string;
  readonly isBold?: boolean;
  readonly isDim?: boolean;
  readonly isItalic?: boolean;
  readonly isUnderlined?: boolean;
  readonly isStruck?: boolean;
  readonly isInverse?: boolean;
}

/** Characters in a row that look the same. */
export interface Run {
  readonly text: string;
  readonly style: TextStyle;
}

/** A line, and the style that the next line of the same writer begins with. */
export interface Line {
  readonly runs: readonly Run[];
  readonly style: TextStyle;
}

export const PLAIN: TextStyle = {};

interface Cell {
  readonly character: string;
  readonly style: TextStyle;
}

/**
 * Sequences of a terminal (ECMA-48): CSI with its parameters and final byte; strings (OSC, DCS, SOS, PM, APC) up to their
 * end, or to the end of the line; escapes of two bytes.
 */
const SEQUENCE =
  // biome-ignore lint/suspicious/noControlCharactersInRegex: escapes begin with a control character
  /(?:\x1b\[|\x9b)([0-?]*)[ -/]*([@-~])|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?|\x1b[ -/]*[0-~]?/y;
// biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are meant
const CONTROL = /[\x00-\x08\x0a-\x1f\x7f-\x9f]/;
const ADDRESS = /https?:\/\/[^\s<>"'`\\^{}|]+/gi;
const CUBE = [0, 95, 135, 175, 215, 255];

/** Reads one line, which begins in `style`. A line break within it is a blank. */
export function readLine(text: string, style: TextStyle = PLAIN): Line {
  if (!CONTROL.test(text)) return { runs: text === "" ? [] : [{ text, style }], style };
  return new LineReader(style).read(text);
}

/** Returns the text of a line without its looks. */
export function plainText(text: string): string {
  if (!CONTROL.test(text)) return text;
  return readLine(text)
    .runs.map((run) => run.text)
    .join("");
}

/** A line while it is read: the cells that were written, and the place of the next one. */
class LineReader {
  readonly #cells: Cell[] = [];
  #column = 0;
  #style: TextStyle;

  constructor(style: TextStyle) {
    this.#style = style;
  }

  read(text: string): Line {
    for (let at = 0; at < text.length; ) {
      SEQUENCE.lastIndex = at;
      const sequence = SEQUENCE.exec(text);
      if (sequence) {
        at = SEQUENCE.lastIndex;
        if (sequence[2] !== undefined) this.#control(sequence[2], sequence[1] ?? "");
      } else {
        const character = String.fromCodePoint(text.codePointAt(at)!);
        at += character.length;
        this.#write(character);
      }
    }
    return { runs: this.#runs(), style: this.#style };
  }

  #write(character: string): void {
    if (character === "\r") this.#column = 0;
    else if (character === "\b") this.#column = Math.max(0, this.#column - 1);
    else if (character === "\n") this.#put(" ");
    else if (!CONTROL.test(character)) this.#put(character);
  }

  #put(character: string): void {
    while (this.#cells.length < this.#column) this.#cells.push({ character: " ", style: PLAIN });
    this.#cells[this.#column] = { character, style: this.#style };
    this.#column += 1;
  }

  #control(final: string, parameters: string): void {
    if (final === "m") this.#style = styleAfter(this.#style, parameters);
    else if (final === "K") this.#erase(parameters);
    // Column 1 is the most that such a line needs: "back to its beginning".
    else if (final === "G" && (parameters === "" || parameters === "1")) this.#column = 0;
  }

  /** Erases to the end of the line, to its beginning, or all of it. */
  #erase(parameters: string): void {
    if (parameters === "" || parameters === "0") this.#cells.length = Math.min(this.#cells.length, this.#column);
    else if (parameters === "2") this.#cells.length = 0;
    else if (parameters === "1") this.#cells.fill({ character: " ", style: PLAIN }, 0, this.#column + 1);
  }

  #runs(): Run[] {
    const runs: { text: string; style: TextStyle }[] = [];
    for (const { character, style } of this.#cells) {
      const last = runs.at(-1);
      if (last?.style === style) last.text += character;
      else runs.push({ text: character, style });
    }
    return runs;
  }
}

/** Returns the style after a "select graphic rendition". Unknown parameters change nothing. */
function styleAfter(before: TextStyle, parameters: string): TextStyle {
  let style: { -readonly [Name in keyof TextStyle]: TextStyle[Name] } = { ...before };
  const codes = parameters.split(";");
  for (let at = 0; at < codes.length; at += 1) {
    // A colour has its own parameters behind colons (ISO 8613-6), or, as most write it, behind semicolons.
    const [code = "", ...own] = codes[at]!.split(":");
    const number = Number(code);
    if (number === 0) style = {};
    else if (number === 38 || number === 48 || number === 58) {
      const given = own.length > 0 ? own : codes.slice(at + 1, at + 5);
      const { colour, used } = extendedColour(given, own.length > 0);
      if (own.length === 0) at += used;
      if (colour === undefined) continue;
      if (number === 38) style.colour = colour;
      if (number === 48) style.background = colour;
    } else applyCode(style, number, own[0] !== "0");
  }
  return Object.keys(style).length === 0 ? PLAIN : style;
}

function applyCode(
  style: { -readonly [Name in keyof TextStyle]: TextStyle[Name] },
  code: number,
  isUnderlineOn: boolean,
): void {
  if (code >= 30 && code <= 37) style.colour = code - 30;
  else if (code >= 90 && code <= 97) style.colour = code - 90 + 8;
  else if (code >= 40 && code <= 47) style.background = code - 40;
  else if (code >= 100 && code <= 107) style.background = code - 100 + 8;
  else if (code === 39) delete style.colour;
  else if (code === 49) delete style.background;
  else if (code === 1) style.isBold = true;
  else if (code === 2) style.isDim = true;
  else if (code === 3) style.isItalic = true;
  else if (code === 4 && isUnderlineOn) style.isUnderlined = true;
  else if (code === 7) style.isInverse = true;
  else if (code === 9) style.isStruck = true;
  else if (code === 22) {
    delete style.isBold;
    delete style.isDim;
  } else if (code === 23) delete style.isItalic;
  else if (code === 24 || code === 4) delete style.isUnderlined;
  else if (code === 27) delete style.isInverse;
  else if (code === 29) delete style.isStruck;
}

/** Reads `5;n` or `2;r;g;b`, with colons also `2:<space>:r:g:b`. `used` is the number of parameters that belonged to it. */
function extendedColour(given: string[], hasColons: boolean): { colour?: number | string; used: number } {
  const numbers = given.map(Number);
  const isByte = (value: number | undefined) => value !== undefined && value >= 0 && value <= 255;
  if (numbers[0] === 5) {
    const [, index] = numbers;
    return isByte(index) ? { colour: indexedColour(index!), used: 2 } : { used: 2 };
  }
  if (numbers[0] !== 2) return { used: 0 };
  const parts = hasColons && numbers.length > 4 ? numbers.slice(2, 5) : numbers.slice(1, 4);
  if (parts.length < 3 || !parts.every(isByte)) return { used: 4 };
  return { colour: `rgb(${parts.join(" ")})`, used: 4 };
}

/** The 256 colours: 16 of the theme, a cube of 6 × 6 × 6, and 24 greys. */
function indexedColour(index: number): number | string {
  if (index < 16) return index;
  if (index >= 232) {
    const grey = 8 + (index - 232) * 10;
    return `rgb(${grey} ${grey} ${grey})`;
  }
  const cube = index - 16;
  return `rgb(${CUBE[Math.floor(cube / 36)]} ${CUBE[Math.floor(cube / 6) % 6]} ${CUBE[cube % 6]})`;
}

/**
 * Makes the nodes of a line. The 16 colours are the custom properties `--ansi-0` to `--ansi-15`; for an inverse run
 * `--ansi-paper` and `--ansi-ink` are the colours of what has none. Styles are set by script, which a strict content
 * security policy allows.
 */
export function render(runs: readonly Run[]): DocumentFragment {
  const fragment = document.createDocumentFragment();
  for (const { text, style } of runs) {
    if (style === PLAIN) {
      appendWithLinks(fragment, text);
      continue;
    }
    const span = document.createElement("span");
    paint(span.style, style);
    appendWithLinks(span, text);
    fragment.append(span);
  }
  return fragment;
}

function paint(css: CSSStyleDeclaration, style: TextStyle): void {
  const { colour, background } = coloursOf(style);
  if (colour !== undefined) css.color = colour;
  if (background !== undefined) css.backgroundColor = background;
  if (style.isBold) css.fontWeight = "bold";
  if (style.isDim) css.opacity = "0.7";
  if (style.isItalic) css.fontStyle = "italic";
  const lines = [style.isUnderlined && "underline", style.isStruck && "line-through"].filter(Boolean);
  if (lines.length > 0) css.textDecoration = lines.join(" ");
}

/** Returns colours of CSS. On a dark paper black is no ink: it is written as such only on one of the theme's colours. */
function coloursOf(style: TextStyle): { colour?: string | undefined; background?: string | undefined } {
  const name = (colour: number | string | undefined) => (typeof colour === "number" ? `var(--ansi-${colour})` : colour);
  const { colour, background } = style;
  const paper = "var(--ansi-paper)";
  if (style.isInverse) return { colour: name(background) ?? paper, background: name(colour) ?? "var(--ansi-ink)" };
  if (typeof background !== "number") return { colour: name(colour), background };
  if (background === 0) return { colour: name(colour), background: paper };
  if (colour === 0) return { colour: paper, background: name(background) };
  // Light inks can be read on the theme's colours when these are dark.
  return { colour: name(colour), background: `color-mix(in srgb, ${name(background)} 40%, ${paper})` };
}

/** Appends a text whose http and https addresses are links. */
function appendWithLinks(to: Node, text: string): void {
  let end = 0;
  for (const match of text.matchAll(ADDRESS)) {
    const address = withoutPunctuation(match[0]);
    if (!URL.canParse(address)) continue;
    to.appendChild(document.createTextNode(text.slice(end, match.index)));
    const link = document.createElement("a");
    link.href = address;
    link.target = "_blank";
    link.rel = "noopener noreferrer";
    link.textContent = address;
    to.appendChild(link);
    end = match.index + address.length;
  }
  if (end < text.length) to.appendChild(document.createTextNode(text.slice(end)));
}

/** Takes off what ends a sentence, and brackets that the address does not open itself. */
function withoutPunctuation(address: string): string {
  let rest = address;
  for (;;) {
    const last = rest.at(-1) ?? "";
    const opening = { ")": "(", "]": "[" }[last];
    const isUnopened = opening !== undefined && rest.split(opening).length < rest.split(last).length;
    if (!isUnopened && !".,;:!?*".includes(last)) return rest;
    rest = rest.slice(0, -1);
  }
}
