-- Wakes Jobcast up, which would else wait for its next poll. A transaction that notifies cannot be prepared: where
-- writers use PREPARE TRANSACTION, leave the triggers out (jobcast schema postgres --no-trigger).
CREATE OR REPLACE FUNCTION jobcast_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NOTIFY jobcast;
  RETURN NULL;
END $$;
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'job_events'::regclass AND tgname = 'job_events_wake') THEN
    CREATE TRIGGER job_events_wake AFTER INSERT ON job_events FOR EACH STATEMENT EXECUTE FUNCTION jobcast_wake();
  END IF;
  IF NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'runner_jobs'::regclass AND tgname = 'runner_jobs_wake') THEN
    CREATE TRIGGER runner_jobs_wake AFTER INSERT OR UPDATE OF status ON runner_jobs
      FOR EACH STATEMENT EXECUTE FUNCTION jobcast_wake();
  END IF;
END $$;
