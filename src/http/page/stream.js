// One job's stream: keeps a connection, comes back by itself, and goes on after the last cursor that it saw.
// EventSource hears only types that are named in advance; here every event is heard, whatever its type.

const LONGEST_WAIT_MS = 30_000;

/** Splits text that arrives in pieces into server-sent events (WHATWG HTML, section 9.2.6). */
export class Parser {
  #rest = "";
  #data = [];
  #type = "";
  #id;

  /** @param {(event: {id?: string, type: string, data: string}) => void} onEvent `id` only where the event brings one
   *  @param {(ms: number) => void} onRetry */
  constructor(onEvent, onRetry) {
    this.onEvent = onEvent;
    this.onRetry = onRetry;
  }

  feed(text) {
    this.#rest += text;
    // a CR at the very end may be the first half of a CRLF
    const whole = this.#rest.endsWith("\r") ? this.#rest.slice(0, -1) : this.#rest;
    const lines = whole.split(/\r\n|\n|\r/);
    const unfinished = lines.pop();
    this.#rest = unfinished + this.#rest.slice(whole.length);
    for (const line of lines) this.#line(line);
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    if (colon === 0) return;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#type = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    else if (field === "retry" && /^\d+$/.test(value)) this.onRetry(Number(value));
  }

  #dispatch() {
    const event = { id: this.#id, type: this.#type || "message", data: this.#data.join("\n") };
    // an id may come without data: it only says where the stream stands
    if (this.#data.length > 0 || event.id !== undefined) this.onEvent(event);
    this.#data = [];
    this.#type = "";
    this.#id = undefined;
  }
}

export class JobStream {
  cursor = "";
  connections = 0;
  #url;
  #hear;
  #attempt = 0;
  #retryMs = 3000;
  #abort = null;
  #timer = 0;

  /**
   * @param {string} url
   * @param {object} hear What becomes of it:
   *   `state(name, detail)` with name connecting | live | reconnecting | offline | complete | failed | closed,
   *   `event(type, data, id)` for each event of the job,
   *   `complete(status)`, `reset(reason)`, `error(problem)`, `bye(reason)` as Jobcast says them.
   */
  constructor(url, hear) {
    this.#url = url;
    this.#hear = hear;
  }

  open() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = new AbortController();
    this.#run(this.#abort.signal);
  }

  close(state = "closed") {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    this.#abort = null;
    this.#hear.state(state, {});
  }

  async #run(signal) {
    this.#hear.state(this.connections === 0 ? "connecting" : "reconnecting", {});
    try {
      const headers = { Accept: "text/event-stream" };
      if (this.cursor) headers["Last-Event-ID"] = this.cursor;
      const response = await fetch(this.#url, { headers, cache: "no-store", signal });
      if (response.status === 204) return this.close("complete");
      if (!response.ok) return await this.#refused(response, signal);
      this.connections += 1;
      this.#hear.state("live", { resumedFrom: this.cursor });
      if (await this.#read(response.body, signal)) return this.close("complete");
    } catch (error) {
      if (signal.aborted) return;
    }
    if (!signal.aborted) this.#comeBack();
  }

  /** Whether the job has ended. */
  async #read(body, signal) {
    let isOver = false;
    const parser = new Parser(
      (event) => {
        if (signal.aborted) return;
        if (event.id !== undefined) this.cursor = event.id;
        if (event.data !== "") isOver = this.#take(event) || isOver;
      },
      (ms) => (this.#retryMs = ms),
    );
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      this.#attempt = 0;
      parser.feed(value);
      if (isOver) return true;
    }
  }

  #take({ type, data, id }) {
    const value = parsed(data);
    switch (type) {
      case "stream.complete":
        this.#hear.complete(value?.status);
        return true;
      case "stream.reset":
        this.#hear.reset(value?.reason);
        return false;
      case "stream.error":
        this.#hear.error(value ?? {});
        return false;
      case "stream.bye":
        this.#hear.bye(value?.reason);
        return false;
      default:
        this.#hear.event(type, value, id);
        return false;
    }
  }

  async #refused(response, signal) {
    const problem = (await response.json().catch(() => null)) ?? {};
    if (signal.aborted) return;
    const { code = `http_${response.status}`, detail: message = response.statusText } = problem;
    const retryable = response.status === 429 || response.status === 503;
    this.#hear.error({ code, message, retryable });
    if (retryable) this.#comeBack(Number(response.headers.get("Retry-After")) * 1000);
    else this.close("failed");
  }

  /** Never sooner than the server says; each failure in a row doubles it, and the spread keeps browsers apart. */
  #comeBack(atLeastMs = 0) {
    const doubled = Math.min(this.#retryMs * 2 ** this.#attempt, LONGEST_WAIT_MS);
    const waitMs = Math.max(doubled * (1 + Math.random() / 4), atLeastMs);
    this.#attempt += 1;
    this.#hear.state("reconnecting", { inMs: waitMs });
    this.#timer = setTimeout(() => this.open(), waitMs);
  }
}

function parsed(text) {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
