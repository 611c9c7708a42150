import type { Client, Watch } from "./client.ts";
import type { Daemon, Numbered } from "./daemon.ts";
import { eventually } from "./eventually.ts";
import type { Gateway } from "./gateway.ts";
import type { Observed, ObserveOptions } from "./observe.ts";

/** The surroundings of a behaviour: a daemon, a proxy before it, and a client that goes through the proxy. */
export class World {
  constructor(
    readonly daemon: Daemon,
    readonly proxy: Gateway,
    readonly client: Client,
    readonly job: string,
  ) {}

  /** Watches a job, with short waits and time-outs unless `options` say otherwise. */
  watch(options: ObserveOptions = {}, job = this.job): Promise<Watch> {
    const { retry, ...rest } = options;
    return this.client.watch(job, {
      heartbeatTimeoutMs: 5000,
      fallbackAfterMs: 2500,
      retry: { initialMs: 50, maxMs: 400, ...retry },
      ...rest,
      baseUrl: rest.baseUrl ?? this.proxy.origin,
    });
  }

  write(events: readonly Numbered[]): Promise<void> {
    return this.daemon.write(this.job, events);
  }

  number(from: number, count: number, text?: string): Promise<void> {
    return this.daemon.number(this.job, from, count, text);
  }
}

export interface Behaviour {
  readonly name: string;
  /** Settings of a daemon of its own, for a behaviour that kills its daemon or needs other settings. */
  readonly daemon?: Record<string, string>;
  /** It needs a clock that stands still. */
  readonly stopsClock?: boolean;
  readonly run: (world: World) => Promise<void>;
}

export const numbers = ({ events }: Observed): unknown[] => events.map(({ payload }) => (payload as { n?: unknown }).n);
export const upTo = (count: number, from = 0): number[] => Array.from({ length: count }, (_, index) => from + index);

/** Waits until `isTrue` holds for the observed stream. The error shows the last observation. */
export async function until(watch: Watch, name: string, isTrue: (now: Observed) => unknown): Promise<Observed> {
  let now: Observed | undefined;
  await eventually(name, async () => isTrue((now = await watch.now()))).catch((error) => {
    const newest = (_: string, value: unknown) => (Array.isArray(value) ? value.slice(-5) : value);
    throw new Error(`${error.message}: ${now?.events.length} events, ${JSON.stringify(now, newest)}`);
  });
  return now!;
}

export const untilCount = (watch: Watch, count: number) =>
  until(watch, `${count} events`, ({ events }) => events.length >= count);
export const untilStatus = (watch: Watch, status: string) =>
  until(watch, `it is ${status}`, (now) => now.status === status);
