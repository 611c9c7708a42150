//! `jobcast check` on set-ups that are wrong in one place each: it finds the place, and its mend mends it.

use super::RECOMMENDED;
use crate::support::Postgres;
use crate::support::daemon::run;
use serde_json::Value;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Executor};

/// A set-up with one thing wrong or improvable.
struct Case {
    name: &'static str,
    /// SQL by the owner.
    tables: &'static str,
    settings: &'static [(&'static str, &'static str)],
    /// The beginning of the grade.
    grade: &'static str,
    /// Parts of the finding.
    finding: &'static [&'static str],
    /// A part of the mend.
    mend: &'static str,
}

/// Tables that lack nothing, for cases that take something away.
const READABLE: &str = "GRANT SELECT ON ALL TABLES IN SCHEMA CURRENT_SCHEMA TO reader;";

const fn wrong(
    name: &'static str,
    tables: &'static str,
    settings: &'static [(&'static str, &'static str)],
    finding: &'static [&'static str],
    mend: &'static str,
) -> Case {
    Case { name, tables, settings, grade: "wrong", finding, mend }
}

const fn improvable(
    name: &'static str,
    tables: &'static str,
    settings: &'static [(&'static str, &'static str)],
    finding: &'static [&'static str],
    mend: &'static str,
) -> Case {
    Case { name, tables, settings, grade: "improvable", finding, mend }
}

