-- Roles for Jobcast in PostgreSQL; may be run twice, by the owner of the tables. Set the passwords afterwards:
--   ALTER ROLE jobcast PASSWORD '…';
-- Run it in the database that holds job_events and runner_jobs. If they are in a schema other than public, name it below.

-- Jobcast reads, and does nothing else.
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'jobcast') THEN
    CREATE ROLE jobcast LOGIN;
  END IF;
END $$;
GRANT USAGE ON SCHEMA public TO jobcast;
GRANT SELECT ON job_events, runner_jobs TO jobcast;
-- A guard beside the missing rights. Jobcast's statements are short; one that hangs is ended by the server too.
ALTER ROLE jobcast SET default_transaction_read_only = on;
ALTER ROLE jobcast SET statement_timeout = '30s';
ALTER ROLE jobcast SET idle_in_transaction_session_timeout = '30s';
-- source.postgres.pool (4) for each Jobcast, and one each for the tail and the wake-ups: six for each replica, and a few more
-- while replicas change.
ALTER ROLE jobcast CONNECTION LIMIT 50;
