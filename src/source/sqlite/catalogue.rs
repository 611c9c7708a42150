//! The tables, views and columns of a file, as its schema describes them.

use super::error::SqliteError;
use sqlx::sqlite::SqliteConnection;

/// A table or view.
#[derive(Clone, Debug)]
pub struct Relation {
    /// The name, spelled as the schema spells it.
    pub name: String,
    pub kind: RelationKind,
    pub columns: Vec<Column>,
}

/// Kind of a relation, as far as it decides which number tells its rows' order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelationKind {
    /// A table whose rows SQLite numbers: a ROWID table.
    Table {
        /// Name of the number, quoted: that of an INTEGER PRIMARY KEY, else one of SQLite's own.
        rowid: String,
        numbers: RowNumbers,
    },
    /// A table WITHOUT ROWID.
    WithoutRowid,
    View,
    /// A virtual table, whose rows are numbered as its module likes.
    Virtual,
}

/// The way in which SQLite numbers the rows of a table ("ROWIDs and the INTEGER PRIMARY KEY", "SQLite Autoincrement").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowNumbers {
    /// `INTEGER PRIMARY KEY AUTOINCREMENT`: no number is given out twice.
    Autoincrement,
    /// `INTEGER PRIMARY KEY`: the numbers of deleted newest rows come back.
    Reused,
    /// No such column: numbers come back, and VACUUM numbers the rows anew.
    Renumbered,
}

/// A column.
#[derive(Clone, Debug)]
pub struct Column {
    pub name: String,
    /// Declared type in upper case; empty where there is none.
    pub kind: String,
}

/// Conversion that a column applies to what is stored in it and compared with it ("Datatypes In SQLite", section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Affinity {
    Text,
    Number,
    Blob,
}

impl Column {
    pub fn affinity(&self) -> Affinity {
        let has = |part: &str| self.kind.contains(part);
        if has("INT") {
            Affinity::Number
        } else if has("CHAR") || has("CLOB") || has("TEXT") {
            Affinity::Text
        } else if self.kind.is_empty() || has("BLOB") {
            Affinity::Blob
        } else {
            Affinity::Number
        }
    }
}

impl Relation {
    /// Finds a column. SQLite does not tell upper from lower case of ASCII letters.
    pub fn find(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name.eq_ignore_ascii_case(name))
    }
}

/// Names of all tables and views but SQLite's own.
pub async fn names(connection: &mut SqliteConnection) -> Result<Vec<String>, SqliteError> {
    let sql =
        "SELECT name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'";
    Ok(sqlx::query_scalar(sql).fetch_all(connection).await?)
}

/// Reads how a table or view is made. `None` where there is none of this name.
pub async fn read_relation(connection: &mut SqliteConnection, name: &str) -> Result<Option<Relation>, SqliteError> {
    let found: Option<(String, String, bool, Option<String>)> = sqlx::query_as(
        "SELECT l.name, l.type, l.wr, s.sql FROM pragma_table_list l JOIN sqlite_schema s ON s.name = l.name
         WHERE l.schema = 'main' AND l.name = ?1 COLLATE NOCASE AND s.type IN ('table', 'view')",
    )
    .bind(name)
    .fetch_optional(&mut *connection)
    .await?;
    let Some((name, kind, is_without_rowid, sql)) = found else { return Ok(None) };
    let columns: Vec<(String, String, i64)> =
        sqlx::query_as("SELECT name, upper(type), pk FROM pragma_table_xinfo(?1) WHERE hidden <> 1 ORDER BY cid")
            .bind(&name)
            .fetch_all(&mut *connection)
            .await?;
    let has_key_index: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM pragma_index_list(?1) WHERE origin = 'pk')")
            .bind(&name)
            .fetch_one(connection)
            .await?;
    let kind = match &*kind {
        "view" => RelationKind::View,
        "virtual" => RelationKind::Virtual,
        _ if is_without_rowid => RelationKind::WithoutRowid,
        _ => numbered(&columns, has_key_index, sql.as_deref().unwrap_or_default()),
    };
    let columns = columns.into_iter().map(|(name, kind, _)| Column { name, kind }).collect();
    Ok(Some(Relation { name, kind, columns }))
}