const CASES: &[Case] = &[
    wrong("the table is misspelt", "ALTER TABLE job_events RENAME TO jobs_events", &[],
        &["no table or view job_events"], "events_table = \"jobs_events\""),
    wrong("the table is in another schema", "CREATE SCHEMA app; ALTER TABLE job_events SET SCHEMA app; GRANT USAGE ON SCHEMA app TO reader", &[],
        &["no table or view job_events"], "events_table = \"app.job_events\""),
    wrong("the schema may not be used", "CREATE SCHEMA app2; GRANT SELECT ON job_events TO reader; ALTER TABLE job_events SET SCHEMA app2; CREATE TABLE job_events (LIKE app2.job_events INCLUDING ALL)",
        &[("events_table", "app2.job_events")], &["permission denied for schema app2"], "GRANT USAGE ON SCHEMA \"app2\" TO reader;"),
    wrong("there is no job table", "DROP TABLE runner_jobs; INSERT INTO job_events (id, job_id, type) VALUES ('1', 'a', 'run.failed'), ('2', 'a', 'run.succeeded')", &[],
        &["no table or view runner_jobs"], "final_types.completed = [\"run.succeeded\"]"),
    wrong("the number is misspelt", "", &[("columns.seq", "sek")], &["job_events has no column sek"], "columns.seq = \"seq\""),
    wrong("the step is misspelt", "", &[("columns.step_id", "stepId")], &["no column stepId"], "columns.step_id = \"step_id\""),
    wrong("the actor is misspelt, and nothing is like it", "ALTER TABLE job_events DROP COLUMN actor", &[("columns.actor", "writer")],
        &["no column writer"], "columns.actor = \"\"  # none; there are seq, xid, id"),
    wrong("a column of the payload is misspelt", "", &[("columns.payload", "type,paylod")], &["no column paylod"],
        "columns.payload = [\"type\", \"payload\"]"),
    wrong("the time has another name", "ALTER TABLE job_events RENAME \"timestamp\" TO \"createdAt\"", &[],
        &["no column timestamp"], "columns.timestamp = \"createdAt\""),
    wrong("the job has another name", "ALTER TABLE job_events RENAME job_id TO run_id", &[], &["no column job_id"], "columns.job_id = \"run_id\""),
    wrong("the type has another name", "ALTER TABLE job_events RENAME type TO \"Kind\"", &[("columns.type", "kind")], &["no column kind"], "columns.type = \"Kind\""),
    wrong("the status has another name", "ALTER TABLE runner_jobs RENAME status TO state", &[], &["runner_jobs has no column status"],
        "job_columns.status = \"state\""),
    wrong("the times are texts", "ALTER TABLE job_events ALTER \"timestamp\" DROP DEFAULT, ALTER \"timestamp\" TYPE text", &[],
        &["timestamp of type text is no time"], "columns.timestamp = \"\""),
    wrong("the number is a text", "", &[("columns.seq", "actor")], &["actor of type text is no number"], "columns.seq = \"seq\""),
    wrong("the transaction is a number", "ALTER TABLE job_events ADD tx bigint", &[("columns.xid", "tx")],
        &["tx of type bigint does not tell transactions"], "columns.xid = \"\""),
    wrong("nothing fills the transaction", "ALTER TABLE job_events ALTER xid DROP DEFAULT, ALTER xid DROP NOT NULL", &[],
        &["nothing fills it"], "ALTER COLUMN \"xid\" SET DEFAULT pg_current_xact_id();"),
    wrong("the zone is misspelt", "", &[("timestamp_zone", "Mars/Base")], &["no time zone Mars/Base"], "timestamp_zone = \"UTC\""),
    wrong("the zone is an offset that POSIX counts to the west", "", &[("timestamp_zone", "UTC+2")], &["no time zone UTC+2"], "timestamp_zone = \"UTC\""),
    wrong("a view hides the transaction",
        "CREATE TABLE raw (id text, run text, \"Kind\" text, at timestamptz); CREATE TABLE runs (run text PRIMARY KEY, name text);
         CREATE VIEW shown WITH (security_barrier=true) AS SELECT r.name AS job_id, e.id, e.\"Kind\" AS type, e.at AS \"timestamp\", ', FROM '::text AS payload
           FROM runs r JOIN raw e ON e.run = r.run",
        &[("events_table", "shown")], &["view shown does not hand on"], "e.xmin AS xmin"),
    wrong("views hide the transaction, one above the other",
        "CREATE TABLE raw (id text, job_id text, type text, \"timestamp\" timestamptz, payload json);
         CREATE VIEW inner_events AS SELECT * FROM raw UNION ALL SELECT * FROM raw; CREATE VIEW shown AS SELECT * FROM inner_events",
        &[("events_table", "shown")], &["view shown does not hand on"], "raw.xmin AS xmin"),
    wrong("a materialized view",
        "CREATE TABLE raw (id text, job_id text, type text, \"timestamp\" timestamptz, payload json); CREATE MATERIALIZED VIEW kept AS SELECT * FROM raw",
        &[("events_table", "kept")], &["kept is a materialized view"], "CREATE VIEW \"kept_events\" AS"),
    wrong("nothing tells the events apart",
        "CREATE TABLE parted (job_id text, type text, \"timestamp\" timestamptz, payload json, key text, part int) PARTITION BY LIST (part)",
        &[("events_table", "parted"), ("columns.id", "")], &["nothing tells the events of parted apart"], "columns.id = \"key\""),
    wrong("the events may not be read", "REVOKE SELECT ON job_events FROM reader", &[], &["permission denied: reader may not read job_events"],
        "GRANT SELECT ON job_events TO reader;"),
    wrong("the jobs may not be read", "REVOKE SELECT ON runner_jobs FROM reader", &[], &["permission denied: reader may not read runner_jobs"],
        "GRANT SELECT ON runner_jobs TO reader;"),
    wrong("the owner of a view may not read the table",
        "CREATE ROLE \"View Owner\"; GRANT CREATE ON SCHEMA CURRENT_SCHEMA TO \"View Owner\"; GRANT USAGE ON SCHEMA CURRENT_SCHEMA TO \"View Owner\";
         CREATE VIEW shown AS SELECT * FROM job_events; ALTER VIEW shown OWNER TO \"View Owner\"; GRANT SELECT ON shown TO reader",
        &[("events_table", "shown")], &["\"View Owner\" may not read job_events"], "GRANT SELECT ON job_events TO \"View Owner\";"),
    wrong("row level security without a policy", "ALTER TABLE job_events ENABLE ROW LEVEL SECURITY; CREATE POLICY others ON job_events TO postgres USING (true)", &[],
        &["job_events has row level security", "no policy lets reader see a row"], "CREATE POLICY jobcast_reads ON job_events"),
    wrong("row level security of the jobs, forced upon their owner", "ALTER TABLE runner_jobs OWNER TO reader; ALTER TABLE runner_jobs ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY", &[],
        &["runner_jobs has row level security"], "CREATE POLICY jobcast_reads ON runner_jobs"),
    wrong("no job table and no final type", "INSERT INTO job_events (id, job_id, type) VALUES ('1', 'a', 'canceled'), ('2', 'a', 'line')", &[("jobs_table", "")],
        &["neither a job table nor a final type"], "final_types.cancelled = [\"canceled\"]"),
    wrong("statuses that nothing maps", "ALTER TABLE runner_jobs DROP CONSTRAINT runner_jobs_status_check; INSERT INTO runner_jobs VALUES ('1', 'done'), ('2', 'Error'), ('3', 'parked')", &[],
        &["runner_jobs has statuses", "done", "Error"], "statuses.completed = [\"COMPLETED\", \"done\"]"),
    wrong("statuses of an enum that nothing maps", "CREATE TYPE state AS ENUM ('busy', 'succeeded'); DROP TABLE runner_jobs; CREATE TABLE runner_jobs (id text PRIMARY KEY, status state)", &[],
        &["succeeded"], "statuses.completed = [\"COMPLETED\", \"succeeded\"]"),
    wrong("jobs with several rows", "DROP TABLE runner_jobs; CREATE TABLE runner_jobs (id text, status text); CREATE INDEX ON runner_jobs (id);
         INSERT INTO runner_jobs VALUES ('a', 'RUNNING'), ('a', 'COMPLETED')", &[],
        &["several rows for the job a"], "CREATE VIEW \"runner_jobs_newest\""),
    wrong("heirs whose transaction nothing fills",
        "CREATE TABLE heirs (LIKE job_events INCLUDING ALL); CREATE TABLE \"Heir\" () INHERITS (heirs); ALTER TABLE \"Heir\" ALTER xid DROP DEFAULT;
         CREATE INDEX ON \"Heir\" (job_id, seq); CREATE INDEX ON \"Heir\" (xid)",
        &[("events_table", "heirs")], &["nothing fills the column xid of \"Heir\""], "ALTER TABLE \"Heir\" ALTER COLUMN \"xid\" SET DEFAULT"),
    improvable("no index", "DROP INDEX job_events_job_seq; ALTER TABLE job_events RENAME job_id TO \"jobId\"", &[("columns.job_id", "jobId")],
        &["no index on", "(\"jobId\", \"seq\")"], "CREATE INDEX CONCURRENTLY ON job_events (\"jobId\", \"seq\");"),
    improvable("no index on the partitions",
        "CREATE TABLE parted (LIKE job_events INCLUDING DEFAULTS) PARTITION BY LIST (type); CREATE TABLE \"Part 1\" PARTITION OF parted FOR VALUES IN ('a');
         CREATE TABLE part_2 PARTITION OF parted FOR VALUES IN ('b'); CREATE INDEX ON parted (xid); CREATE INDEX ON part_2 (job_id, \"timestamp\");
         CREATE INDEX ON part_2 (job_id, seq)",
        &[("events_table", "parted"), ("columns.seq", "seq")], &["no index on \"Part 1\""], "CREATE INDEX CONCURRENTLY ON \"Part 1\""),
    improvable("no index on the heirs",
        "CREATE TABLE heirs (LIKE job_events INCLUDING ALL); CREATE TABLE \"Heir\" (PRIMARY KEY (job_id, id)) INHERITS (heirs); CREATE INDEX ON \"Heir\" (xid)",
        &[("events_table", "heirs")], &["no index on \"Heir\" (\"job_id\", \"seq\")"], "CREATE INDEX CONCURRENTLY ON \"Heir\" (\"job_id\", \"seq\");"),
    improvable("no index on the jobs", "ALTER TABLE runner_jobs DROP CONSTRAINT runner_jobs_pkey", &[], &["no index on runner_jobs"],
        "CREATE INDEX CONCURRENTLY ON runner_jobs (\"id\");"),
    improvable("a number that may repeat", "ALTER TABLE job_events ADD line int; CREATE INDEX ON job_events (job_id, \"timestamp\"); UPDATE job_events SET line = 1", &[("columns.seq", "line")],
        &["no index says that line is unique"], "CREATE UNIQUE INDEX CONCURRENTLY"),
    improvable("nothing but its place tells an event", "DROP TABLE job_events; CREATE TABLE job_events (job_id text NOT NULL, type text, \"timestamp\" timestamptz NOT NULL, payload json);
         CREATE INDEX ON job_events (job_id, \"timestamp\")", &[("columns.id", "")], &["apart but their place in it (ctid)"], "columns.id = \"event_id\""),
    improvable("nothing but its place tells an event, though a column could", "DROP TABLE job_events; CREATE TABLE job_events (key text PRIMARY KEY, job_id text NOT NULL, type text,
         \"timestamp\" timestamptz NOT NULL, payload json); CREATE INDEX ON job_events (job_id, \"timestamp\")", &[("columns.id", "")], &["apart but their place in it (ctid)"],
        "columns.id = \"key\""),
    improvable("times whose unit has to be guessed", "DROP TABLE job_events; CREATE TABLE job_events (id text NOT NULL, job_id text, type text, at bigint NOT NULL, payload json);
         CREATE INDEX ON job_events (job_id, at); INSERT INTO job_events VALUES ('1', 'a', 'x', 1764000000000, '{}')", &[("columns.timestamp", "at")],
        &["taken for ms"], "timestamp_unit = \"ms\""),
    improvable("a table that was never analyzed", "INSERT INTO job_events (id, job_id, type) SELECT n, 'a', 'x' FROM generate_series(1, 9) n", &[],
        &["never analyzed"], "ANALYZE \"job_events\";"),
];

struct Checked {
    code: Option<i32>,
    findings: Vec<Value>,
}

impl Checked {
    async fn of(settings: &[(String, String)]) -> Self {
        let settings: Vec<(&str, &str)> = settings.iter().map(|(key, value)| (&**key, &**value)).collect();
        let output = run(&["check", "--json"], &settings).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let findings = serde_json::from_str(&said).unwrap_or_else(|_| panic!("{said}{output:?}"));
        Self { code: output.status.code(), findings }
    }

    fn problems(&self) -> Vec<&str> {
        let wrong = self.findings.iter().filter(|finding| finding["grade"] == "wrong");
        wrong.map(|finding| finding["summary"].as_str().expect("a text")).collect()
    }

    fn find(&self, parts: &[&str]) -> Option<&Value> {
        let has = |finding: &&Value| {
            let summary = finding["summary"].as_str().expect("a text");
            parts.iter().all(|part| summary.replace("\"job_events\"", "job_events").contains(part))
        };
        self.findings.iter().filter(|finding| finding["grade"] != "fine").find(has)
    }
}

/// Pastes a mend: settings into the settings, everything else into psql.
async fn apply(server: &Postgres, schema: &str, mend: &str, settings: &mut Vec<(String, String)>) {
    let (set, sql): (Vec<&str>, Vec<&str>) = mend.lines().partition(|line| line.starts_with("source.postgres."));
    for line in set {
        let (key, value) = line.split_once(" = ").expect("a setting");
        let value: toml::Value = toml::from_str::<toml::Table>(&format!("x = {value}")).expect(line)["x"].clone();
        let text = match value {
            toml::Value::Array(list) => list.iter().filter_map(|one| one.as_str()).collect::<Vec<_>>().join(","),
            one => one.as_str().expect("a text").to_string(),
        };
        settings.retain(|(known, _)| known != key);
        settings.push((key.to_string(), text));
    }
    // One statement each, as psql sends them: some cannot be in a transaction.
    server.psql(&format!("SET search_path = {schema};\n{}", sql.join("\n"))).await;
}

#[tokio::test]
async fn each_mend_that_check_prints_makes_its_finding_go_away_and_brings_no_problem() {
    let server = Postgres::start().await;
    server.execute("CREATE ROLE reader LOGIN").await;
    let mut failures = Vec::new();
    for (number, case) in CASES.iter().enumerate() {
        let schema = format!("case_{number}");
        let within = async |sql: &str| server.execute(&format!("SET search_path = {schema}; {sql}")).await;
        server.execute(&format!("CREATE SCHEMA {schema}; GRANT USAGE, CREATE ON SCHEMA {schema} TO reader")).await;
        within(RECOMMENDED).await;
        let names_schema = |sql: &str| sql.replace("CURRENT_SCHEMA", &schema);
        within(&names_schema(READABLE)).await;
        let gives = case.tables.contains("REVOKE");
        within(&names_schema(case.tables)).await;
        if !gives && !case.tables.contains("GRANT SELECT") {
            within(&names_schema(READABLE)).await;
        }
        let url = format!("{}?options[search_path]={schema}", server.url("reader"));
        let mut settings =
            vec![("source.kind".to_string(), "postgres".to_string()), ("source.postgres.url".into(), url)];
        settings.extend(case.settings.iter().map(|(key, value)| (format!("source.postgres.{key}"), value.to_string())));
        let before = Checked::of(&settings).await;
        let Some(finding) = before.find(case.finding) else {
            failures.push(format!("{}: not found in {:#?}", case.name, before.findings));
            continue;
        };
        let mend = finding["mend"].as_str().expect("a text").to_string();
        let code = if before.problems().is_empty() { 0 } else { 1 };
        if finding["grade"] != case.grade || !mend.contains(case.mend) || before.code != Some(code) {
            failures.push(format!("{}: exit {:?}, {finding:#}", case.name, before.code));
            continue;
        }
        if case.grade == "wrong" && before.problems().len() > 1 || case.grade == "improvable" && code != 0 {
            failures.push(format!("{}: more than that is wrong: {:#?}", case.name, before.problems()));
        }
        apply(&server, &schema, &mend, &mut settings).await;
        let after = Checked::of(&settings).await;
        if after.find(case.finding).is_some() || !after.problems().is_empty() || after.code != Some(0) {
            failures.push(format!("{}: after {mend}\nexit {:?}: {:#?}", case.name, after.code, after.findings));
        }
        // Nobody is to find its tables instead of the next one's.
        server.execute(&format!("DROP SCHEMA {schema} CASCADE")).await;
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[tokio::test]
async fn check_says_by_what_new_events_are_found_and_how_many_rows_a_read_of_them_costs() {
    let server = Postgres::start().await;
    server.execute("CREATE ROLE reader LOGIN; CREATE TABLE known (id text PRIMARY KEY)").await;
    let known =
        "INSERT INTO known SELECT 'job' UNION ALL SELECT 'job-' || n FROM generate_series(0, 699) n; ANALYZE known";
    server.execute(known).await;
    let numbered =
        "CREATE TABLE numbered (seq bigserial PRIMARY KEY, id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
      timestamp timestamptz, payload jsonb); CREATE INDEX ON numbered (job_id, seq);";
    let timed = "CREATE TABLE timed (id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
      timestamp timestamptz NOT NULL DEFAULT now(), payload jsonb); CREATE INDEX ON timed (job_id, timestamp);";
    let nullable = "CREATE TABLE nullable (id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
      timestamp timestamptz, payload jsonb); CREATE INDEX ON nullable (job_id, timestamp);";
    let unindexed = "CREATE TABLE unindexed (id text NOT NULL, job_id text NOT NULL, type text NOT NULL,
      timestamp timestamptz, payload jsonb); CREATE INDEX ON unindexed (job_id);";
    for (table, sql, by, grade) in [
        ("numbered", numbered, "by number", "fine"),
        ("timed", timed, "by timestamp", "fine"),
        ("nullable", nullable, "by timestamp", "fine"),
        ("unindexed", unindexed, "by timestamp", "improvable"),
    ] {
        server
            .execute(&format!(
                "{sql} INSERT INTO {table} (id, job_id, type, timestamp)
                   SELECT n, CASE WHEN n % 3 = 0 THEN 'job' ELSE 'job-' || n % 700 END, 'run.failed',
                     now() - interval '1 hour' - n * interval '1 second' FROM generate_series(1, 90000) n;
                 GRANT SELECT ON {table} TO reader; ANALYZE {table};
                 CREATE VIEW seen_{table} AS SELECT e.*, e.xmin AS xmin FROM {table} e JOIN known ON known.id = e.job_id;
                 GRANT SELECT ON seen_{table} TO reader"
            ))
            .await;
        // Of a view without an index below it, no long job is found to take as an example.
        let names = [table.to_string(), format!("seen_{table}")];
        for table in names.iter().take(if grade == "fine" { 2 } else { 1 }) {
            let settings = [
                ("source.kind", "postgres"),
                ("source.postgres.url", &server.url("reader")),
                ("source.postgres.events_table", table),
                ("source.postgres.jobs_table", ""),
                ("source.postgres.final_types.failed", "run.failed"),
            ];
            let settings: Vec<(String, String)> =
                settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
            let checked = Checked::of(&settings).await;
            let says = |parts: [&str; 2]| {
                let summary = |finding: &&Value| {
                    let summary = finding["summary"].as_str().expect("a text");
                    parts.iter().all(|part| summary.contains(part))
                };
                checked.findings.iter().find(summary).unwrap_or_else(|| panic!("{parts:?} in {:#?}", checked.findings))
            };
            says(["new events are found", by]);
            // A view's times bound no read of what is new, which says more than the short job in its sample.
            if table.starts_with("seen_") && by == "by timestamp" {
                says(["new events are found", "each costs a read of its whole job"]);
            }
            for read in ["a look for new events", "a page of the history", "a read of what is new"] {
                assert_eq!(says([read, table])["grade"], grade, "{read}: {:#?}", checked.findings);
            }
            if grade == "improvable" {
                // What is printed is pasted, and the same reads cost little then.
                let mend = says(["a look for new events", table])["mend"].as_str().expect("a text");
                assert_eq!(mend, "CREATE INDEX CONCURRENTLY ON unindexed (\"job_id\", \"timestamp\");");
                server.psql(mend).await;
                let after = Checked::of(&settings).await;
                for read in ["a look for new events", "a page of the history", "a read of what is new"] {
                    assert!(after.find(&[read]).is_none(), "{read}: {:#?}", after.findings);
                }
            }
        }
    }
}

