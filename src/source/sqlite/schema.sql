-- Jobcast's tables in SQLite. May be run twice. Writers other than Jobcast insert into job_events and set
-- runner_jobs.status; everything else looks after itself.

CREATE TABLE IF NOT EXISTS runner_jobs (
  id         TEXT PRIMARY KEY CHECK (length(id) BETWEEN 1 AND 200),
  status     TEXT NOT NULL DEFAULT 'PENDING'
             CHECK (status IN ('PENDING', 'QUEUED', 'RUNNING', 'COMPLETED', 'FAILED', 'CANCELLED')),
  created_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  updated_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  changed    INTEGER NOT NULL DEFAULT 0   -- the number of its newest change of status, kept by triggers
);
CREATE INDEX IF NOT EXISTS runner_jobs_changed ON runner_jobs (changed);

CREATE TABLE IF NOT EXISTS job_events (
  seq       INTEGER PRIMARY KEY AUTOINCREMENT,   -- SQLite has one writer at a time: this is the order of commits
  id        TEXT NOT NULL CHECK (length(id) BETWEEN 1 AND 200),
  job_id    TEXT NOT NULL CHECK (length(job_id) BETWEEN 1 AND 200),
  step_id   TEXT,
  type      TEXT NOT NULL CHECK (length(type) BETWEEN 1 AND 200 AND type NOT GLOB 'stream.*'),
  timestamp TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
  actor     TEXT,
  payload   TEXT NOT NULL DEFAULT '{}' CHECK (json_valid(payload))
);
CREATE UNIQUE INDEX IF NOT EXISTS job_events_job_id ON job_events (job_id, id);
CREATE INDEX IF NOT EXISTS job_events_job_seq ON job_events (job_id, seq);

-- Numbers the changes of status; it never goes back, whatever is deleted from runner_jobs.
CREATE TABLE IF NOT EXISTS jobcast_changes (number INTEGER NOT NULL);
INSERT INTO jobcast_changes (number) SELECT 0 WHERE NOT EXISTS (SELECT 1 FROM jobcast_changes);

CREATE TRIGGER IF NOT EXISTS job_events_make_job AFTER INSERT ON job_events
BEGIN
  INSERT INTO runner_jobs (id, status) VALUES (NEW.job_id, 'RUNNING') ON CONFLICT (id) DO NOTHING;
END;

CREATE TRIGGER IF NOT EXISTS runner_jobs_made AFTER INSERT ON runner_jobs
BEGIN
  UPDATE jobcast_changes SET number = number + 1;
  UPDATE runner_jobs SET changed = (SELECT number FROM jobcast_changes) WHERE id = NEW.id;
END;

CREATE TRIGGER IF NOT EXISTS runner_jobs_status AFTER UPDATE OF status ON runner_jobs
BEGIN
  UPDATE jobcast_changes SET number = number + 1;
  UPDATE runner_jobs SET changed = (SELECT number FROM jobcast_changes) WHERE id = NEW.id;
END;
