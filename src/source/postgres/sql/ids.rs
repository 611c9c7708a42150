//! Conditions on a column of ids, which may be of any type.

use super::literal;
use std::borrow::Cow;

/// A column of job or event ids. Its type decides how an id is spelled and compared.
#[derive(Clone, Debug)]
pub struct IdColumn {
    /// The column with its row: `e."id"`.
    column: String,
    kind: String,
    is_enum: bool,
}

impl IdColumn {
    pub fn new(column: String, kind: String) -> Self {
        Self { column, kind, is_enum: false }
    }

    /// The same column, whose type is an enum: only a text that is one of its labels can be cast to it.
    pub fn of_enum(self) -> Self {
        Self { is_enum: true, ..self }
    }

    pub fn column(&self) -> &str {
        &self.column
    }

    /// Expression: the value as a text, spelled as [`IdColumn::canonical`] does.
    pub fn text(&self) -> String {
        match &*self.kind {
            "numeric" => format!("trim_scale({})::text", self.column),
            "citext" => format!("lower({}::text)", self.column),
            _ => format!("{}::text", self.column),
        }
    }

    /// Returns an id as the database spells it, or `None` for a text that is no value of the column's type.
    pub fn canonical<'a>(&self, id: &'a str) -> Option<Cow<'a, str>> {
        match &*self.kind {
            "uuid" => uuid::Uuid::try_parse(id).ok().map(|uuid| uuid.to_string().into()),
            "bigint" => id.parse::<i64>().ok().map(|number| number.to_string().into()),
            "integer" => id.parse::<i32>().ok().map(|number| number.to_string().into()),
            "smallint" => id.parse::<i16>().ok().map(|number| number.to_string().into()),
            "numeric" => is_decimal(id).then(|| shortest_decimal(id).into()),
            // Spaces at the end do not count in this type, and upper case does not in that one.
            "bpchar" => Some(id.trim_end_matches(' ').into()).filter(|_| !id.contains('\0')),
            "citext" => Some(id.to_lowercase().into()).filter(|_| !id.contains('\0')),
            _ => Some(id.into()).filter(|_| !id.contains('\0')),
        }
    }

    /// Condition: the column has this value.
    pub fn equals(&self, id: &str) -> String {
        self.equals_any([id])
    }

    /// Condition: the column has one of these values.
    pub fn equals_any<'a>(&self, ids: impl IntoIterator<Item = &'a str>) -> String {
        let list: Vec<String> = ids.into_iter().filter_map(|id| self.canonical(id)).map(|id| literal(&id)).collect();
        let (column, kind) = self.compared();
        match &list[..] {
            [] => "false".into(),
            [one] if self.is_enum => self.equals_label(&format!("= {one}::text")),
            many if self.is_enum => {
                let labels = self.labels(&format!("= ANY (ARRAY[{}]::text[])", many.join(",")));
                format!("{column} = ANY (ARRAY({labels}))")
            }
            [one] => format!("{column} = {one}::{kind}"),
            many => format!("{column} = ANY (ARRAY[{}]::{kind}[])", many.join(",")),
        }
    }

    /// Condition: the column has the value of a text expression, which is spelled as [`IdColumn::canonical`] does.
    pub fn equals_expression(&self, text: &str) -> String {
        if self.is_enum {
            return self.equals_label(&format!("= {text}"));
        }
        let (column, kind) = self.compared();
        format!("{column} = {text}::{kind}")
    }

    fn equals_label(&self, condition: &str) -> String {
        format!("{} = ({})", self.column, self.labels(condition))
    }

    /// Selects the values of the enum whose label meets a condition.
    fn labels(&self, condition: &str) -> String {
        let kind = &self.kind;
        format!(
            "SELECT enumlabel::text::{kind} FROM pg_enum WHERE enumtypid = {}::regtype AND enumlabel::text {condition}",
            literal(kind)
        )
    }

    /// The column as it is compared, and in which type.
    fn compared(&self) -> (String, &str) {
        match &*self.kind {
            "uuid" | "bigint" | "integer" | "smallint" | "numeric" | "text" | "character varying" | "bpchar"
            | "citext" => (self.column.clone(), &*self.kind),
            _ if self.is_enum => (self.column.clone(), &*self.kind),
            // Any other type is compared as text.
            _ => (format!("{}::text", self.column), "text"),
        }
    }

    /// An id as a value of the column.
    pub fn value(&self, id: &str) -> String {
        format!("{}::{}", literal(self.canonical(id).as_deref().unwrap_or(id)), self.kind)
    }
}

/// Returns true for a number such as `-12.5`, in digits.
fn is_decimal(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let is_digits =
        |text: &str| !text.is_empty() && text.len() <= 131 && text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits(whole) && is_digits(part)
}

/// Returns a number without the zeros that do not count: `7` for `07.00`.
fn shortest_decimal(digits: &str) -> String {
    let (sign, digits) = digits.strip_prefix('-').map_or(("", digits), |digits| ("-", digits));
    let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
    let (whole, part) = (whole.trim_start_matches('0'), part.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    match (whole, part) {
        ("0", "") => "0".into(),
        (whole, "") => format!("{sign}{whole}"),
        (whole, part) => format!("{sign}{whole}.{part}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_no_label_of_an_enum_is_compared_without_an_error_and_by_the_index() {
        let ids = IdColumn::new("e.id".into(), "app.stage".into()).of_enum();
        let label = "SELECT enumlabel::text::app.stage FROM pg_enum WHERE enumtypid = E'app.stage'::regtype AND enumlabel::text";
        assert_eq!(ids.equals("a"), format!("e.id = ({label} = E'a'::text)"));
        assert_eq!(ids.equals_any(["a", "b"]), format!("e.id = ANY (ARRAY({label} = ANY (ARRAY[E'a',E'b']::text[])))"));
        assert_eq!(ids.equals_expression("watched.job_id"), format!("e.id = ({label} = watched.job_id)"));
    }

    #[test]
    fn a_number_has_one_spelling_whatever_zeros_it_is_written_with() {
        let ids = IdColumn::new("e.id".into(), "numeric".into());
        for (written, spelled) in [("7.00", "7"), ("07", "7"), ("-0.50", "-0.5"), ("-0", "0"), ("100", "100")] {
            assert_eq!(ids.canonical(written).as_deref(), Some(spelled), "{written}");
        }
        for no_number in ["", "x", "1e3", "1.", ".5", "+7", "NaN"] {
            assert_eq!(ids.canonical(no_number), None, "{no_number}");
        }
    }
}
