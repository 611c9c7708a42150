// The newest jobs, each with a link to its screen. Jobcast tells them to callers who may see every job.
import { useEffect, useState } from "react";

interface Job {
  jobId: string;
  status: string | null;
}

const REFRESH_MS = 3000;

export function JobList() {
  const [jobs, setJobs] = useState<Job[]>([]);
  useEffect(() => {
    const refresh = () =>
      fetch("/runner-jobs?limit=20")
        .then((answer) => (answer.ok ? answer.json() : { jobs: [] }))
        .then((list: { jobs: Job[] }) => setJobs(list.jobs))
        .catch(() => setJobs([]));
    void refresh();
    const timer = setInterval(refresh, REFRESH_MS);
    return () => clearInterval(timer);
  }, []);
  return (
    <main>
      <h1>Jobs</h1>
      {jobs.length === 0 && <p>None yet. Is Jobcast running? Try `jobcast demo`.</p>}
      <ul>
        {jobs.map(({ jobId, status }) => (
          <li key={jobId}>
            <a href={`?job=${encodeURIComponent(jobId)}`}>{jobId}</a> {status?.toLowerCase()}
          </li>
        ))}
      </ul>
    </main>
  );
}
