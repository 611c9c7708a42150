-- Run by the owner of Prefect's tables, after CREATE ROLE jobcast LOGIN PASSWORD '…';
GRANT SELECT ON log, flow_run TO jobcast;
