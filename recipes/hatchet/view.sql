-- Run by the owner of Hatchet's tables, after CREATE ROLE jobcast LOGIN PASSWORD '…';
-- Before an upgrade that changes the columns named here: DROP SCHEMA jobcast CASCADE; and afterwards once more this.
CREATE SCHEMA jobcast;

-- The events of a task. The task and its day are written into the statement, so that the server plans the partition of that day
-- alone.
CREATE FUNCTION jobcast.events_of(task bigint, task_inserted_at timestamptz)
RETURNS TABLE (xid xid, id bigint, type text, at timestamptz, output jsonb, error_message text, additional__event_data text)
LANGUAGE plpgsql STABLE STRICT ROWS 20 SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  RETURN QUERY EXECUTE format(
    'SELECT e.xmin, e.id, e.event_type::text, e.event_timestamp, e.output, e.error_message, e.additional__event_data::text
     FROM v1_task_events_olap e WHERE e.task_id = %s AND e.task_inserted_at = %L', task, task_inserted_at);
END $$;

-- The status of a task, whose row moves to another partition with it.
CREATE FUNCTION jobcast.status_of(task bigint, task_inserted_at timestamptz) RETURNS TABLE (xid xid, status text)
LANGUAGE plpgsql STABLE STRICT ROWS 1 SECURITY DEFINER SET search_path = public, pg_temp AS $$
BEGIN
  RETURN QUERY EXECUTE format(
    'SELECT t.xmin, t.readable_status::text FROM v1_tasks_olap t WHERE t.id = %s AND t.inserted_at = %L',
    task, task_inserted_at);
END $$;

-- The row that has the task's public id is written with the task, before anybody can ask for it.
CREATE VIEW jobcast.events AS
SELECT e.xid AS xmin, e.id, known.external_id AS job_id, e.type, e.at AS timestamp, e.output, e.error_message,
       e.additional__event_data
FROM v1_lookup_table_olap known CROSS JOIN LATERAL jobcast.events_of(known.task_id, known.inserted_at) e;

CREATE VIEW jobcast.jobs AS
SELECT t.xid AS xmin, known.external_id AS id, t.status
FROM v1_lookup_table_olap known CROSS JOIN LATERAL jobcast.status_of(known.task_id, known.inserted_at) t;

REVOKE EXECUTE ON FUNCTION jobcast.events_of, jobcast.status_of FROM PUBLIC;
GRANT EXECUTE ON FUNCTION jobcast.events_of, jobcast.status_of TO jobcast;
GRANT USAGE ON SCHEMA jobcast TO jobcast;
GRANT SELECT ON jobcast.events, jobcast.jobs TO jobcast;