/// The types that a column of job ids has in practice: what makes them, and the id of the job number `n`.
const KEYS: &[(&str, &str, &str)] = &[
    ("uuid", "", "('0199aaaa-bbbb-7ccc-8ddd-' || lpad(n::text, 12, '0'))::uuid"),
    ("int", "", "n"),
    ("bigint", "", "n"),
    ("numeric", "", "n"),
    ("varchar(40)", "", "'job-' || n"),
    ("char(36)", "", "'job-' || n"),
    ("job_name", "CREATE DOMAIN job_name AS text CHECK (length(VALUE) < 40);", "'job-' || n"),
    ("citext", "CREATE EXTENSION citext;", "'Job-' || n"),
    ("job_label", "", "('job-' || n)::job_label"),
];

#[tokio::test]
async fn each_type_of_job_ids_has_its_reads_served_by_the_index_that_is_there() {
    let server = Postgres::start().await;
    server.execute("CREATE ROLE reader LOGIN").await;
    let labels = (0..100).map(|n| format!("'job-{n}'")).collect::<Vec<_>>().join(", ");
    server.execute(&format!("CREATE TYPE job_label AS ENUM ({labels})")).await;
    for (number, (kind, made_by, id)) in KEYS.iter().enumerate() {
        let table = format!("events_{number}");
        server
            .execute(&format!(
                "{made_by} CREATE TABLE jobs_{number} (id {kind} PRIMARY KEY, status text DEFAULT 'RUNNING');
                 INSERT INTO jobs_{number} (id) SELECT {id} FROM generate_series(0, 99) n;
                 CREATE TABLE {table} (seq bigint GENERATED ALWAYS AS IDENTITY, job_id {kind} NOT NULL, type text NOT NULL DEFAULT 'x',
                   timestamp timestamptz NOT NULL DEFAULT now(), payload jsonb);
                 INSERT INTO {table} (job_id) SELECT {id} FROM (SELECT i % 100 AS n FROM generate_series(1, 50000) i) i;
                 CREATE INDEX by_job_{number} ON {table} (job_id, seq);
                 GRANT SELECT ON {table}, jobs_{number} TO reader; ANALYZE {table}; ANALYZE jobs_{number};"
            ))
            .await;
        let settings = [
            ("source.kind", "postgres".to_string()),
            ("source.postgres.url", server.url("reader")),
            ("source.postgres.events_table", table.clone()),
            ("source.postgres.jobs_table", format!("jobs_{number}")),
            ("source.postgres.columns.id", String::new()),
        ];
        let settings = settings.map(|(key, value)| (key.to_string(), value));
        let checked = Checked::of(&settings).await;
        assert_eq!(checked.code, Some(0), "{kind}: {:#?}", checked.findings);
        for read in ["a look for new events", "a read of what is new", "a page of the history"] {
            let summary = |finding: &Value| finding["summary"].as_str().expect("a text").to_string();
            let summaries = checked.findings.iter().map(summary);
            let found = summaries.filter(|summary| summary.starts_with(read)).collect::<Vec<_>>().join("");
            let is_served = found.contains(&format!("by_job_{number}")) && !found.contains("the whole of");
            assert!(is_served, "{kind}: {found} of {:#?}", checked.findings);
            assert!(checked.find(&[read]).is_none(), "{kind}: {found}");
        }
    }
}

