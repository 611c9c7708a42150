//! The settings that are in effect, which a reload changes key by key, as operators are shown them.

use super::Settings;
use std::sync::{Arc, Mutex, PoisonError};
use toml::{Table, Value};

/// The settings that are in effect, with secrets masked; cheap to clone.
#[derive(Clone)]
pub struct Effective(Arc<Mutex<Table>>);

impl Effective {
    pub fn new(settings: &Settings) -> Self {
        Self(Arc::new(Mutex::new(table(settings))))
    }

    /// Takes over the values of these keys, such as `http.cors.origins`.
    pub fn take(&self, keys: &[String], from: &Settings) {
        let from = table(from);
        let mut running = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for key in keys {
            take_value(&mut running, &from, key);
        }
    }

    /// Writes them as TOML, as a settings file has them.
    pub fn to_toml(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).to_string()
    }
}

/// The settings as a table. Every value came from TOML or is a default that a test writes, so there is always one.
fn table(settings: &Settings) -> Table {
    Table::try_from(settings).unwrap_or_default()
}

/// A key that only one of them has is one that the other leaves out, such as an empty list of addresses.
fn take_value(to: &mut Table, from: &Table, key: &str) {
    let Some((group, rest)) = key.split_once('.') else {
        match from.get(key) {
            Some(value) => drop(to.insert(key.into(), value.clone())),
            None => drop(to.remove(key)),
        }
        return;
    };
    let empty = Table::new();
    let from = from.get(group).and_then(Value::as_table).unwrap_or(&empty);
    if let Some(to) = to.entry(group).or_insert_with(|| Table::new().into()).as_table_mut() {
        take_value(to, from, rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reload_changes_just_the_keys_that_it_names_and_secrets_stay_masked() {
        let read = |text: &str| Settings::from_toml(text).expect("settings");
        let first = read("[http]\nmax_connections = 1\n[ingest]\nenabled = true\ntoken = \"hunter2\"\n");
        let second =
            read("[http]\nmax_connections = 2\ncors.origins = [\"https://a.example\"]\n[stream]\nheartbeat = \"7s\"\n");
        let effective = Effective::new(&first);
        assert_eq!(effective.to_toml().parse::<Table>(), first.to_toml().parse::<Table>());
        assert!(!effective.to_toml().contains("hunter2"));
        effective.take(&["http.max_connections".into(), "http.cors.origins".into()], &second);
        let shown = read(&effective.to_toml());
        assert_eq!(shown.http.max_connections, 2);
        assert_eq!(shown.http.cors.origins, second.http.cors.origins);
        assert_eq!(shown.stream.heartbeat, first.stream.heartbeat);
    }
}
