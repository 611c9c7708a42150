
-- The triggers that wake Jobcast up. Those that are there stay.
CREATE OR REPLACE FUNCTION jobcast_wake() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  NOTIFY {listen};
  RETURN NULL;
END $$;
SELECT pg_temp.jobcast_patiently($jobcast$
  CREATE TRIGGER job_events_wake AFTER INSERT ON {events} FOR EACH STATEMENT EXECUTE FUNCTION jobcast_wake()
$jobcast$) WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = {events_text}::regclass AND tgname = 'job_events_wake');