#[tokio::test]
async fn check_says_what_it_takes_texts_without_an_encoding_and_times_without_a_zone_for() {
    let server = Postgres::start().await;
    server.execute("CREATE DATABASE bare ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0").await;
    let url = server.url("postgres");
    let url = format!("{}/bare", url.strip_suffix("/postgres").expect("the name of a database"));
    let mut owner = PgConnection::connect(&url).await.expect("a database without encoding");
    let tables = [RECOMMENDED, "ALTER TABLE job_events ALTER \"timestamp\" TYPE timestamp"].concat();
    owner.execute(sqlx::raw_sql(AssertSqlSafe(tables))).await.expect("tables");
    for zone in ["UTC", "America/New_York"] {
        let settings =
            [("source.kind", "postgres"), ("source.postgres.url", &*url), ("source.postgres.timestamp_zone", zone)];
        let settings = settings.map(|(key, value)| (key.to_string(), value.to_string()));
        let checked = Checked::of(&settings).await;
        assert_eq!(checked.code, Some(0), "{:#?}", checked.findings);
        let assumed =
            format!("timestamp has no time zone: its times are taken for {zone} (source.postgres.timestamp_zone");
        for part in ["no encoding (SQL_ASCII): its texts are taken for UTF-8", &*assumed] {
            let is_said = |finding: &Value| finding["summary"].as_str().is_some_and(|text| text.contains(part));
            assert!(checked.findings.iter().any(is_said), "{part}: {:#?}", checked.findings);
        }
    }
}

