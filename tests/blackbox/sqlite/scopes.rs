//! Values that a view of another program's file cannot read: they hurt the job whose row has them, for as
//! long as it is so.

use super::super::contract::set_faults::{self, Spoils};
use crate::support::{Daemon, ForeignFile, Message, Stream, numbers};
use std::ops::Range;

/// A way in which a file shows its rows.
struct Layout {
    tables: &'static str,
    settings: &'static [(&'static str, &'static str)],
    spoils: Spoiled,
}

/// The part of a job that is spoiled.
#[derive(Clone, Copy, PartialEq)]
enum Spoiled {
    Rows,
    Status,
}

/// A view of events, whose rows have a number within each job; and one of jobs, beside a table that numbers all rows.
const LAYOUTS: [Layout; 2] = [
    Layout {
        tables: "CREATE TABLE log (n INTEGER PRIMARY KEY, key TEXT, run TEXT, body TEXT);
            CREATE VIEW entries AS SELECT n, key, run, json(body) AS shown FROM log;",
        settings: &[("columns.id", "key")],
        spoils: Spoiled::Rows,
    },
    Layout {
        tables: "CREATE TABLE log (n INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT, run TEXT, body TEXT);",
        settings: &[("columns.id", "key"), ("events_table", "log"), ("columns.payload", "body")],
        spoils: Spoiled::Status,
    },
];

const JOBS: &str = "CREATE INDEX log_run ON log (run, n); CREATE TABLE states (run TEXT PRIMARY KEY, state TEXT);
    CREATE VIEW runs AS SELECT run AS name, state ->> '$' AS status FROM states;";
const MAPPED: [(&str, &str); 8] = [
    ("events_table", "entries"),
    ("jobs_table", "runs"),
    ("job_columns.id", "name"),
    ("columns.job_id", "run"),
    ("columns.seq", "n"),
    ("columns.type", "= line"),
    ("columns.timestamp", ""),
    ("columns.payload", "shown"),
];

/// A file in one of the ways.
struct Odd {
    file: ForeignFile,
    spoils: Spoiled,
}

impl Odd {
    async fn serve(layout: &Layout) -> (Self, Daemon) {
        let file = ForeignFile::make(&format!("{}{JOBS}", layout.tables)).await;
        let mut settings = MAPPED.to_vec();
        settings.retain(|(name, _)| !layout.settings.iter().any(|(other, _)| other == name));
        settings.extend(layout.settings);
        let daemon = file.serve(&[&settings[..], &[("payload_kind", "json")]].concat()).await;
        (Self { file, spoils: layout.spoils }, daemon)
    }
}

impl Spoils for Odd {
    async fn append(&self, job: &str, numbers: Range<u64>) {
        let rows: Vec<String> = numbers.map(|n| format!("('{job}-{n}', '{job}', '{{\"n\":{n}}}')")).collect();
        let state = format!("INSERT OR IGNORE INTO states VALUES ('{job}', '\"RUNNING\"');");
        self.file.execute(&format!("{state} INSERT INTO log (key, run, body) VALUES {};", rows.join(","))).await;
    }

    async fn spoil(&self) {
        self.file
            .execute(match self.spoils {
                Spoiled::Rows => "UPDATE log SET body = 'x' || body WHERE run = 'bad'",
                Spoiled::Status => "UPDATE states SET state = 'x' WHERE run = 'bad'",
            })
            .await;
    }

    async fn mend(&self) {
        self.file.execute("UPDATE log SET body = ltrim(body, 'x'); UPDATE states SET state = '\"RUNNING\"'").await;
    }
}

async fn has_no_outage(daemon: &Daemon) {
    assert_eq!(daemon.ask_admin("/readyz").await.status, 200);
    daemon.metric_is("jobcast_source_up", 1.0).await;
    assert!(!daemon.log().contains("source went away"), "{}", daemon.log());
}

/// Reads until the word of a fault.
async fn fault(stream: &mut Stream) -> Message {
    loop {
        let message = stream.next().await.expect("the stream is open");
        if message.is("stream.error") {
            return message;
        }
    }
}

#[tokio::test]
async fn the_others_of_a_set_go_on_while_a_value_of_one_job_cannot_be_read() {
    for layout in &LAYOUTS {
        let (file, daemon) = Odd::serve(layout).await;
        set_faults::the_others_of_a_set_go_on_while_one_cannot_be_read_which_then_loses_nothing(&daemon, &file).await;
        has_no_outage(&daemon).await;
    }
}

#[tokio::test]
async fn a_value_that_cannot_be_read_stops_its_own_job_until_it_is_mended() {
    for layout in &LAYOUTS {
        let (file, daemon) = Odd::serve(layout).await;
        for job in ["bad", "good"] {
            file.append(job, 0..1).await;
        }
        let (mut good, mut bad) = (daemon.stream("good").await, daemon.stream("bad").await);
        assert_eq!((good.event().await.number(), bad.event().await.number()), (0, 0));
        for round in 0..2 {
            // Both jobs have news that no read has seen yet, and the newest row is the bad one.
            let (first, last) = (1 + 3 * round, 4 + 3 * round);
            let of_good = format!("('g-{first}', 'good', '{{\"n\":{first}}}')");
            let of_bad =
                (first..last).map(|n| format!("('b-{n}', 'bad', 'x{{\"n\":{n}}}')")).collect::<Vec<_>>().join(",");
            let insert = format!("INSERT INTO log (key, run, body) VALUES {of_good}, {of_bad};");
            match layout.spoils {
                Spoiled::Rows => file.file.execute(&insert).await,
                Spoiled::Status => {
                    let insert = insert.replace("'x{", "'{");
                    let state = "UPDATE states SET state = 'x' WHERE run = 'bad';";
                    file.file.execute(&format!("BEGIN; {state} {insert} COMMIT;")).await;
                }
            }
            assert_eq!(good.event().await.number(), first);
            let error = fault(&mut bad).await.json();
            assert_eq!((&error["code"], &error["retryable"]), (&"source.refused".into(), &true.into()), "{error}");
            let answer = daemon.get("/runner-jobs/bad/events").await;
            assert_eq!((answer.status, answer.code().as_str()), (503, "source.refused"), "{answer:?}");
            // Those who come are served, and those who are there go on.
            let mut joined = daemon.stream("good").await;
            file.append("good", first + 1..last).await;
            assert_eq!(numbers(&good.take(2).await), [first + 1, first + 2]);
            assert_eq!(numbers(&joined.take(last as usize).await), Vec::from_iter(0..last));
            has_no_outage(&daemon).await;
            file.mend().await;
            assert_eq!(numbers(&bad.take(3).await), Vec::from_iter(first..last));
        }
        assert_eq!(numbers(&daemon.stream("bad").await.take(7).await), Vec::from_iter(0..7));
        // in between it is not asked for without pause
        let again = daemon.metric("jobcast_source_wakeups_total{by=\"more\"}").await;
        assert!(again < 20.0, "{again} reads without a pause");
    }
}
