import { createApp, defineComponent, h, ref } from "vue";
import { useJobStream, useJobStreams } from "../../src/vue.js";
import { type Binding, numbersOf, QUICK } from "./binding.js";

const jobId = ref<string | null>(null);
const jobIds = ref<string[]>([]);
const Job = defineComponent(() => {
  const { job, reconnect } = useJobStream(jobId, QUICK);
  const { jobs } = useJobStreams(jobIds, QUICK);
  return () =>
    h("section", [
      h("h2", job.value.state.status),
      h("button", { onClick: reconnect }, "Again"),
      h(
        "ol",
        job.value.events.map(({ id, payload }) => h("li", { key: id }, JSON.stringify(payload))),
      ),
      numbersOf(jobs.value).map(([id, numbers]) => h("p", { key: id, id }, numbers)),
    ]);
});
const app = createApp(Job);
app.mount("#root");
window.binding = {
  show: (id) => {
    jobId.value = id;
  },
  showAll: (ids) => {
    jobIds.value = ids;
  },
  leave: () => app.unmount(),
} satisfies Binding;
