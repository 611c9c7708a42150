// Types of one's own events: what must compile does, and what must not is an error that is expected.
import { CONNECTING, type JobEvent, JobStream } from "../src/index.js";
import { useJobStream, useJobStreams } from "../src/react.js";
import { createJobStream, createJobStreams } from "../src/solid.js";
import { jobStream, jobStreams } from "../src/svelte.js";
import { useJobStream as useJobStreamOfVue, useJobStreams as useJobStreamsOfVue } from "../src/vue.js";

interface MyEvents {
  "step.output": { line: string };
  "step.progress": { percent: number };
  state: { mood: string };
}

export function core(): void {
  const stream = new JobStream<MyEvents>("job");
  stream.on("step.output", (event) => event.payload.line.toUpperCase());
  stream.on("event", (event) => {
    if (event.type === "step.progress") event.payload.percent.toFixed();
    // @ts-expect-error: this type is none of them
    if (event.type === "step.progres") event.payload;
  });
  stream.on("state", (state) => {
    if (state.status === "retrying") new Date(state.retryAt + state.retryInMs);
    // @ts-expect-error: a stream that is not retrying has no time for it
    else new Date(state.retryAt);
  });
  CONNECTING.status satisfies string;
  stream.onType("state", (event) => event.payload.mood.toUpperCase());
  // @ts-expect-error: no event has this type
  stream.on("step.outptu", () => {});
  // @ts-expect-error: no event has this type
  stream.onType("reset", () => {});
  // @ts-expect-error: this payload has no such field
  stream.on("step.output", (event) => event.payload.lines);

  const any = new JobStream("job");
  any.on("anything", (event) => event.payload satisfies unknown);
  any.on("event", (event: JobEvent) => event.type.toUpperCase());
}

export async function inLoop(): Promise<void> {
  await using stream = new JobStream<MyEvents>("job");
  for await (const event of stream) if (event.type === "step.output") event.payload.line.toUpperCase();
}

export function hook(): void {
  const typed = useJobStream<MyEvents>("job", { onEvent: (event) => event.type === "state" && event.payload.mood });
  for (const event of typed.events) if (event.type === "step.output") event.payload.line.toUpperCase();
  const reduced = useJobStream<MyEvents, number>("job", {
    initial: 0,
    reduce: (count, { type }) => count + type.length,
  });
  reduced.reduced.toFixed();
  const inferred = useJobStream("job", { initial: [] as string[], reduce: (types, { type }) => [...types, type] });
  inferred.reduced.map((type) => type.toUpperCase());
  const late = useJobStream("job", { reduce: (count: number | undefined, _) => (count ?? 0) + 1 });
  late.reduced?.toFixed();
  const many = useJobStreams<MyEvents, number>(["a", "b"], { initial: 0, reduce: (count) => count + 1 });
  for (const [jobId, { events, reduced }] of many)
    for (const event of events) if (event.type === "step.output") event.payload.line.concat(jobId, reduced.toFixed());
  const plain = useJobStream("job", { baseUrl: undefined, maxEvents: undefined, token: undefined });
  plain.events.map(({ payload }) => payload satisfies unknown);
  // @ts-expect-error: there is no such option
  useJobStream("job", { maxEvent: 3 });
}

export function vue(): void {
  const { job } = useJobStreamOfVue<MyEvents>(() => "job", {
    onEvent: (event) => event.type === "step.output" && event.payload.line.toUpperCase(),
  });
  for (const event of job.value.events) if (event.type === "step.output") event.payload.line.toUpperCase();
  // @ts-expect-error: this type is none of them
  job.value.lastEvent?.type === "step.outptu";
  // @ts-expect-error: this payload has no such field
  useJobStreamOfVue<MyEvents>("job", { onEvent: (event) => event.type === "state" && event.payload.moods });
  const { jobs } = useJobStreamsOfVue<MyEvents>(() => ["a", "b"], { last: 1 });
  for (const { lastEvent } of jobs.value.values())
    if (lastEvent?.type === "step.progress") lastEvent.payload.percent.toFixed();
  // @ts-expect-error: this type is none of them
  jobs.value.get("a")?.lastEvent?.type === "step.progres";
  useJobStreamOfVue("job").job.value.events.map(({ payload }) => payload satisfies unknown);
}

export function solid(): void {
  const { job } = createJobStream<MyEvents>(() => "job", {
    onEvent: (event) => event.type === "step.output" && event.payload.line.toUpperCase(),
  });
  for (const event of job().events) if (event.type === "step.output") event.payload.line.toUpperCase();
  // @ts-expect-error: this type is none of them
  job().lastEvent?.type === "step.outptu";
  // @ts-expect-error: this payload has no such field
  createJobStream<MyEvents>(() => "job", { onEvent: (event) => event.type === "state" && event.payload.moods });
  const { jobs } = createJobStreams<MyEvents>(() => ["a", "b"], { last: 1 });
  for (const { lastEvent } of jobs().values())
    if (lastEvent?.type === "step.progress") lastEvent.payload.percent.toFixed();
  // @ts-expect-error: this type is none of them
  jobs().get("a")?.lastEvent?.type === "step.progres";
  const plain = createJobStream(() => null, { onEvent: ({ payload }) => payload satisfies unknown });
  plain.job().events.map(({ type }) => type.toUpperCase());
}

export function svelte(): void {
  const job = jobStream<MyEvents>("job", {
    onEvent: (event) => event.type === "step.output" && event.payload.line.toUpperCase(),
  });
  job.subscribe(({ events }) => {
    for (const event of events) if (event.type === "step.output") event.payload.line.toUpperCase();
    // @ts-expect-error: this type is none of them
    events[0]?.type === "step.outptu";
  });
  // @ts-expect-error: this payload has no such field
  jobStream<MyEvents>("job", { onEvent: (event) => event.type === "state" && event.payload.moods });
  jobStreams<MyEvents>(["a", "b"], { last: 1 }).subscribe((jobs) => {
    for (const { lastEvent } of jobs.values())
      if (lastEvent?.type === "step.progress") lastEvent.payload.percent.toFixed();
    // @ts-expect-error: this type is none of them
    jobs.get("a")?.lastEvent?.type === "step.progres";
  });
  jobStream(null).subscribe(({ events }) => events.map(({ payload }) => payload satisfies unknown));
}
