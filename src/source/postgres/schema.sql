-- Jobcast's tables in PostgreSQL (13 or newer). May be run twice. Writers insert into job_events and set
-- runner_jobs.status; Jobcast itself needs no more than SELECT on both.

CREATE TABLE IF NOT EXISTS runner_jobs (
  id         text PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200),
  status     text NOT NULL DEFAULT 'PENDING'
             CHECK (status IN ('PENDING', 'QUEUED', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')),
  created_at timestamptz NOT NULL DEFAULT now(),
  updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS job_events (
  seq       bigint GENERATED ALWAYS AS IDENTITY,            -- the order within a job
  xid       xid8 NOT NULL DEFAULT pg_current_xact_id(),     -- who wrote it: what Jobcast finds the new ones by
  id        text NOT NULL DEFAULT gen_random_uuid()::text,
  job_id    text NOT NULL CHECK (length(job_id) BETWEEN 1 AND 200),
  step_id   text,
  type      text NOT NULL,
  timestamp timestamptz NOT NULL DEFAULT clock_timestamp(),
  actor     text,
  payload   jsonb NOT NULL DEFAULT '{}',
  PRIMARY KEY (job_id, id)
);
CREATE INDEX IF NOT EXISTS job_events_job_seq ON job_events (job_id, seq);
CREATE INDEX IF NOT EXISTS job_events_xid ON job_events (xid);
