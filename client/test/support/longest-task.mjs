/**
 * Returns the longest time that the main thread of a page was busy with one task. It is the thread's own time, in which
 * other programs on the machine do not count. The trace must be of the category "toplevel".
 * @param {Buffer} trace
 * @returns {number} milliseconds
 */
export function longestTaskMs(trace) {
  const { traceEvents } = JSON.parse(trace.toString());
  const threadOf = ({ pid, tid }) => `${pid}/${tid}`;
  const named = traceEvents.filter(({ name, args }) => name === "thread_name" && args?.name === "CrRendererMain");
  const mains = new Set(named.map(threadOf));
  const tasks = traceEvents.filter(
    (event) => event.ph === "X" && event.tdur !== undefined && mains.has(threadOf(event)),
  );
  if (tasks.length < 100) throw new Error("the trace shows no work");
  return tasks.reduce((longest, { tdur }) => Math.max(longest, tdur), 0) / 1000;
}
