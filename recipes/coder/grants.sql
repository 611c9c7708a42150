-- Run by the owner of Coder's tables, after CREATE ROLE jobcast LOGIN PASSWORD '…';
GRANT SELECT ON provisioner_job_logs, provisioner_jobs TO jobcast;
