import { createApp, defineComponent, h, ref } from "vue";
import { useJobStream } from "../../src/vue.js";
import { type Binding, QUICK } from "./binding.js";

const jobId = ref<string | null>(null);
const Job = defineComponent(() => {
  const { job, reconnect } = useJobStream(jobId, QUICK);
  return () =>
    h("section", [
      h("h2", job.value.state.status),
      h("button", { onClick: reconnect }, "Again"),
      h(
        "ol",
        job.value.events.map(({ id, payload }) => h("li", { key: id }, JSON.stringify(payload))),
      ),
    ]);
});
const app = createApp(Job);
app.mount("#root");
window.binding = {
  show: (id) => {
    jobId.value = id;
  },
  leave: () => app.unmount(),
} satisfies Binding;
