//! The query of a view as PostgreSQL prints it (`pg_get_viewdef`, pretty), taken apart as far as it has to be to hand on
//! the transaction of the events' rows.

use super::super::sql::quote;

/// One SELECT of a view; a view has several with UNION ALL.
struct Select<'a> {
    /// The place of FROM at the outermost level.
    from: usize,
    columns: Vec<(&'a str, &'a str)>,
    tables: Vec<Table<'a>>,
}

/// A table or view behind FROM, as it is written there.
struct Table<'a> {
    name: &'a str,
    alias: &'a str,
}

/// A query that hands on the transaction.
pub struct Extended {
    pub query: String,
    /// The tables and views, as the query names them, whose transaction it is.
    pub origins: Vec<String>,
}

/// Adds the column `xmin` to the query. `None` for one whose rows are no rows of a table: of groups, distinct ones, of
/// functions and subqueries. The events' table is the one that most of the `named` columns come from.
pub fn with_xmin(definition: &str, named: &[&str]) -> Option<Extended> {
    let (mut parts, mut origins) = (Vec::new(), Vec::new());
    for text in split_union(definition.trim().trim_end_matches(';'))? {
        let select = Select::parse(text)?;
        let table = select.events_table(named)?;
        let (columns, rest) = (text[..select.from].trim_end(), &text[select.from..]);
        parts.push(format!("{columns},\n    {}.xmin AS xmin\n   {rest}", table.alias));
        origins.push(table.name.to_string());
    }
    Some(Extended { query: parts.join("\nUNION ALL\n"), origins })
}

/// The tables or functions that a column of a view and its transaction come from, where they differ.
#[derive(Debug, PartialEq, Eq)]
pub struct ForeignOrigin {
    pub of_column: String,
    pub of_transaction: String,
}

/// Finds a column of the view whose rows are not those of the transaction.
pub fn foreign_origin(definition: &str, column: &str) -> Option<ForeignOrigin> {
    let selects = split_union(definition.trim().trim_end_matches(';'))?;
    selects.into_iter().filter_map(Select::parse).find_map(|select| {
        let (own, event) = (select.alias_of(column)?, select.alias_of("xmin")?);
        let name = |alias| select.tables.iter().find(|table| table.alias == alias).map(|table| table.name.to_string());
        (own != event).then(|| Some(ForeignOrigin { of_column: name(own)?, of_transaction: name(event)? }))?
    })
}

impl<'a> Select<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let words = outer_words(text);
        let at = |word: &str| words.iter().find(|(_, found)| found.eq_ignore_ascii_case(word)).map(|(at, _)| *at);
        let makes_rows = ["DISTINCT", "GROUP", "HAVING", "LIMIT", "OFFSET", "WITH", "INTERSECT", "EXCEPT", "UNION"];
        if makes_rows.iter().any(|word| at(word).is_some()) {
            return None;
        }
        let (select, from) = (at("SELECT")?, at("FROM")?);
        let columns = split_outer(&text[select + "SELECT".len()..from], ',').into_iter().map(column_of).collect();
        Some(Self { from, columns, tables: Self::tables(text, &words, from) })
    }

    /// The tables behind FROM and each JOIN or comma.
    fn tables(text: &'a str, words: &[(usize, &'a str)], from: usize) -> Vec<Table<'a>> {
        let mut tables = Vec::new();
        let mut is_next = false;
        for (number, (at, word)) in words.iter().enumerate().filter(|(_, (at, _))| *at >= from) {
            if std::mem::take(&mut is_next) && !word.eq_ignore_ascii_case("LATERAL") {
                let (name, more) = name_at(&text[*at..]);
                let alias = words.get(number + 1).map(|(at, word)| (*at, *word));
                let alias = alias.filter(|(at, word)| text[..*at].ends_with(' ') && !ends_table(word) && !more);
                let own = name.rsplit('.').next().unwrap_or(name);
                tables.push(Table { name, alias: alias.map_or(own, |(_, word)| word) });
            }
            is_next |= word.eq_ignore_ascii_case("FROM") || word.eq_ignore_ascii_case("JOIN");
        }
        tables
    }

    fn events_table(&self, named: &[&str]) -> Option<&Table<'a>> {
        let columns = |table: &&Table| {
            named.iter().filter(|name| self.alias_of(name).is_some_and(|alias| alias == table.alias)).count()
        };
        // The first of several with the same number.
        self.tables.iter().rev().max_by_key(columns)
    }

    /// The table's alias that a plain column is qualified with.
    fn alias_of(&self, column: &str) -> Option<&'a str> {
        let (expression, _) =
            self.columns.iter().find(|(_, name)| *name == column || *name == quote(column).as_str())?;
        let (alias, rest) = name_at(expression);
        (!rest).then(|| alias.rsplit_once('.').map(|(alias, _)| alias))?
    }
}

/// Splits an item of a SELECT list into expression and name.
fn column_of(item: &str) -> (&str, &str) {
    let item = item.trim();
    let words = outer_words(item);
    match &words[..] {
        [.., (at, word), (name_at, name)] if *word == "AS" => {
            (item[..*at].trim(), &item[*name_at..name_at + name.len()])
        }
        _ => (item, item.rsplit('.').next().unwrap_or(item)),
    }
}

