-- Run by the owner of Kestra's tables, after CREATE ROLE jobcast LOGIN PASSWORD '…';
GRANT SELECT ON logs, executions TO jobcast;
