// A page with the hook, which the tests steer and look into.
import "./leftovers.js";
import { Component, type ReactNode, StrictMode } from "react";
import { createRoot, hydrateRoot, type Root } from "react-dom/client";
import { renderToString } from "react-dom/server.browser";
import { type UseJobStream, type UseJobStreamOptions, useJobStream } from "../../src/react.js";

interface Shown {
  jobId: string | null;
  options?: UseJobStreamOptions & { tokens?: boolean };
}

declare global {
  interface Window {
    seen: { renders: number[]; shown: UseJobStream | null; problems: string[] };
    show(jobs: Shown[], isStrict?: boolean): void;
    hydrate(shown: Shown): string;
    leave(): void;
  }
}

window.seen = { renders: [], shown: null, problems: [] };
const { error: log } = console;
console.error = (...message: unknown[]) => {
  window.seen.problems.push(message.join(" "));
  log(...message);
};
function Job({ jobId, options }: Shown) {
  // The token function is a new one with every render, as in most code.
  const shown = useJobStream(jobId, { ...options, ...(options?.tokens && { token: () => "t" }) });
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
window.hydrate = (shown) => {
  const html = renderToString(<Job {...shown} />);
  place.innerHTML = html;
  root = hydrateRoot(place, <Job {...shown} />);
  return html;
};
window.leave = () => root?.unmount();
