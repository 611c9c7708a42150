// @vitest-environment happy-dom
import { createRoot } from "react-dom/client";
import { expect, it, vi } from "vitest";
import { JobScreen } from "./JobScreen.js";

const output = { id: "1", jobId: "build-7", stepId: "compile", type: "step.output", payload: { line: "hello" } };
const STREAM = `id: 1
event: step.output
data: ${JSON.stringify({ ...output, timestamp: "2026-11-25T09:00:00.000Z", actor: null })}

event: stream.complete
data: {"jobId":"build-7","status":"COMPLETED"}

`;

it("shows a line of output, and the end", async () => {
  vi.stubGlobal("fetch", async () => new Response(STREAM, { headers: { "Content-Type": "text/event-stream" } }));
  const root = createRoot(document.body);
  root.render(<JobScreen jobId="build-7" />);
  await vi.waitFor(() => {
    expect(document.querySelector("li")?.textContent).toContain("hello");
    expect(document.querySelector("[role=status]")?.textContent).toContain("completed");
  }, 10_000);
  root.unmount();
});
