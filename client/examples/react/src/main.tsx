import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { JobScreen } from "./JobScreen.js";
import "./screen.css";

const jobId = new URLSearchParams(location.search).get("job") ?? "hello-1";
const root = document.getElementById("root");
if (root) {
  createRoot(root).render(
    <StrictMode>
      <JobScreen jobId={jobId} />
    </StrictMode>,
  );
}
