-- Run by the owner of AWX's tables, after CREATE ROLE jobcast LOGIN PASSWORD '…';
-- Before an upgrade that changes the columns named here: DROP SCHEMA jobcast CASCADE; and afterwards once more this.
CREATE SCHEMA jobcast;

-- All events of a job, from the one partition that has them. The job and the hour are written into the statement, so that the
-- server plans and locks that partition alone, of hundreds. Each kind of job has a table of its own, two without a type.
CREATE FUNCTION jobcast.events_of(job int, job_created timestamptz)
RETURNS TABLE (xid xid, id bigint, counter int, type text, created timestamptz, stdout text, event_data text)
LANGUAGE plpgsql STABLE STRICT ROWS 1000 SECURITY DEFINER SET search_path = public, pg_temp AS $$
DECLARE kind record;
BEGIN
  FOR kind IN VALUES ('main_jobevent', 'job_id', 'e.event'), ('main_projectupdateevent', 'project_update_id', 'e.event'),
                     ('main_inventoryupdateevent', 'inventory_update_id', '''verbose'''),
                     ('main_adhoccommandevent', 'ad_hoc_command_id', 'e.event'),
                     ('main_systemjobevent', 'system_job_id', '''verbose''') LOOP
    CONTINUE WHEN to_regclass(kind.column1) IS NULL;
    RETURN QUERY EXECUTE format(
      'SELECT e.xmin, e.id::bigint, e.counter::int, %s::text, e.created, e.stdout, e.event_data
       FROM %I e WHERE e.%I = %s AND e.job_created = %L', kind.column3, kind.column1, kind.column2, job, job_created);
    EXIT WHEN FOUND;
  END LOOP;
END $$;

-- AWX's number of the event as a uuid: it tells events apart, also where an UPDATE brings one again.
CREATE VIEW jobcast.events AS
SELECT e.xid AS xmin, lpad(e.id::text, 32, '0')::uuid AS id, j.id AS job_id, e.type, e.created AS timestamp, e.counter,
       e.stdout, e.event_data
FROM main_unifiedjob j CROSS JOIN LATERAL jobcast.events_of(j.id, j.created) e;

-- A job is over when all of its events are there; where some were lost on their way, ten minutes after its end.
CREATE VIEW jobcast.jobs AS
SELECT j.xmin AS xmin, j.id,
       CASE WHEN j.status IN ('successful', 'failed', 'error', 'canceled') AND j.finished > now() - interval '10 minutes'
                 AND j.emitted_events > (SELECT count(*) FROM jobcast.events_of(j.id, j.created))
            THEN 'running' ELSE j.status END AS status
FROM main_unifiedjob j;

REVOKE EXECUTE ON FUNCTION jobcast.events_of FROM PUBLIC;
GRANT EXECUTE ON FUNCTION jobcast.events_of TO jobcast;
GRANT USAGE ON SCHEMA jobcast TO jobcast;
GRANT SELECT ON jobcast.events, jobcast.jobs TO jobcast;