/// The dotted name in the beginning of a text; true if the name is followed by more of the same expression.
fn name_at(text: &str) -> (&str, bool) {
    let mut is_quoted = false;
    let end = text.find(|c: char| {
        is_quoted ^= c == '"';
        !(is_quoted || c.is_alphanumeric() || matches!(c, '_' | '.' | '"' | '$'))
    });
    let end = end.unwrap_or(text.len());
    (&text[..end], text[end..].starts_with(['(', ':']) || end == 0)
}

fn ends_table(word: &str) -> bool {
    let words = [
        "JOIN",
        "LEFT",
        "RIGHT",
        "FULL",
        "INNER",
        "CROSS",
        "NATURAL",
        "ON",
        "USING",
        "WHERE",
        "ORDER",
        "FOR",
        "WINDOW",
        "TABLESAMPLE",
    ];
    words.iter().any(|end| word.eq_ignore_ascii_case(end))
}

fn split_union(query: &str) -> Option<Vec<&str>> {
    let words = outer_words(query);
    let (mut parts, mut begin) = (Vec::new(), 0);
    for (at, _) in words.iter().filter(|(_, word)| *word == "UNION") {
        let (all, _) = words.iter().find(|(next, word)| next > at && *word == "ALL")?;
        if !query[at + "UNION".len()..*all].trim().is_empty() {
            return None;
        }
        parts.push(&query[begin..*at]);
        begin = all + "ALL".len();
    }
    parts.push(&query[begin..]);
    Some(parts)
}

/// The words outside of parentheses and literals, with their places. A quoted or dotted name is one word.
fn outer_words(text: &str) -> Vec<(usize, &str)> {
    let mut words: Vec<(usize, &str)> = Vec::new();
    let (mut depth, mut quoted_by, mut word) = (0usize, None, None);
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        let is_inside = quoted_by == Some('\'') || depth > 0;
        let continues =
            !is_inside && (c.is_alphanumeric() || matches!(c, '_' | '.' | '"' | '$') || quoted_by == Some('"'));
        if continues && word.is_none() {
            word = Some(at);
        } else if !continues && let Some(begin) = word.take() {
            words.push((begin, &text[begin..at]));
        }
        match (quoted_by, c) {
            (None, '\'' | '"') => quoted_by = Some(c),
            (Some(quote), c) if quote == c => quoted_by = None,
            (None, '(') => depth += 1,
            (None, ')') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    words
}

/// Splits a text at a character outside of parentheses and literals.
fn split_outer(text: &str, separator: char) -> Vec<&str> {
    let (mut parts, mut begin, mut depth, mut quoted_by) = (Vec::new(), 0, 0i32, None);
    for (at, c) in text.char_indices() {
        match (quoted_by, c) {
            (None, '\'' | '"') => quoted_by = Some(c),
            (Some(quote), c) if quote == c => quoted_by = None,
            (None, '(') => depth += 1,
            (None, ')') => depth -= 1,
            (None, c) if c == separator && depth == 0 => {
                parts.push(&text[begin..at]);
                begin = at + c.len_utf8();
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMED: [&str; 4] = ["id", "job_id", "type", "timestamp"];

    #[test]
    fn the_transaction_is_that_of_the_table_that_most_columns_come_from() {
        let joined = " SELECT t.ext AS job_id,\n    e.id,\n    'x, FROM y'::text AS type,\n    e.ts AS \"timestamp\"\n   FROM tasks t\n     JOIN \"My raw\" e ON t.id = (e.job_id || ' FROM '::text)\n  WHERE e.id IS NOT NULL;";
        let extended = with_xmin(joined, &NAMED).expect("a query");
        assert!(
            extended.query.contains("e.ts AS \"timestamp\",\n    e.xmin AS xmin\n   FROM tasks t"),
            "{}",
            extended.query
        );
        assert_eq!(extended.origins, ["\"My raw\""]);
        let foreign = foreign_origin(&extended.query, "job_id");
        let expected = ForeignOrigin { of_column: "tasks".into(), of_transaction: "\"My raw\"".into() };
        assert_eq!(foreign, Some(expected));
        assert_eq!(foreign_origin(&extended.query, "id"), None);
    }

    #[test]
    fn each_part_of_a_union_hands_on_its_own() {
        let union = " SELECT raw.id,\n    raw.job_id\n   FROM app.raw\nUNION ALL\n SELECT tasks.id,\n    tasks.ext AS job_id\n   FROM tasks;";
        let extended = with_xmin(union, &NAMED).expect("a query");
        assert_eq!(extended.origins, ["app.raw", "tasks"]);
        assert!(extended.query.contains("raw.xmin AS xmin\n   FROM app.raw"), "{}", extended.query);
        assert!(extended.query.contains("tasks.xmin AS xmin\n   FROM tasks"), "{}", extended.query);
    }

    #[test]
    fn rows_that_are_no_rows_of_a_table_hand_on_nothing() {
        for query in [
            " SELECT DISTINCT raw.id\n   FROM raw;",
            " SELECT raw.id,\n    count(*) AS n\n   FROM raw\n  GROUP BY raw.id;",
            " SELECT raw.id\n   FROM raw\nUNION\n SELECT raw.id\n   FROM raw;",
            " VALUES (1)",
        ] {
            assert!(with_xmin(query, &NAMED).is_none(), "{query}");
        }
    }
}
