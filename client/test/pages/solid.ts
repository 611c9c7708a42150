import { createSignal } from "solid-js";
import h from "solid-js/h";
import { render } from "solid-js/web";
import { createJobStream } from "../../src/solid.js";
import { type Binding, QUICK } from "./binding.js";

const [jobId, setJobId] = createSignal<string | null>(null);
function Job() {
  const { job, reconnect } = createJobStream(jobId, QUICK);
  const items = () => job().events.map(({ payload }) => h("li", JSON.stringify(payload)));
  const state = h("h2", () => job().state.status);
  return h("section", state, h("button", { onClick: reconnect }, "Again"), h("ol", items));
}
const leave = render(h(Job) as unknown as () => Element, document.getElementById("root")!);
window.binding = { show: (id) => setJobId(id), leave } satisfies Binding;
