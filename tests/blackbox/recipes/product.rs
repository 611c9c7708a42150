//! The database of a product, and what a daemon tells of it with the files of a recipe.

use super::{file_of, settings};
use crate::support::daemon::run;
use crate::support::{Daemon, Message, Postgres, Stream};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Executor, Row};

pub struct Product {
    pub database: Postgres,
    recipe: &'static str,
}

impl Product {
    /// Makes tables as the product makes them, and runs the recipe's script as their owner does. The role that reads has no
    /// rights but those of the script.
    pub async fn start(recipe: &'static str, script: &str, tables: &str) -> Self {
        let database = Postgres::start().await;
        database.execute(tables).await;
        database
            .execute(
                "CREATE ROLE jobcast LOGIN; CREATE FUNCTION told_at(timestamptz) RETURNS text LANGUAGE sql AS
                 $$SELECT to_char($1 AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')$$",
            )
            .await;
        database.psql(&read(&file_of(recipe, script))).await;
        Self { database, recipe }
    }

    /// Serves the recipe, with a grace that no test has to hurry for, or to wait for. Events have to be found by the look, and
    /// not by the sweep.
    pub async fn serve(&self, grace: &str) -> Daemon {
        let (config, url) = (settings(self.recipe), self.database.url("jobcast"));
        let settings = [
            ("config", &*config),
            ("source.postgres.url", &url),
            ("source.postgres.sweep", "1h"),
            ("source.end_grace", grace),
        ];
        Daemon::with(&settings).await
    }

    /// The events as the product's own rows say that they are: a column of JSON, in which `told_at` writes the times.
    pub async fn rows(&self, sql: &str) -> Vec<Value> {
        let sql = format!("SELECT told::text FROM ({sql}) rows (told)");
        let rows = self.database.connect().await.fetch_all(sqlx::raw_sql(AssertSqlSafe(&*sql))).await.expect(&sql);
        rows.iter().map(|row| serde_json::from_str(row.get(0)).expect("JSON")).collect()
    }

    /// Asserts that a late reader is told these events, in this order, and this end, and a reader who comes back after any of
    /// them the rest; and that `jobcast check` finds nothing to mend. Returns the cursor of the end.
    pub async fn is_told(&self, job: &str, events: &[Value], status: &str) -> String {
        let daemon = self.serve("100ms").await;
        let all = daemon.stream(job).await.rest().await;
        assert_eq!(parts(&all), [events, &[json!(format!("stream.complete {status}"))]].concat());
        let (end, messages) = all.split_last().expect("an end");
        for (place, message) in messages[..messages.len() - 1].iter().enumerate() {
            let rest = daemon.stream_after(job, message.cursor()).await.rest().await;
            let (own_end, rest) = rest.split_last().expect("an end");
            assert_eq!(rest, &messages[place + 1..], "after {message:?}");
            // Where the end stands may be said in another way by then, which nothing follows either.
            assert_eq!((&own_end.event, &own_end.data), (&end.event, &end.data));
            let after_end = daemon.stream_after(job, own_end.cursor()).await;
            assert_eq!(after_end.head.status, 204, "nothing is left after {own_end:?}");
        }
        for last in &all[messages.len() - 1..] {
            assert_eq!(daemon.stream_after(job, last.cursor()).await.head.status, 204, "nothing is left to be told");
        }
        let url = self.database.url("jobcast");
        let checked = run(&["check"], &[("config", &settings(self.recipe)), ("source.postgres.url", &url)]).await;
        let said = String::from_utf8_lossy(&[checked.stdout, checked.stderr].concat()).into_owned();
        assert!(checked.status.success(), "{said}");
        end.cursor().to_string()
    }
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).expect("a file of a recipe")
}

/// The events as they are told, and of Jobcast's own their names and the status.
pub fn parts(messages: &[Message]) -> Vec<Value> {
    let part = |message: &Message| match message.event.as_deref() {
        Some(name) if name.starts_with("stream.") => {
            json!(format!("{name} {}", message.json()["status"].as_str().unwrap_or_default()))
        }
        _ => message.json(),
    };
    messages.iter().map(part).collect()
}

/// The next so many messages of a stream, but for the statuses of a job that goes on.
pub async fn next(stream: &mut Stream, count: usize) -> Vec<Value> {
    let mut told = Vec::new();
    while told.len() < count {
        told.extend(parts(&stream.take(1).await));
        told.retain(|part| !["RUNNING", "QUEUED"].iter().any(|status| *part == format!("stream.status {status}")));
    }
    told
}
