-- Roles of this composition only, after postgres-roles.sql.
ALTER ROLE jobcast PASSWORD 'jobcast';
CREATE ROLE writer LOGIN PASSWORD 'writer';
GRANT USAGE ON SCHEMA public TO writer;
GRANT SELECT, INSERT ON job_events, runner_jobs TO writer;
GRANT UPDATE (status, updated_at) ON runner_jobs TO writer;
