-- Wakes Jobcast up, which would else wait for its next poll. A transaction that notifies cannot be prepared: where
-- writers use PREPARE TRANSACTION, leave the triggers out (jobcast schema postgres --no-trigger).
CREATE OR REPLACE FUNCTION jobcast_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NOTIFY jobcast;
  RETURN NULL;
END $$;
DROP TRIGGER IF EXISTS job_events_wake ON job_events;
CREATE TRIGGER job_events_wake AFTER INSERT ON job_events FOR EACH STATEMENT EXECUTE FUNCTION jobcast_wake();
DROP TRIGGER IF EXISTS runner_jobs_wake ON runner_jobs;
CREATE TRIGGER runner_jobs_wake AFTER INSERT OR UPDATE OF status ON runner_jobs
  FOR EACH STATEMENT EXECUTE FUNCTION jobcast_wake();
