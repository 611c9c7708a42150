// The live page: jobs on one side, the chosen one on the other.

import { Job, duration, isFinal } from "./job.js";
import { JobStream } from "./stream.js";

const LIST_EVERY = 2000;
const SHOWN_LINES = 2000;
const PULSE_SPAN = 60000;
const OFFLINE_FOR = 3000;

const at = (id) => document.getElementById(id);
const meta = (name) => document.querySelector(`meta[name="jobcast-${name}"]`).content;
const address = (pattern, job) => pattern.replace("{job_id}", encodeURIComponent(job));
const calm = matchMedia("(prefers-reduced-motion: reduce)");

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

const put = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

// ---- the list of jobs

const list = { nodes: new Map(), order: [] };

async function refreshList() {
  if (document.hidden) return;
  let jobs;
  try {
    const response = await fetch("/runner-jobs?limit=50", { cache: "no-store" });
    ({ jobs } = await response.json());
  } catch {
    return; // the stream says what is wrong
  }
  if (!jobs) return;
  const known = new Map(jobs.map((job) => [job.jobId, job]));
  // new ones on top; the others stay where they are, so that nothing moves under the pointer
  const fresh = jobs.map((job) => job.jobId).filter((id) => !list.order.includes(id));
  list.order = [...fresh, ...list.order.filter((id) => known.has(id) || id === shown?.job.id)];
  const rank = (id) => (isFinal(known.get(id)?.status ?? "COMPLETED") ? 1 : 0);
  const order = [...list.order].sort((a, b) => rank(a) - rank(b));
  for (const [id, node] of list.nodes) {
    if (!list.order.includes(id)) {
      node.remove();
      list.nodes.delete(id);
    }
  }
  const focused = document.activeElement;
  order.forEach((id, index) => {
    const item = list.nodes.get(id) ?? addItem(id);
    if (known.has(id)) fillItem(item, known.get(id));
    if (at("jobs").children[index] !== item) at("jobs").insertBefore(item, at("jobs").children[index] ?? null);
  });
  if (focused !== document.activeElement) focused?.focus({ preventScroll: true });
  const isEmpty = order.length === 0 && shown === null;
  at("empty").hidden = !isEmpty;
  if (isEmpty) put(at("state").lastElementChild, "Waiting for a job");
  if (shown === null && order.length > 0 && !chosen()) choose(order[0]);
  markChosen();
}

function addItem(id) {
  const item = make("li");
  const link = make("a");
  link.href = `#job=${encodeURIComponent(id)}`;
  link.append(make("i"), make("b", "", id), make("small"));
  item.append(link);
  list.nodes.set(id, item);
  return item;
}

function fillItem(item, { status, lastEventAt }) {
  const link = item.firstChild;
  link.dataset.status = status ?? "";
  const ago = lastEventAt ? Date.now() - Date.parse(lastEventAt) : null;
  const when = ago === null ? "" : ago < 5000 ? "now" : `${duration(ago).replace(/\.\d/, "")} ago`;
  put(link.lastChild, isFinal(status) ? `${status.toLowerCase()} · ${when}` : (status ?? "").toLowerCase());
}

function markChosen() {
  for (const [id, item] of list.nodes) {
    if (id === shown?.job.id) item.firstChild.setAttribute("aria-current", "true");
    else item.firstChild.removeAttribute("aria-current");
  }
}

// ---- the chosen job

let shown = null;

function chosen() {
  const match = location.hash.match(/^#job=(.+)$/);
  try {
    return match && decodeURIComponent(match[1]);
  } catch {
    return null;
  }
}

// Without a word in the history: nobody has chosen yet.
function choose(id) {
  history.replaceState(null, "", `#job=${encodeURIComponent(id)}`);
  show(id);
}

function show(id) {
  shown?.stream.close();
  const job = new Job(id);
  shown = {
    job,
    step: null,
    connections: 0,
    state: "connecting",
    detail: {},
    // what happened lately, for the picture of the connection
    arrivals: [],
    gaps: [],
    story: null,
    // lines, counted from the job's first
    drawn: 0,
    follows: true,
    stream: null,
  };
  at("empty").hidden = true;
  at("job").hidden = false;
  at("notice").hidden = true;
  at("lines").replaceChildren();
  at("steps").replaceChildren();
  const view = shown;
  view.stream = new JobStream(address(meta("stream-path"), id), {
    state: (name, detail = {}) => view === shown && changed(view, name, detail),
    event: (event) => view === shown && arrived(view, event),
    own: (type, data) => view === shown && told(view, type, data),
  });
  document.title = `${id} · Jobcast`;
  markChosen();
  draw();
}

function changed(view, name, detail) {
  const before = view.state;
  view.state = name;
  view.detail = { ...detail, since: Date.now() };
  if (name === "live") {
    view.connections += 1;
    const gap = view.gaps.at(-1);
    if (gap && gap.to === null) {
      gap.to = Date.now();
      view.story = { gap, filled: 0, cursor: view.stream.cursor };
    }
  }
  if (before === "live" && name === "offline") {
    view.gaps.push({ from: Date.now(), to: null });
    view.story = { gap: view.gaps.at(-1), filled: 0 };
  }
  if (name === "complete" && detail.status) view.job.ended(detail.status);
  if (name === "complete" && !detail.status) endedBefore(view);
  if (name === "complete") refreshList();
  draw();
}

// A 204 says that it has ended, not how.
async function endedBefore(view) {
  const response = await fetch(`${address(meta("events-path"), view.job.id)}?limit=1`);
  const { status } = await response.json();
  if (status) view.job.ended(status);
  draw();
}

function arrived(view, event) {
  const now = Date.now();
  if (!view.job.take(event)) return draw();
  const written = Date.parse(event.timestamp) || now;
  const gap = view.gaps.at(-1);
  const isFill = gap?.to && written < gap.to && written >= gap.from - 1000 && now - gap.to < 5000;
  if (isFill) view.story.filled += 1;
  if (now - written < PULSE_SPAN) view.arrivals.push({ written, isFill });
  draw();
}

function told(view, type, data) {
  if (type === "stream.reset") {
    const { id } = view.job;
    view.job = new Job(id);
    view.drawn = 0;
    at("lines").replaceChildren();
    at("steps").replaceChildren();
    notice(`What came before is not to be had any more (${data.reason}): this is all there is.`);
  }
  if (type === "stream.error") notice(`${data.message} (${data.code})`);
  if (type === "stream.bye") view.detail.text = `The server closed the stream (${data.reason})`;
}

function notice(text) {
  at("notice").hidden = false;
  at("notice").textContent = text;
}

// ---- drawing, once a frame at the most

let isDue = false;

function draw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    if (shown) drawAll(shown);
  });
}

