/**
 * How long the main thread of a page was busy with one task, in its own time: what others do on this machine does not
 * count. By a trace of the category "toplevel".
 * @param {Buffer} trace
 * @returns {number} milliseconds
 */
export function longestTaskMs(trace) {
  const { traceEvents } = JSON.parse(trace.toString());
  const at = ({ pid, tid }) => `${pid}/${tid}`;
  const named = traceEvents.filter(({ name, args }) => name === "thread_name" && args?.name === "CrRendererMain");
  const mains = new Set(named.map(at));
  const tasks = traceEvents.filter((event) => event.ph === "X" && event.tdur !== undefined && mains.has(at(event)));
  if (tasks.length < 100) throw new Error("the trace shows no work");
  return tasks.reduce((most, { tdur }) => Math.max(most, tdur), 0) / 1000;
}
