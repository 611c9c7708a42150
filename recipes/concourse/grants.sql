-- Run by the owner of Concourse's tables, after CREATE ROLE jobcast LOGIN PASSWORD '…';
-- A right on the parent is enough, also for the tables of later pipelines.
GRANT SELECT ON build_events, builds TO jobcast;
