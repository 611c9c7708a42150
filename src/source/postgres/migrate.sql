-- Gives a job-event table the columns that Jobcast finds new events by, while it is in use. No row is rewritten: those
-- from before have neither, and come first, by their timestamps. Cursors that were given out before stay good.
-- With psql, outside of a transaction. May be run again, also after it was interrupted. Jobcast uses the columns from its
-- next start on.

\set ON_ERROR_STOP on

-- Runs what needs a table alone for a moment. Whoever wants the table meanwhile waits behind us, so each try is short,
-- and the others get their turn between two.
CREATE OR REPLACE FUNCTION pg_temp.jobcast_patiently(statements text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  FOR attempt IN 1..300 LOOP
    BEGIN
      SET LOCAL lock_timeout = '300ms';
      EXECUTE statements;
      RETURN;
    EXCEPTION WHEN lock_not_available THEN
      PERFORM pg_sleep(1);
    END;
  END LOOP;
  RAISE EXCEPTION 'the table is in use all the time: %', statements
    USING HINT = 'Run this again when no long transaction uses the table; what is done already stays.';
END $$;

DO $$
BEGIN
  IF (SELECT relkind NOT IN ('r', 'p') FROM pg_class WHERE oid = {events_text}::regclass) THEN
    RAISE EXCEPTION '% is no table', {events_text} USING HINT = 'Migrate the table below the view, and add its columns to the view.';
  END IF;
  IF NOT pg_try_advisory_lock(hashtextextended('jobcast schema --migrate', {events_text}::regclass::oid::bigint)) THEN
    RAISE EXCEPTION 'another run is at work on %', {events_text};
  END IF;
END $$;

-- Both columns at once, as far as they are missing.
SELECT pg_temp.jobcast_patiently(string_agg(statements, '')) FROM (VALUES
  ({xid_text}, $jobcast$
    ALTER TABLE {events} ADD COLUMN {xid} xid8;
    ALTER TABLE {events} ALTER COLUMN {xid} SET DEFAULT pg_current_xact_id();
  $jobcast$),
  ({seq_text}, $jobcast$
    ALTER TABLE {events} ADD COLUMN {seq} bigint;
    CREATE SEQUENCE {sequence} OWNED BY {events}.{seq};
    GRANT USAGE ON SEQUENCE {sequence} TO PUBLIC;
    ALTER TABLE {events} ALTER COLUMN {seq} SET DEFAULT nextval({sequence_text});
  $jobcast$)
) wanted (name, statements)
WHERE NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = {events_text}::regclass AND attname = name AND NOT attisdropped)
HAVING count(*) > 0;

-- Whoever may insert events takes a number, also roles that come later.
SELECT format('GRANT USAGE ON SEQUENCE %s TO PUBLIC', to_regclass({sequence_text})) WHERE to_regclass({sequence_text}) IS NOT NULL
\gexec

-- The indexes are built one table at a time, while writers go on; of partitions and heirs on each. What an interrupted
-- run has left half built goes first.
CREATE TEMPORARY TABLE IF NOT EXISTS jobcast_wanted (suffix text, columns text[], list text);
TRUNCATE jobcast_wanted;
INSERT INTO jobcast_wanted VALUES
  {wanted};

CREATE OR REPLACE TEMPORARY VIEW jobcast_lacking AS
WITH RECURSIVE below AS (
  SELECT {events_text}::regclass::oid AS oid
  UNION SELECT inhrelid FROM below JOIN pg_inherits ON inhparent = below.oid
)
SELECT c.oid::regclass AS place, relkind, relnamespace, left(relname, 40) || '_jobcast_' || suffix AS index, list
FROM below JOIN pg_class c ON c.oid = below.oid CROSS JOIN jobcast_wanted w
WHERE NOT EXISTS (
  SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisvalid AND i.indpred IS NULL AND w.columns = (
    SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (number, n)
    JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.number WHERE k.n <= cardinality(w.columns)));

SELECT format('DROP INDEX CONCURRENTLY %s', i.indexrelid::regclass)
FROM jobcast_lacking JOIN pg_class c ON c.relname = index AND c.relnamespace = jobcast_lacking.relnamespace
JOIN pg_index i ON i.indexrelid = c.oid AND i.indrelid = place AND NOT i.indisvalid
WHERE jobcast_lacking.relkind = 'r'
\gexec

SELECT format('CREATE INDEX CONCURRENTLY %I ON %s (%s)', index, place, list) FROM jobcast_lacking WHERE relkind = 'r'
\gexec

-- A partitioned table takes over the indexes of its partitions, and brings them to those that come.
SELECT format('SELECT pg_temp.jobcast_patiently(%L)', format('CREATE INDEX %I ON %s (%s)', index, place, list))
FROM jobcast_lacking WHERE relkind = 'p' AND place = {events_text}::regclass
\gexec