#[tokio::test]
async fn advice_to_take_the_jobs_id_from_the_events_own_table_is_given_only_where_that_has_it() {
    let server = Postgres::start().await;
    server
        .execute(
            "CREATE ROLE reader LOGIN;
             CREATE TABLE tasks (id bigint PRIMARY KEY, job_id text NOT NULL, status text DEFAULT 'RUNNING');
             CREATE TABLE with_it (id bigserial PRIMARY KEY, task_id bigint NOT NULL, job_id text, type text NOT NULL,
               timestamp timestamptz NOT NULL DEFAULT now(), payload jsonb);
             CREATE TABLE without (LIKE with_it INCLUDING ALL); ALTER TABLE without DROP COLUMN job_id;
             CREATE VIEW seen_with_it AS SELECT e.xmin AS xmin, e.id, t.job_id, e.type, e.timestamp, e.payload
               FROM with_it e JOIN tasks t ON t.id = e.task_id;
             CREATE VIEW seen_without AS SELECT e.xmin AS xmin, e.id, t.job_id, e.type, e.timestamp, e.payload
               FROM without e JOIN tasks t ON t.id = e.task_id;
             GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader",
        )
        .await;
    let otherwise = "see to it that the row of tasks is committed before the job's events, or with them";
    for (view, advice) in [("seen_with_it", "take job_id from with_it, or "), ("seen_without", "")] {
        let settings = [
            ("source.kind", "postgres".to_string()),
            ("source.postgres.url", server.url("reader")),
            ("source.postgres.events_table", view.to_string()),
            ("source.postgres.jobs_table", "tasks".to_string()),
            ("source.postgres.job_columns.id", "job_id".to_string()),
        ];
        let checked = Checked::of(&settings.map(|(key, value)| (key.to_string(), value))).await;
        let finding = checked.find(&["takes job_id from tasks"]).unwrap_or_else(|| panic!("{:#?}", checked.findings));
        assert_eq!((checked.code, finding["mend"].as_str()), (Some(0), Some(&*format!("{advice}{otherwise}"))));
    }
}
