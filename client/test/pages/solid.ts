import { createSignal } from "solid-js";
import h from "solid-js/h";
import { render } from "solid-js/web";
import { createJobStream, createJobStreams } from "../../src/solid.js";
import { type Binding, numbersOf, QUICK } from "./binding.js";

const [jobId, setJobId] = createSignal<string | null>(null);
const [jobIds, setJobIds] = createSignal<string[]>([]);
function Job() {
  const { job, reconnect } = createJobStream(jobId, QUICK);
  const items = () => job().events.map(({ payload }) => h("li", JSON.stringify(payload)));
  const { jobs } = createJobStreams(jobIds, QUICK);
  const all = () => numbersOf(jobs()).map(([id, numbers]) => h("p", { id }, numbers));
  const state = h("h2", () => job().state.status);
  return h("section", state, h("button", { onClick: reconnect }, "Again"), h("ol", items), all);
}
const leave = render(h(Job) as unknown as () => Element, document.getElementById("root")!);
window.binding = { show: (id) => setJobId(id), showAll: (ids) => setJobIds(ids), leave } satisfies Binding;
