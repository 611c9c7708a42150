//! What `jobcast check` says of the database.

use super::link::Link;
use super::position::Position;
use super::table::{Age, Mark, Order, Tables, quote_table};
use super::tell::{Wanted, page_statement};
use super::{Store, literal};
use crate::config;
use crate::event::JobId;
use crate::source::Finding;
use sqlx::Row;

pub async fn check(settings: &config::Source) -> Vec<Finding> {
    let looked = async {
        let store = Store::open(settings).await?;
        store.reading("checking the database", async |link, tables| look(&store, link, tables).await).await
    };
    match looked.await {
        Ok(found) => found,
        Err(error) => vec![error.into()],
    }
}

async fn look(store: &Store, link: &mut Link, tables: &Tables) -> Result<Vec<Finding>, sqlx::Error> {
    let mut found = server(store, link).await?;
    found.push(Finding::fine(match (tables.age(), tables.order()) {
        (Age::Column, Order::Number) => {
            "the event table tells transactions and numbers by columns: new events are found by index"
        }
        (Age::Column, Order::Time) => "the event table tells transactions by a column; events are ordered by timestamp",
        (Age::System, _) => {
            "the event table has no column of type xid8: new events are found by timestamp, and by sweeps; \
             `jobcast schema postgres --migrate` shows how to add the column that makes it cheap"
        }
    }));
    found.extend(columns(store, link, tables).await?);
    found.extend(indexes(store, link, tables).await?);
    found.extend(rights(store, link, tables).await?);
    found.extend(wakeups(store, link, tables).await?);
    Ok(found)
}

async fn server(store: &Store, link: &mut Link) -> Result<Vec<Finding>, sqlx::Error> {
    let sql = "SELECT current_setting('server_version'), current_setting('server_version_num')::int,
               pg_is_in_recovery(), inet_server_port()";
    let answer = link.ask(sql.into()).await?;
    let row = answer.first().ok_or(sqlx::Error::RowNotFound)?;
    let version: String = row.try_get(0)?;
    let mut found = vec![match row.try_get::<i32, _>(1)? {
        130_000.. => Finding::fine(format!("PostgreSQL {version}")),
        _ => Finding::problem(format!("PostgreSQL {version} is too old"), "13 is the oldest that tells what is needed"),
    }];
    if row.try_get(2)? {
        found.push(Finding::fine("a standby: it hears no wake-ups, new events wait for the poll"));
    }
    if store.is_behind_another(row.try_get(3)?) {
        found.push(Finding::fine(
            "a pooler or proxy stands before the server: where it keeps no sessions (PgBouncer's pool_mode = \
             transaction), wake-ups do not pass, and new events wait for the poll; then set source.postgres.listen = \"\"",
        ));
    }
    Ok(found)
}

/// What the columns allow that would make events late or slow.
async fn columns(store: &Store, link: &mut Link, tables: &Tables) -> Result<Vec<Finding>, sqlx::Error> {
    let mut found = Vec::new();
    let (names, table) = (&store.settings.columns, &tables.events);
    for column in super::columns_of(link, &store.settings.events_table).await? {
        let is = |name: &str| column.name == name;
        if is(&names.xid) && column.kind == "xid8" && column.may_be_null && !column.has_default {
            found.push(Finding::problem(
                format!("the column {} is not used, since nothing fills it", column.name),
                format!("ALTER TABLE {table} ALTER COLUMN {} SET DEFAULT pg_current_xact_id()", column.name),
            ));
        }
        if column.may_be_null && (is(&names.timestamp) || is(&names.id)) {
            found.push(Finding::problem(
                format!("the column {} may be null: then no index can serve the order of events", column.name),
                format!("ALTER TABLE {table} ALTER COLUMN {} SET NOT NULL", column.name),
            ));
        }
    }
    Ok(found)
}

