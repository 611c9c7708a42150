import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { JobList } from "./JobList.js";
import { JobScreen } from "./JobScreen.js";
import "./screen.css";

const jobId = new URLSearchParams(location.search).get("job");
const root = document.getElementById("root");
if (root) {
  createRoot(root).render(<StrictMode>{jobId ? <JobScreen jobId={jobId} /> : <JobList />}</StrictMode>);
}
