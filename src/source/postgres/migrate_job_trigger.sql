SELECT pg_temp.jobcast_patiently($jobcast$
  CREATE TRIGGER runner_jobs_wake AFTER INSERT OR UPDATE OF {status} ON {jobs} FOR EACH STATEMENT EXECUTE FUNCTION jobcast_wake()
$jobcast$) WHERE NOT EXISTS (SELECT FROM pg_trigger WHERE tgrelid = {jobs_text}::regclass AND tgname = 'runner_jobs_wake')
  AND (SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = {jobs_text}::regclass);
