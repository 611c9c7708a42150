// A page with the hook, which the tests steer and look into.
import "./leftovers.js";
import { Component, memo, type ReactNode, StrictMode, version } from "react";
import { createRoot, hydrateRoot, type Root } from "react-dom/client";
import { renderToString } from "react-dom/server.browser";
import {
  type AnyEvents,
  type JobEvent,
  type UseJobStream,
  type UseJobStreamOptions,
  useJobStream,
  useJobStreams,
} from "../../src/react.js";

interface Shown {
  jobId: string | null;
  /** `counts`: the hook reduces events to their number. `stumblesAt`: its reducer throws at the event of this number. */
  options?: Omit<UseJobStreamOptions, "reduce" | "initial"> & {
    tokens?: boolean;
    counts?: boolean;
    stumblesAt?: number;
  };
}

/** What the callbacks of the hook were called with. */
interface Told {
  events: number[];
  resets: string[];
  completed: (string | null)[];
  errors: string[];
}

declare global {
  interface Window {
    seen: {
      renders: number[];
      shown: UseJobStream<AnyEvents, number | undefined> | null;
      problems: string[];
      told: Told;
    };
    reactVersion: string;
    show(jobs: Shown[], isStrict?: boolean): void;
    /** Shows several jobs by one hook. Their rows are told to `rowRenders` when they render. */
    showAll(jobIds: string[], options?: UseJobStreamOptions): void;
    rowRenders: string[];
    /** Returns what a server renders of a job, or of several by one hook. */
    serve(jobs: Shown | string[]): string;
    /** Takes the markup of a server over. */
    hydrate(jobs: Shown | string[], html: string): void;
    leave(): void;
  }
}

window.reactVersion = version;
const told: Told = { events: [], resets: [], completed: [], errors: [] };
window.seen = { renders: [], shown: null, problems: [], told };
addEventListener("error", ({ message }) => window.seen.problems.push(message));
const { error: log } = console;
console.error = (...message: unknown[]) => {
  window.seen.problems.push(message.join(" "));
  log(...message);
};
function Job({ jobId, options: { tokens, counts, stumblesAt, ...options } = {} }: Shown) {
  const count = (count: number | undefined, { payload }: JobEvent) => {
    if ((payload as { n: number }).n === stumblesAt) throw new Error("the reducer's own");
    return (count ?? 0) + 1;
  };
  // All functions are new ones with every render, as in most code.
  const shown = useJobStream(jobId, {
    ...options,
    ...(tokens && { token: () => "t" }),
    ...(counts && { reduce: count }),
    ...(options.keepMs !== undefined && { onEvent: ({ payload }) => told.events.push((payload as { n: number }).n) }),
    onReset: ({ reason }) => told.resets.push(reason),
    onComplete: (status) => told.completed.push(status),
    onError: ({ code }) => told.errors.push(code),
  } as UseJobStreamOptions<AnyEvents, number>);
  window.seen.renders.push(performance.now());
  window.seen.shown = shown;
  return (
    <section>
      <h2>{shown.state.status}</h2>
      <ol>
        {shown.events.map(({ id, payload }) => (
          <li key={id}>{JSON.stringify(payload)}</li>
        ))}
      </ol>
    </section>
  );
}

window.rowRenders = [];
const Row = memo(({ jobId, job }: { jobId: string; job: UseJobStream }) => {
  window.rowRenders.push(jobId);
  return (
    <p id={jobId} data-state={job.isCaughtUp ? `${job.state.status}, caught up` : job.state.status}>
      {job.events.map(({ payload }) => (payload as { n: number }).n).join()}
    </p>
  );
});
function Rows({ jobIds, options }: { jobIds: string[]; options: UseJobStreamOptions }) {
  const jobs = useJobStreams(jobIds, {
    ...options,
    onEvent: ({ payload }) => told.events.push((payload as { n: number }).n),
  });
  return [...jobs].map(([jobId, job]) => <Row key={jobId} jobId={jobId} job={job} />);
}

class Whole extends Component<{ children: ReactNode }> {
  override render() {
    return <main>{this.props.children}</main>;
  }
}

const place = document.getElementById("root")!;
let root: Root | null = null;
window.show = (jobs, isStrict = true) => {
  root ??= createRoot(place);
  const list = jobs.map((job, index) => <Job key={String(index)} {...job} />);
  root.render(isStrict ? <StrictMode>{list}</StrictMode> : <Whole>{list}</Whole>);
};
window.showAll = (jobIds, options = {}) => {
  root ??= createRoot(place);
  root.render(
    <StrictMode>
      <Rows jobIds={jobIds} options={options} />
    </StrictMode>,
  );
};
const elementOf = (jobs: Shown | string[]) =>
  Array.isArray(jobs) ? <Rows jobIds={jobs} options={{ keepMs: 60_000 }} /> : <Job {...jobs} />;
window.serve = (jobs) => renderToString(elementOf(jobs));
window.hydrate = (jobs, html) => {
  place.innerHTML = html;
  root = hydrateRoot(place, elementOf(jobs));
};
window.leave = () => {
  root?.unmount();
  root = null;
};
