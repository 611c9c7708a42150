// One job's stream. Over fetch and not EventSource, which hears only the event types that it was told of: a job's
// types are its writer's own.

const FIRST_WAIT = 500;
const LONGEST_WAIT = 15000;

export class JobStream {
  #url;
  #on;
  #cursor = null;
  #attempts = 0;
  #abort = new AbortController();
  #wake = null;
  #pause = 0;
  #closed = false;

  // `on`: state(name, detail), event(envelope, cursor), own(type, data)
  constructor(url, on) {
    this.#url = url;
    this.#on = on;
    this.#run();
  }

  get cursor() {
    return this.#cursor;
  }

  close() {
    this.#closed = true;
    this.#abort.abort();
    this.#wake?.();
  }

  // Cuts the connection, as a network would, and comes back after so many milliseconds.
  drop(pause) {
    this.#pause = pause;
    this.#abort.abort();
  }

  // Does not wait any longer.
  wake() {
    if (this.#pause === 0) this.#wake?.();
  }

  async #run() {
    while (!this.#closed) {
      this.#on.state("connecting");
      let wait = null;
      try {
        wait = await this.#connect();
      } catch {
        // the network, or ourselves
      }
      if (this.#closed || wait === "over") return;
      const ceiling = Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** this.#attempts++);
      wait = this.#pause || wait || ceiling * (0.5 + Math.random() / 2);
      this.#on.state("offline", { wait });
      await new Promise((done) => {
        this.#wake = done;
        setTimeout(done, wait);
      });
      this.#pause = 0;
    }
  }

  async #connect() {
    this.#abort = new AbortController();
    const headers = { Accept: "text/event-stream" };
    if (this.#cursor) headers["Last-Event-ID"] = this.#cursor;
    const response = await fetch(this.#url, { headers, cache: "no-store", signal: this.#abort.signal });
    if (response.status === 204) {
      this.#on.state("complete");
      return "over";
    }
    if (!response.ok) {
      const problem = await response.json().catch(() => ({}));
      const text = problem.detail ?? `The server answered ${response.status}`;
      const again = response.status === 429 || response.status === 503;
      this.#on.state(again ? "offline" : "failed", { text });
      return again ? Number(response.headers.get("Retry-After") ?? 5) * 1000 : "over";
    }
    this.#on.state("live", { replay: response.headers.get("X-Jobcast-Replay") });
    return await this.#read(response.body);
  }

  // Until the stream ends; returns how long to wait then.
  async #read(body) {
    const reader = body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    let wait = 0;
    let message = {};
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return wait;
      text += value;
      const lines = text.split("\n");
      text = lines.pop();
      for (const line of lines) {
        if (line !== "") {
          const colon = line.indexOf(":");
          if (colon > 0) message[line.slice(0, colon)] = line.slice(colon + 1).replace(/^ /, "");
          continue;
        }
        const next = this.#take(message);
        message = {};
        if (next === "over") return next;
        wait = next ?? wait;
      }
    }
  }

  #take({ id, event, data }) {
    if (id) this.#cursor = id;
    if (data === undefined) return undefined;
    const content = JSON.parse(data);
    if (!event?.startsWith("stream.")) {
      this.#attempts = 0;
      this.#on.event(content, id);
      return undefined;
    }
    this.#on.own(event, content);
    if (event === "stream.complete") {
      this.#on.state("complete", { status: content.status });
      return "over";
    }
    if (event === "stream.error" && !content.retryable) {
      this.#on.state("failed", { text: content.message });
      return "over";
    }
    return content.retryInMs;
  }
}