function drawAll(view) {
  const { job } = view;
  const now = Math.max(Date.now(), job.newest ?? 0);
  drawState(view);
  put(at("name"), job.id);
  put(at("badge"), (job.status ?? "").toLowerCase());
  at("badge").dataset.status = job.status ?? "";
  put(at("facts"), [job.name, ...job.facts].filter(Boolean).join(" · "));
  put(at("elapsed"), job.begin === null ? "" : duration((job.end ?? now) - job.begin));
  drawSteps(view, now);
  drawLines(view);
  put(at("events"), String(job.events));
  put(at("repeats"), String(job.repeats));
  put(at("connections"), String(view.connections));
  put(at("cursor"), view.stream?.cursor ?? "–");
  at("drop").disabled = view.state !== "live";
  drawPulse(view);
  put(at("story"), story(view));
}

function drawState({ state, detail }) {
  const words = {
    connecting: () => "Connecting…",
    live: () => "Live",
    offline: () => `Offline, back in ${Math.max(0, Math.ceil((detail.since + detail.wait - Date.now()) / 1000))} s`,
    complete: () => "Complete",
    failed: () => detail.text ?? "Failed",
  };
  at("state").dataset.state = state;
  put(at("state").lastElementChild, words[state]());
}

function story({ state, story, detail, job }) {
  if (state === "complete") {
    return `The job has ended and everything was delivered: ${job.events} events, ${job.repeats || "none"} twice.`;
  }
  if (state === "offline") {
    return `${detail.text ? `${detail.text}. ` : ""}Offline. The job goes on; what it writes meanwhile waits at the cursor.`;
  }
  if (!story?.gap.to) {
    return "Drop the connection and see what coming back does: the stream goes on after the last cursor, so nothing is missed and nothing comes twice.";
  }
  const { gap, filled, cursor } = story;
  const what = filled === 1 ? "1 event that was" : `${filled} events that were`;
  return `Back after ${duration(gap.to - gap.from)}, from cursor ${cursor ?? "–"}: ${what} written meanwhile came first. ${job.repeats || "None"} came twice.`;
}

const TICKS = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400];

function drawSteps(view, now) {
  const { job } = view;
  at("timeline").hidden = job.steps.size === 0;
  const begin = job.begin ?? now;
  const span = Math.max(5000, (job.end ?? now) - begin);
  const percent = (time) => Math.max(0, Math.min(100, ((time - begin) / span) * 100));

  const every = TICKS.find((seconds) => span / 1000 / seconds <= 6) ?? Math.ceil(span / 6000);
  const ticks = [];
  for (let second = 0; second * 1000 <= span * 0.97; second += every) ticks.push(second);
  const axis = at("axis");
  while (axis.children.length > ticks.length) axis.lastChild.remove();
  while (axis.children.length < ticks.length) axis.append(make("span"));
  ticks.forEach((second, index) => {
    axis.children[index].style.left = `${percent(begin + second * 1000)}%`;
    put(axis.children[index], second < 60 ? `${second} s` : `${Math.floor(second / 60)}:${String(second % 60).padStart(2, "0")}`);
  });

  const rows = at("steps");
  let index = 0;
  for (const step of job.steps.values()) {
    const row = rows.children[index++] ?? rows.appendChild(addStep());
    row.dataset.step = step.id;
    // a job may end without a word on its steps
    const state = isFinal(job.status) && step.state === "running" ? "ended" : step.state;
    row.dataset.state = state;
    const end = step.end ?? (isFinal(job.status) ? (job.end ?? now) : now);
    const took = step.begin === null ? "" : duration(end - step.begin);
    const [button] = row.children;
    const [label, track, time] = button.children;
    put(label, step.name);
    const words = state === "running" && step.percent !== null ? `${Math.round(step.percent)} %` : took || state;
    put(time, words);
    button.setAttribute("aria-pressed", String(view.step === step.id));
    button.setAttribute("aria-label", `${step.name}: ${state}${took && `, ${took}`}${step.note ? `, ${step.note}` : ""}`);
    button.title = step.note ?? "";
    const bar = track.firstChild;
    bar.hidden = step.begin === null;
    if (step.begin !== null) {
      bar.style.left = `${percent(step.begin)}%`;
      bar.style.width = `${Math.max(0.6, percent(end) - percent(step.begin))}%`;
      bar.firstChild.style.width = `${state === "running" ? (step.percent ?? 100) : 100}%`;
      bar.dataset.known = String(step.percent !== null);
    }
  }
}

