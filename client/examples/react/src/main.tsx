import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { JobScreen } from "./JobScreen.js";
import "./screen.css";

/** The job in the address, else the newest one that is running, else the one of the first steps. */
async function chosenJob(): Promise<string> {
  const named = new URLSearchParams(location.search).get("job");
  if (named) return named;
  const answer = await fetch("/runner-jobs?status=RUNNING&limit=1").catch(() => null);
  const { jobs = [] } = answer?.ok ? ((await answer.json()) as { jobs?: { jobId: string }[] }) : {};
  return jobs[0]?.jobId ?? "hello-1";
}

const jobId = await chosenJob();
const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <JobScreen jobId={jobId} />
    </StrictMode>,
  );
}
