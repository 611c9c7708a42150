/** Random choices that can be made again: a failed test names its seed, and SEED repeats it. */
export class Random {
  readonly seed: string;
  #state: number;

  constructor() {
    const seed = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
    this.seed = `SEED=${seed}`;
    this.#state = seed;
  }

  /** Returns a whole number from 0 on, below `limit` (the generator "mulberry32"). */
  below(limit: number): number {
    this.#state = (this.#state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(this.#state ^ (this.#state >>> 15), 1 | this.#state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) % limit;
  }

  of<T>(values: readonly T[]): T {
    return values[this.below(values.length)]!;
  }

  /** Returns some of the values, 2 to `most`, each once. */
  some<T>(values: readonly T[], most: number): T[] {
    const left = [...values];
    return Array.from({ length: 2 + this.below(most - 1) }, () => left.splice(this.below(left.length), 1)[0]!);
  }
}