function addStep() {
  const row = make("li");
  const button = make("button");
  button.type = "button";
  const track = make("span", "track");
  const bar = make("span", "bar");
  bar.append(make("span", "done"));
  track.append(bar);
  button.append(make("span", "label"), track, make("span", "time"));
  button.addEventListener("click", () => select(shown.step === row.dataset.step ? null : row.dataset.step));
  row.append(button);
  return row;
}

function select(step) {
  shown.step = step;
  shown.drawn = 0;
  shown.follows = true;
  at("lines").replaceChildren();
  at("all").hidden = step === null;
  draw();
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });

function drawLines(view) {
  const { job } = view;
  const pane = at("lines");
  put(at("shown"), view.step === null ? "Output" : `Output of ${job.steps.get(view.step)?.name ?? view.step}`);
  const end = job.dropped + job.lines.length;
  const from = Math.max(view.drawn, job.dropped, view.step === null ? end - SHOWN_LINES : 0);
  const fresh = job.lines.slice(from - job.dropped);
  if (fresh.length > 0) {
    const added = document.createDocumentFragment();
    for (const line of fresh) {
      if (view.step !== null && line.step !== view.step) continue;
      const row = make("div", "line");
      row.dataset.tone = line.tone;
      row.append(make("time", "", clock.format(line.at)), make("b", "", line.step ?? ""), make("span", "", line.text));
      added.append(row);
    }
    pane.append(added);
    for (let over = pane.childElementCount - SHOWN_LINES; over > 0; over -= 1) pane.firstChild.remove();
    view.drawn = end;
    if (view.follows) pane.scrollTop = pane.scrollHeight;
  }
  at("newest").hidden = view.follows;
}

function drawPulse(view) {
  const canvas = at("pulse");
  const scale = devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  if (width === 0) return;
  if (canvas.width !== Math.round(width * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name).trim();
  const now = view.state === "complete" ? view.detail.since : Date.now();
  const x = (time) => width - ((now - time) / PULSE_SPAN) * width;
  view.arrivals = view.arrivals.filter((one) => now - one.written < PULSE_SPAN);
  view.gaps = view.gaps.filter((gap) => gap.to === null || now - gap.to < PULSE_SPAN);
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.fillStyle = colour("--gap");
  for (const gap of view.gaps) pen.fillRect(x(gap.from), 0, x(gap.to ?? now) - x(gap.from), height);
  pen.fillStyle = colour("--rule");
  pen.fillRect(0, height / 2, width, 1);
  for (const { written, isFill } of view.arrivals) {
    pen.fillStyle = colour(isFill ? "--fill" : "--live");
    pen.fillRect(x(written) - 1, isFill ? 4 : height / 4, 2, isFill ? height - 8 : height / 2);
  }
}

// ---- what the reader does

at("drop").addEventListener("click", () => shown.stream.drop(OFFLINE_FOR));
at("all").addEventListener("click", () => select(null));
at("newest").addEventListener("click", () => {
  shown.follows = true;
  at("lines").scrollTop = at("lines").scrollHeight;
  draw();
});
at("lines").addEventListener("scroll", () => {
  if (!shown) return;
  const { scrollTop, scrollHeight, clientHeight } = at("lines");
  shown.follows = scrollHeight - scrollTop - clientHeight < 24;
  at("newest").hidden = shown.follows;
});
addEventListener("hashchange", () => {
  const id = chosen();
  if (id && id !== shown?.job.id) show(id);
});
addEventListener("online", () => shown?.stream.wake());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) return;
  shown?.stream.wake();
  refreshList();
});

const body = `{"type":"step.output","stepId":"hello","payload":{"line":"Hello!"}}`;
at("hint").textContent =
  `curl -X POST ${location.origin}${address(meta("events-path"), "my-job")} \\\n  -H 'Content-Type: application/json' \\\n  -d '${body}'`;

if (chosen()) show(chosen());
refreshList();
setInterval(refreshList, LIST_EVERY);
// running bars grow by themselves
let ticks = 0;
setInterval(() => {
  ticks += 1;
  if (document.hidden || (calm.matches && ticks % 10 !== 0)) return;
  if (shown && shown.state !== "failed") draw();
}, 100);
