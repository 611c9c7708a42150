// Counts timers that wait and listeners for the events of waking, to find what a page has not cleaned up.

declare global {
  interface Window {
    leftovers(): { timers: number; listeners: number };
  }
}

const timers = new Set<number>();
let listeners = 0;
const { setTimeout, clearTimeout } = window;
window.setTimeout = ((run: () => void, ms?: number) => {
  const timer = setTimeout(() => {
    timers.delete(timer);
    run();
  }, ms);
  timers.add(timer);
  return timer;
}) as typeof window.setTimeout;
window.clearTimeout = (timer) => {
  timers.delete(Number(timer));
  clearTimeout(timer);
};
for (const target of [window, document]) {
  const add = target.addEventListener.bind(target);
  target.addEventListener = (type: string, listener: EventListener, options?: AddEventListenerOptions) => {
    if (["online", "pageshow", "visibilitychange"].includes(type)) {
      listeners += 1;
      options?.signal?.addEventListener("abort", () => {
        listeners -= 1;
      });
    }
    add(type, listener, options);
  };
}
window.leftovers = () => ({ timers: timers.size, listeners });