async fn indexes(store: &Store, link: &mut Link, tables: &Tables) -> Result<Vec<Finding>, sqlx::Error> {
    let settings = &store.settings;
    let columns = &settings.columns;
    let by_time = (&tables.events, vec![&columns.job_id, &columns.timestamp]);
    let mut wanted = Vec::new();
    match tables.order() {
        Order::Number => {
            wanted.push(((&tables.events, vec![&columns.job_id, &columns.seq]), "history is read by it"));
            if tables.has_unnumbered() {
                wanted.push((by_time, "history from before there were numbers is read by it"));
            }
        }
        Order::Time => wanted.push((by_time, "history and new events are read by it")),
    }
    if tables.age() == Age::Column {
        wanted.push(((&tables.events, vec![&columns.xid]), "new events are found by it"));
    }
    if let Some(jobs) = &tables.jobs {
        wanted.push(((&jobs.table, vec![&settings.job_columns.id]), "the status of a job is found by it"));
    }
    let mut found = Vec::new();
    for ((table, names), why) in wanted {
        let list: Vec<String> = names.iter().map(|name| literal(name)).collect();
        let columns = format!("ARRAY[{}]::text[]", list.join(","));
        let sql = format!(
            "SELECT EXISTS (SELECT FROM pg_index i
               WHERE i.indrelid = to_regclass({}) AND i.indisvalid AND i.indpred IS NULL AND ({columns}) =
               (SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (c, n)
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.c WHERE k.n <= cardinality({columns})))",
            literal(table)
        );
        let is_there = link.ask(sql).await?.first().is_some_and(|row| row.try_get(0).unwrap_or(false));
        let shown = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        found.push(match is_there {
            true => Finding::fine(format!("there is an index on {table} ({shown})")),
            false => Finding::problem(
                format!("there is no index on {table} ({shown}): {why}"),
                format!("CREATE INDEX CONCURRENTLY ON {table} ({shown})"),
            ),
        });
    }
    Ok(found)
}

/// Reads as the tail and history do, of a job that there is none of.
async fn rights(store: &Store, link: &mut Link, tables: &Tables) -> Result<Vec<Finding>, sqlx::Error> {
    let nobody: Option<JobId> = ["jobcast-check", "0", "00000000-0000-0000-0000-000000000000"]
        .into_iter()
        .find(|id| tables.job_id.spelled(id).is_some())
        .and_then(|id| id.parse().ok());
    if let Some(job) = nobody {
        let head = store.snapshot(tables, Some(&job));
        let position = &Position::beginning();
        let wanted = Wanted { job: &job, position, end: Mark::Now, within: None, most: 1 };
        let sql = page_statement(&head, tables, &wanted);
        if let Err(error) = link.ask(sql).await {
            return Ok(vec![store.failed("reading events and statuses", error).into()]);
        }
    }
    let sql = format!("SELECT has_table_privilege({}, 'INSERT'), current_user::text", literal(&tables.events));
    let answer = link.ask(sql).await?;
    let row = answer.first().ok_or(sqlx::Error::RowNotFound)?;
    let user: String = row.try_get(1)?;
    Ok(vec![Finding::fine(match row.try_get(0)? {
        true => format!("{user} may read the tables, and write to them; to read is all that is needed without ingest"),
        false => format!("{user} may read the tables, and not write to them"),
    })])
}

async fn wakeups(store: &Store, link: &mut Link, tables: &Tables) -> Result<Vec<Finding>, sqlx::Error> {
    if store.settings.listen.is_empty() {
        return Ok(vec![Finding::fine("no wake-ups are asked for: new events wait for the poll")]);
    }
    let sql = format!(
        "SELECT EXISTS (SELECT FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
         WHERE t.tgrelid = to_regclass({}) AND NOT t.tgisinternal AND t.tgenabled <> 'D' AND p.prosrc ILIKE '%notify%')",
        literal(&tables.events)
    );
    let is_there = link.ask(sql).await?.first().is_some_and(|row| row.try_get(0).unwrap_or(false));
    Ok(vec![Finding::fine(match is_there {
        true => format!("a trigger notifies; Jobcast listens on {}", store.settings.listen),
        false => format!(
            "no trigger on {} notifies: new events wait for the poll; `jobcast schema postgres` has one",
            quote_table(&store.settings.events_table)
        ),
    })])
}
