-- Gives a job-event table the columns that Jobcast finds new events by, while it is in use. No row is rewritten: those
-- from before have neither, and come first, by their timestamps. Cursors that were given out before stay good.
-- With psql, outside of a transaction; may be run twice. Restart Jobcast afterwards.

BEGIN;
-- This waits for whoever writes, and makes the others wait: rather give up, and be run again, than stop them.
SET LOCAL lock_timeout = '5s';
LOCK TABLE {events} IN ACCESS EXCLUSIVE MODE;
DO $$
BEGIN
  IF NOT EXISTS (SELECT FROM pg_attribute
                 WHERE attrelid = {events_text}::regclass AND attname = {xid_text} AND NOT attisdropped) THEN
    ALTER TABLE {events} ADD COLUMN {xid} xid8;
    ALTER TABLE {events} ALTER COLUMN {xid} SET DEFAULT pg_current_xact_id();
  END IF;
  IF NOT EXISTS (SELECT FROM pg_attribute
                 WHERE attrelid = {events_text}::regclass AND attname = {seq_text} AND NOT attisdropped) THEN
    ALTER TABLE {events} ADD COLUMN {seq} bigint;
    CREATE SEQUENCE {sequence} OWNED BY {events}.{seq};
    ALTER TABLE {events} ALTER COLUMN {seq} SET DEFAULT nextval({sequence_text});
  END IF;
END $$;
COMMIT;

-- An index that an interrupted run left invalid (\d tells) must be dropped first.
CREATE INDEX CONCURRENTLY IF NOT EXISTS {xid_index} ON {events} ({xid});
CREATE INDEX CONCURRENTLY IF NOT EXISTS {seq_index} ON {events} ({job_id}, {seq});
CREATE INDEX CONCURRENTLY IF NOT EXISTS {time_index} ON {events} ({job_id}, {timestamp});
