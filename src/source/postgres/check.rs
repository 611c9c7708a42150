//! What `jobcast check` says of the database.

use super::table::{Age, Order, Tables};
use super::{SNAPSHOT, Store, literal};
use crate::config;
use crate::source::Finding;
use sqlx::Row;
use sqlx::postgres::PgConnection;

pub async fn check(settings: &config::Source) -> Vec<Finding> {
    let looked = async {
        let store = Store::open(settings).await?;
        store.reading("checking the database", async |connection, tables| look(&store, connection, tables).await).await
    };
    match looked.await {
        Ok(found) => found,
        Err(error) => vec![Finding::problem(format!("{}: {}", error.tried, error.cause), error.mend)],
    }
}

async fn look(store: &Store, connection: &mut PgConnection, tables: &Tables) -> Result<Vec<Finding>, sqlx::Error> {
    let mut found = Vec::new();
    let sql =
        "SELECT current_setting('server_version'), current_setting('server_version_num')::int, pg_is_in_recovery()";
    let server = store.ask(connection, sql.into()).await?;
    if let Some(row) = server.first() {
        let (version, number): (String, i32) = (row.try_get(0)?, row.try_get(1)?);
        found.push(match number {
            130_000.. => Finding::fine(format!("PostgreSQL {version}")),
            _ => Finding::problem(
                format!("PostgreSQL {version} is too old"),
                "13 is the oldest that tells what is needed",
            ),
        });
        if row.try_get(2)? {
            found.push(Finding::fine("a standby: it hears no wake-ups, new events wait for the poll"));
        }
    }
    found.push(Finding::fine(match (tables.age, tables.order) {
        (Age::Column, Order::Number) => {
            "the event table tells transactions and numbers by columns: new events are found by index"
        }
        (Age::Column, Order::Time) => "the event table tells transactions by a column; events are ordered by timestamp",
        (Age::System, _) => {
            "the event table has no column of type xid8: new events are found by timestamp, and by sweeps; \
             `jobcast schema postgres` shows the column that makes it cheap"
        }
    }));
    let indexed = |columns: &str| {
        format!(
            "EXISTS (SELECT FROM pg_index i WHERE i.indrelid = to_regclass({}) AND i.indisvalid AND ({columns}) =
               (SELECT array_agg(a.attname::text ORDER BY k.n) FROM unnest(i.indkey::int2[]) WITH ORDINALITY k (c, n)
                JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.c WHERE k.n <= cardinality({columns})))",
            literal(&tables.events)
        )
    };
    let columns = &store.settings.columns;
    let mut wanted = vec![match tables.order {
        Order::Number => (vec![&columns.job_id, &columns.seq], "history is read by it"),
        Order::Time => (vec![&columns.job_id, &columns.timestamp], "history and new events are read by it"),
    }];
    if tables.age == Age::Column {
        wanted.push((vec![&columns.xid], "new events are found by it"));
    }
    for (names, why) in wanted {
        let list: Vec<String> = names.iter().map(|name| literal(name)).collect();
        let sql = format!("{SNAPSHOT} SELECT {}", indexed(&format!("ARRAY[{}]::text[]", list.join(","))));
        let is_there = store.ask(connection, sql).await?.first().is_some_and(|row| row.try_get(0).unwrap_or(false));
        let shown = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
        found.push(match is_there {
            true => Finding::fine(format!("there is an index on ({shown})")),
            false => Finding::problem(
                format!("there is no index on ({shown}): {why}"),
                format!("CREATE INDEX CONCURRENTLY ON {} ({shown})", tables.events),
            ),
        });
    }
    Ok(found)
}