/// Tells how the rows of a ROWID table are numbered. A primary key is the number itself where no index serves it.
fn numbered(columns: &[(String, String, i64)], has_key_index: bool, sql: &str) -> RelationKind {
    let mut keys = columns.iter().filter(|(.., key)| *key > 0);
    let alias = match (keys.next(), keys.next()) {
        (Some((name, kind, _)), None) if kind == "INTEGER" && !has_key_index => Some(name),
        _ => None,
    };
    if let Some(name) = alias {
        let numbers = if is_autoincrement(sql) { RowNumbers::Autoincrement } else { RowNumbers::Reused };
        return RelationKind::Table { rowid: quote(name), numbers };
    }
    let is_free = |name: &&str| !columns.iter().any(|(column, ..)| column.eq_ignore_ascii_case(name));
    match ["rowid", "_rowid_", "oid"].into_iter().find(is_free) {
        Some(rowid) => RelationKind::Table { rowid: rowid.into(), numbers: RowNumbers::Renumbered },
        // Columns have taken all names of the number.
        None => RelationKind::WithoutRowid,
    }
}

/// Looks for the keyword in the statement that made a table, outside of names, texts and comments.
fn is_autoincrement(sql: &str) -> bool {
    let mut words = String::new();
    let mut rest = sql;
    while let Some(first) = rest.chars().next() {
        let end = match first {
            '"' | '\'' | '`' => rest[1..].find(first).map(|at| at + 2),
            '[' => rest.find(']').map(|at| at + 1),
            '-' if rest.starts_with("--") => rest.find('\n'),
            '/' if rest.starts_with("/*") => rest[2..].find("*/").map(|at| at + 4),
            _ => {
                words.push(first.to_ascii_uppercase());
                rest = &rest[first.len_utf8()..];
                continue;
            }
        };
        words.push(' ');
        rest = end.map_or("", |end| &rest[end..]);
    }
    words.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == "AUTOINCREMENT")
}

/// Quotes a name.
pub fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Quotes a text.
pub fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sqlx::ConnectOptions;
    use sqlx::sqlite::SqliteConnectOptions;

    #[tokio::test]
    async fn the_number_of_a_table_is_found_as_sqlite_gives_it_out() {
        let mut connection = SqliteConnectOptions::new().in_memory(true).connect().await.expect("a database");
        let table = |rowid: &str, numbers| RelationKind::Table { rowid: rowid.into(), numbers };
        for (sql, kind) in [
            (
                "CREATE TABLE t (\"n\"\"o\" INTEGER PRIMARY KEY /* */ AUTOINCREMENT)",
                table("\"n\"\"o\"", RowNumbers::Autoincrement),
            ),
            (
                "CREATE TABLE t (n integer, x text, primary key (n autoincrement))",
                table("\"n\"", RowNumbers::Autoincrement),
            ),
            (
                "CREATE TABLE t (n INTEGER PRIMARY KEY, \"autoincrement\" /* AUTOINCREMENT */)",
                table("\"n\"", RowNumbers::Reused),
            ),
            ("CREATE TABLE t (n INT PRIMARY KEY)", table("rowid", RowNumbers::Renumbered)),
            ("CREATE TABLE t (n INTEGER PRIMARY KEY DESC)", table("rowid", RowNumbers::Renumbered)),
            ("CREATE TABLE t (rowid TEXT, a, b, PRIMARY KEY (a, b))", table("_rowid_", RowNumbers::Renumbered)),
            ("CREATE TABLE t (n INTEGER PRIMARY KEY) WITHOUT ROWID", RelationKind::WithoutRowid),
            ("CREATE VIEW t AS SELECT 1 AS n", RelationKind::View),
            ("CREATE VIRTUAL TABLE t USING fts5(n)", RelationKind::Virtual),
        ] {
            let all = format!("{sql};");
            sqlx::raw_sql(sqlx::AssertSqlSafe(all)).execute(&mut connection).await.expect(sql);
            let found = read_relation(&mut connection, "T").await.expect("an answer").expect("a table");
            assert_eq!(found.kind, kind, "{sql}");
            let what = if kind == RelationKind::View { "VIEW" } else { "TABLE" };
            sqlx::raw_sql(sqlx::AssertSqlSafe(format!("DROP {what} t"))).execute(&mut connection).await.expect("gone");
        }
    }
}
