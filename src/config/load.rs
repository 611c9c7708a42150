//! Reads the settings file and the environment variables, lays them over the defaults, and finds everything that is
//! wrong at once, each with its key and its place.
//!
//! `config` does the layering. The file is parsed here, by `toml`, because `config` keeps the file's name with a value
//! but not the line.

use super::Settings;
use config::{Config, ConfigError, File, FileFormat, Map, Value, ValueKind};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Prefix of the variables, and the mark between the parts of a key: `JOBCAST_SOURCE__SQLITE__PATH` is
/// `source.sqlite.path`. Names without the mark are options of the command line, such as `JOBCAST_CONFIG`.
const VARIABLE_PREFIX: &str = "JOBCAST_";
const VARIABLE_SEPARATOR: &str = "__";

/// Settings of type `Secret`. Each may also come from a file, which `JOBCAST_…_FILE` names, and is not repeated in
/// errors.
const SECRETS: &[&str] = &[
    "auth.jwt.secret",
    "auth.jwt.jwks_url",
    "auth.forward.url",
    "traces.endpoint",
    "ingest.token",
    "source.postgres.url",
    "source.redis.url",
];

/// Settings that are a map with keys of the operator's own. In a variable: `20=info,30=warning`.
const MAPS: &[&str] = &["source.postgres.types", "source.redis.types", "source.sqlite.types"];

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(SettingError::to_string).collect::<Vec<_>>().join("\n"))]
pub struct ConfigErrors(Vec<SettingError>);

/// One thing that is wrong with the settings. An origin is a line of the file or the name of a variable.
#[derive(Debug, thiserror::Error)]
enum SettingError {
    #[error("cannot read {}: {cause} (give the settings file by --config)", path.display())]
    UnreadableFile { path: PathBuf, cause: io::Error },
    #[error("{origin} is no valid TOML: {cause}")]
    Syntax { origin: String, cause: String },
    #[error("{key}, in {origin}: cannot read {file}: {cause}")]
    UnreadableSecret { key: String, origin: String, file: String, cause: io::Error },
    #[error("unknown key {key}, in {origin}{}", meant.as_ref().map(|key| format!(" (did you mean {key}?)")).unwrap_or_default())]
    UnknownKey { key: String, origin: String, meant: Option<String> },
    #[error("{key}, in {origin}: is a group of settings, not a value")]
    NotAValue { key: String, origin: String },
    #[error("{key}, in {origin}: {problem}")]
    Invalid { key: String, origin: String, problem: String },
    #[error("the defaults are no settings: {0}")]
    Defaults(#[from] ConfigError),
}

/// One value that was given. Its origin is kept in the value.
#[derive(Clone, Debug)]
struct Override {
    key: String,
    value: Value,
}

impl Override {
    fn new(key: String, kind: ValueKind, origin: &str) -> Self {
        Self { key, value: Value::new(Some(&origin.to_string()), kind) }
    }

    fn origin(&self) -> &str {
        self.value.origin().unwrap_or_default()
    }
}

/// Values of one origin, as a source for `config`.
#[derive(Clone, Debug, Default)]
struct Layer(Vec<Override>);

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<Map<String, Value>, ConfigError> {
        Ok(self.0.iter().map(|one| (one.key.clone(), one.value.clone())).collect())
    }
}

/// The value of every key, secrets too, to find out which were changed. It is never printed.
#[derive(Clone, Default)]
pub struct Values(BTreeMap<String, ValueKind>);

impl Values {
    /// Returns the keys whose values differ.
    pub fn changed(&self, other: &Self) -> Vec<String> {
        let keys: BTreeSet<&String> = self.0.keys().chain(other.0.keys()).collect();
        keys.into_iter().filter(|key| self.0.get(*key) != other.0.get(*key)).cloned().collect()
    }

    /// Returns the value of a key that is a text.
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key)? {
            ValueKind::String(text) => Some(text),
            _ => None,
        }
    }

    /// Takes over the value of one key.
    pub fn take(&mut self, key: &str, from: &Self) {
        if let Some(value) = from.0.get(key) {
            self.0.insert(key.to_string(), value.clone());
        }
    }
}

impl Settings {
    /// Reads `file`, if there is one, and lays the variables over it.
    pub fn load(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        Self::load_with_values(file, variables).map(|(settings, _)| settings)
    }

    /// Reads the text of a file.
    pub fn from_toml(text: &str) -> Result<Self, ConfigErrors> {
        Self::build(parse(text, "the text"), []).map(|(settings, _)| settings)
    }

    /// As [`Settings::load`], with the values by key.
    pub fn load_with_values(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<(Self, Values), ConfigErrors> {
        Self::build(file.map(read_file).transpose().map(Option::unwrap_or_default), variables)
    }

    /// Reads where the admin listener is, for those who only ask there. The rules between settings are left to the daemon,
    /// which may have been started with flags that satisfy them.
    pub fn admin_listen(
        file: Option<&Path>,
        variables: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<SocketAddr, ConfigErrors> {
        let file = file.map(read_file).transpose().map(Option::unwrap_or_default);
        let Draft { settings, errors, .. } = Draft::read(file, variables)?;
        if errors.is_empty() { Ok(settings.admin.listen) } else { Err(ConfigErrors(errors)) }
    }

    /// Takes the addresses of sockets that are open already for those in the settings. The rules for a listener hold for
    /// the address that it really has.
    pub fn listening_on(mut self, http: Option<SocketAddr>, admin: Option<SocketAddr>) -> Result<Self, ConfigErrors> {
        self.http.listen = http.unwrap_or(self.http.listen);
        self.admin.listen = admin.unwrap_or(self.admin.listen);
        let invalid = |(key, problem): (&str, String)| {
            let origin = "the sockets from the service manager".to_string();
            SettingError::Invalid { key: key.to_string(), origin, problem }
        };
        let errors: Vec<SettingError> = self.validate().into_iter().map(invalid).collect();
        if errors.is_empty() { Ok(self) } else { Err(ConfigErrors(errors)) }
    }

    /// The files that the variables name, which are read again with the settings.
    pub fn secret_files(variables: impl IntoIterator<Item = (String, OsString)>) -> Vec<PathBuf> {
        let is_file = |name: &str| secret_of(name).is_some();
        variables.into_iter().filter(|(name, _)| is_file(name)).map(|(_, path)| path.into()).collect()
    }

    fn build(
        file: Result<Layer, SettingError>,
        variables: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<(Self, Values), ConfigErrors> {
        let Draft { settings, values, layers: [from_file, from_variables], mut errors } = Draft::read(file, variables)?;
        for (key, problem) in settings.validate() {
            let given = from_variables.0.iter().chain(&from_file.0).find(|one| one.key == key);
            let origin = given.map_or("the defaults", Override::origin).to_string();
            errors.push(SettingError::Invalid { key: key.to_string(), origin, problem });
        }
        if errors.is_empty() { Ok((settings, values)) } else { Err(ConfigErrors(errors)) }
    }
}

/// Settings of which each value is good by itself, but for those that are in `errors`.
struct Draft {
    settings: Settings,
    values: Values,
    /// The file's and the variables'.
    layers: [Layer; 2],
    errors: Vec<SettingError>,
}

impl Draft {
    fn read(
        file: Result<Layer, SettingError>,
        variables: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<Self, ConfigErrors> {
        let defaults = Defaults::new().map_err(|error| ConfigErrors(vec![error.into()]))?;
        let mut errors = Vec::new();
        let mut from_file = file.unwrap_or_else(|error| {
            errors.push(error);
            Layer::default()
        });
        let mut from_variables = read_variables(variables, &mut errors);
        defaults.keep_valid(&mut from_file, &mut errors);
        defaults.keep_valid(&mut from_variables, &mut errors);
        let layers = [from_file, from_variables];
        let (settings, values) = defaults
            .lay_over(layers.clone())
            .and_then(|all| Ok((all.clone().try_deserialize::<Settings>()?, Values(flat(&all)))))
            .map_err(|error| ConfigErrors(vec![error.into()]))?;
        Ok(Self { settings, values, layers, errors })
    }
}

/// Every key there is, with its default.
struct Defaults(Config);

impl Defaults {
    fn new() -> Result<Self, ConfigError> {
        let file = File::from_str(&Settings::default().to_toml(), FileFormat::Toml);
        Ok(Self(Config::builder().add_source(file).build()?))
    }

    /// The settings that result from these layers, the last on top.
    fn with(&self, layers: impl IntoIterator<Item = Layer>) -> Result<Settings, ConfigError> {
        self.lay_over(layers)?.try_deserialize()
    }

    fn lay_over(&self, layers: impl IntoIterator<Item = Layer>) -> Result<Config, ConfigError> {
        let builder = Config::builder().add_source(self.0.clone());
        layers.into_iter().fold(builder, |builder, layer| builder.add_source(layer)).build()
    }

    /// Removes values that cannot be taken from a layer and notes why, so that the others can still be looked at.
    fn keep_valid(&self, layer: &mut Layer, errors: &mut Vec<SettingError>) {
        for one in &mut layer.0 {
            self.split_list(one);
            split_map(one);
        }
        // To try one value costs as much as to try all of them: they are tried one by one only where something is wrong.
        let are_settings = layer.0.iter().all(|one| self.setting(one).is_ok());
        if are_settings && self.with([layer.clone()]).is_ok() {
            return;
        }
        layer.0.retain(|one| self.validate_value(one).map_err(|error| errors.push(error)).is_ok());
    }

    /// Splits a text at its commas where a list is wanted: variables cannot hold lists.
    fn split_list(&self, one: &mut Override) {
        let is_list = matches!(self.0.get::<Value>(&one.key).map(|known| known.kind), Ok(ValueKind::Array(_)));
        let ValueKind::String(text) = &one.value.kind else { return };
        if is_list {
            let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
            one.value.kind = items.map(str::to_string).collect::<Vec<_>>().into();
        }
    }

    /// Fails if there is no setting with this key.
    fn setting(&self, one: &Override) -> Result<(), SettingError> {
        let (key, origin) = (one.key.clone(), one.origin().to_string());
        match self.0.get::<Value>(&key).map(|known| known.kind) {
            Err(_) => Err(SettingError::UnknownKey { meant: self.nearest(&key), key, origin }),
            Ok(ValueKind::Table(_)) if !MAPS.contains(&&*key) => Err(SettingError::NotAValue { key, origin }),
            Ok(_) => Ok(()),
        }
    }

    /// Tries this one value alone over the defaults.
    fn validate_value(&self, one: &Override) -> Result<(), SettingError> {
        self.setting(one)?;
        let tried = self.with([Layer(vec![one.clone()])]);
        tried.map(|_| ()).map_err(|error| SettingError::Invalid {
            key: one.key.clone(),
            origin: one.origin().to_string(),
            problem: if SECRETS.contains(&&*one.key) { "wrong type".into() } else { problem(error) },
        })
    }

    /// Returns the known key with the same last part, which was probably meant.
    fn nearest(&self, key: &str) -> Option<String> {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_string();
        self.keys().into_iter().find(|known| last(known) == last(key))
    }

    fn keys(&self) -> Vec<String> {
        flat(&self.0).into_keys().collect()
    }
}

/// Returns every value by its dotted key.
fn flat(all: &Config) -> BTreeMap<String, ValueKind> {
    let mut values = BTreeMap::new();
    let mut groups = vec![(String::new(), all.cache.clone())];
    while let Some((key, value)) = groups.pop() {
        match value.kind {
            ValueKind::Table(table) if !MAPS.contains(&&*key) => {
                groups.extend(table.into_iter().map(|(name, value)| (join(&key, &name), value)));
            }
            // Without the origins of its items, which make equal lists and maps differ.
            ValueKind::Table(table) => {
                let items: Map<String, Value> =
                    table.into_iter().map(|(name, value)| (name, Value::new(None, value.kind))).collect();
                values.insert(key, ValueKind::Table(items));
            }
            ValueKind::Array(items) => {
                let items: Vec<Value> = items.into_iter().map(|item| Value::new(None, item.kind)).collect();
                values.insert(key, ValueKind::Array(items));
            }
            kind => {
                values.insert(key, kind);
            }
        }
    }
    values
}

/// Splits the text of a variable into a map where one is wanted. A part without `=` is left for the error.
fn split_map(one: &mut Override) {
    let ValueKind::String(text) = &one.value.kind else { return };
    if MAPS.contains(&&*one.key) {
        let pairs = text.split(',').map(|pair| pair.split_once('='));
        let pairs: Option<Map<String, Value>> =
            pairs.map(|pair| pair.map(|(key, value)| (key.trim().to_string(), Value::from(value.trim())))).collect();
        if let Some(pairs) = pairs {
            one.value.kind = ValueKind::Table(pairs);
        }
    }
}

/// The message of `config` without the key and the origin, which stand before it.
fn problem(error: ConfigError) -> String {
    match error {
        ConfigError::At { error, .. } => problem(*error),
        ConfigError::Type { unexpected, expected, .. } => format!("invalid type: {unexpected}, expected {expected}"),
        other => other.to_string(),
    }
}

fn join(group: &str, name: &str) -> String {
    if group.is_empty() { name.to_string() } else { format!("{group}.{name}") }
}

fn read_file(path: &Path) -> Result<Layer, SettingError> {
    let text = std::fs::read_to_string(path)
        .map_err(|cause| SettingError::UnreadableFile { path: path.to_path_buf(), cause })?;
    parse(&text, &path.display().to_string())
}

/// Reads TOML into one value for each key; `name` is the file's name in errors.
fn parse(text: &str, name: &str) -> Result<Layer, SettingError> {
    let origin_of = |byte: usize| format!("{name}:{}", text[..byte].matches('\n').count() + 1);
    let table = DeTable::parse(text).map_err(|error| {
        let origin = error.span().map_or(name.to_string(), |span| origin_of(span.start));
        SettingError::Syntax { origin, cause: error.message().to_string() }
    })?;
    let mut values = Vec::new();
    flatten("", table.get_ref(), &origin_of, &mut values)?;
    Ok(Layer(values))
}

/// Collects the values of a table and of the tables inside it.
fn flatten(
    group: &str,
    table: &DeTable<'_>,
    origin_of: &impl Fn(usize) -> String,
    values: &mut Vec<Override>,
) -> Result<(), SettingError> {
    for (name, value) in table {
        let (key, origin) = (join(group, name.get_ref()), origin_of(name.span().start));
        match value.get_ref() {
            DeValue::Table(table) if !MAPS.contains(&&*key) => flatten(&key, table, origin_of, values)?,
            other => {
                let kind = convert(other).ok_or_else(|| SettingError::Invalid {
                    key: key.clone(),
                    origin: origin.clone(),
                    problem: format!("a {} cannot be a setting", other.type_str()),
                })?;
                values.push(Override::new(key, kind, &origin));
            }
        }
    }
    Ok(())
}

/// Converts a value of the file; `None` if no setting can have it.
fn convert(value: &DeValue<'_>) -> Option<ValueKind> {
    Some(match value {
        DeValue::String(text) => ValueKind::String(text.to_string()),
        DeValue::Integer(number) => {
            let digits = number.as_str().replace('_', "");
            ValueKind::I64(i64::from_str_radix(&digits, number.radix()).ok()?)
        }
        DeValue::Float(number) => ValueKind::Float(number.as_str().replace('_', "").parse().ok()?),
        DeValue::Boolean(flag) => ValueKind::Boolean(*flag),
        DeValue::Array(items) => {
            let items: Option<Vec<Value>> =
                items.iter().map(Spanned::get_ref).map(|item| Some(Value::new(None, convert(item)?))).collect();
            ValueKind::Array(items?)
        }
        DeValue::Table(table) => {
            let pairs: Option<Map<String, Value>> = table
                .iter()
                .map(|(name, value)| Some((name.get_ref().to_string(), Value::new(None, convert(value.get_ref())?))))
                .collect();
            ValueKind::Table(pairs?)
        }
        DeValue::Datetime(_) => return None,
    })
}

/// Returns the key that a variable stands for, if it is one of ours.
fn key_of(name: &str) -> Option<String> {
    let path = name.strip_prefix(VARIABLE_PREFIX).filter(|path| path.contains(VARIABLE_SEPARATOR))?;
    Some(path.to_lowercase().replace(VARIABLE_SEPARATOR, "."))
}

/// Returns the key of the secret whose file a variable names.
fn secret_of(name: &str) -> Option<String> {
    let key = key_of(name)?;
    key.strip_suffix("_file").filter(|key| SECRETS.contains(key)).map(str::to_string)
}

fn read_variables(variables: impl IntoIterator<Item = (String, OsString)>, errors: &mut Vec<SettingError>) -> Layer {
    let mut values = Vec::new();
    for (name, text) in variables {
        let Some(key) = key_of(&name) else { continue };
        let Ok(text) = text.into_string() else {
            let problem = "the variable's value is not UTF-8".to_string();
            errors.push(SettingError::Invalid { key, origin: name, problem });
            continue;
        };
        let (key, text) = match secret_of(&name) {
            None => (key, text),
            Some(key) => match std::fs::read_to_string(&text) {
                Ok(secret) => (key, secret.trim_end_matches(['\n', '\r']).to_string()),
                Err(cause) => {
                    errors.push(SettingError::UnreadableSecret { key, origin: name, file: text, cause });
                    continue;
                }
            },
        };
        values.push(Override::new(key, ValueKind::String(text), &name));
    }
    values.sort_by(|a, b| a.key.cmp(&b.key));
    Layer(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn load(text: &str, variables: &[(&str, &str)]) -> Result<Settings, String> {
        let file = tempfile::Builder::new().suffix(".toml").tempfile().map_err(|e| e.to_string())?;
        std::fs::write(file.path(), text).map_err(|e| e.to_string())?;
        let variables = variables.iter().map(|(name, value)| (name.to_string(), value.into()));
        Settings::load(Some(file.path()), variables).map_err(|e| e.to_string())
    }

    #[test]
    fn the_file_in_the_repository_holds_every_key_with_its_default() {
        let text = include_str!("../../config/jobcast.toml");
        let mut shown: Vec<String> =
            parse(text, "jobcast.toml").expect("TOML").0.into_iter().map(|one| one.key).collect();
        shown.sort();
        assert_eq!(shown, Defaults::new().expect("defaults").keys());
        let read = load(text, &[]).expect("valid");
        assert_eq!(read.to_toml(), Settings::default().to_toml());
    }

    #[test]
    fn variables_lie_over_the_file_and_lists_are_comma_separated() {
        let read = load(
            "[stream]\nretry = \"5s\"\nheartbeat = \"20s\"\n",
            &[
                ("JOBCAST_STREAM__RETRY", "7s"),
                ("JOBCAST_HTTP__CORS__ORIGINS", "https://a.example, https://b.example"),
                ("JOBCAST_HUB__RING_EVENTS", "5"),
                ("JOBCAST_INGEST__ENABLED", "false"),
            ],
        )
        .expect("valid");
        assert_eq!(read.stream.retry, Duration::from_secs(7));
        assert_eq!(read.stream.heartbeat, Duration::from_secs(20));
        assert_eq!(read.http.cors.origins, ["https://a.example", "https://b.example"]);
        assert_eq!(read.hub.ring_events, 5);
        assert!(!read.ingest_enabled());
    }

    #[test]
    fn a_map_has_keys_of_the_operators_own_in_the_file_and_in_a_variable() {
        let wanted = |read: Settings| read.source.postgres.types.into_iter().collect::<Vec<_>>();
        let types = [("20".to_string(), "info".to_string()), ("LOG.line".to_string(), "step.output".to_string())];
        let text = "[source.postgres]\ntypes = { 20 = \"info\", \"LOG.line\" = \"step.output\" }\n";
        assert_eq!(wanted(load(text, &[]).expect("an inline table")), types);
        let text = "[source.postgres.types]\n20 = \"info\"\n\"LOG.line\" = \"step.output\"\n";
        assert_eq!(wanted(load(text, &[]).expect("a table")), types);
        let variable = ("JOBCAST_SOURCE__POSTGRES__TYPES", "20=info, LOG.line = step.output");
        assert_eq!(wanted(load("", &[variable]).expect("a variable")), types);
        let why = load("", &[("JOBCAST_SOURCE__POSTGRES__TYPES", "info")]).expect_err("no map");
        assert!(why.contains("source.postgres.types, in JOBCAST_SOURCE__POSTGRES__TYPES"), "{why}");
    }

    #[test]
    fn every_problem_is_said_at_once_with_its_key_and_its_line() {
        let text = "[http]\nlisten = \"nowhere\"\n\n[stream]\nretry = \"0s\"\nheartbeet = \"1s\"\n[hub]\nring_bytes = \"much\"\n";
        let why = load(text, &[("JOBCAST_HUB__RING_EVENTS", "many")]).expect_err("wrong");
        for part in [
            "http.listen, in ",
            ".toml:2: ",
            "stream.retry, in ",
            ".toml:5: must be longer",
            "unknown key stream.heartbeet, in ",
            ".toml:6",
            "hub.ring_bytes, in ",
            "\"much\" is no size",
            "hub.ring_events, in JOBCAST_HUB__RING_EVENTS: ",
        ] {
            assert!(why.contains(part), "{part:?} is missing in:\n{why}");
        }
    }

    #[test]
    fn a_problem_has_the_line_of_its_key_however_the_toml_is_written() {
        let text = "http = { listen = \"127.0.0.1:0\",\n  max_body = \"big\" }\nhub.ring_events = -1\n\n# a comment\n[source]\n\
                    sqlite.path = 7\n\"poll_interval\" = \"often\"\n[source.redis]\nkeys = [\n1]\n";
        let why = load(text, &[]).expect_err("wrong");
        for part in [
            "http.max_body, in ",
            ".toml:2: \"big\"",
            "hub.ring_events, in ",
            ".toml:3: invalid",
            "source.poll_interval, in ",
            ".toml:8: \"often\"",
            "unknown key source.redis.keys, in ",
            ".toml:10",
        ] {
            assert!(why.contains(part), "{part:?} is missing in:\n{why}");
        }
        let why = load("[http]\nlisten = \n", &[]).expect_err("no TOML");
        assert!(why.contains(".toml:2 is no valid TOML: "), "{why}");
    }

    #[test]
    fn a_proxy_may_be_an_address_or_a_network() {
        let text = "[http]\ntrusted_proxies = [\"10.0.0.0/8\", \"::1\"]\n";
        let read = load(text, &[]).expect("valid");
        assert_eq!(read.http.trusted_proxies, ["10.0.0.0/8".parse().expect("ten"), "::1".parse().expect("one")]);
        assert!(read.to_toml().contains("trusted_proxies = [\"10.0.0.0/8\", \"::1\"]"), "{}", read.to_toml());
        let why = load("[http]\ntrusted_proxies = [\"proxy\"]\n", &[]).expect_err("no network");
        assert!(why.contains(".toml:2: \"proxy\" is no address or network"), "{why}");
    }

    #[cfg(unix)]
    #[test]
    fn a_variable_that_is_not_utf_8_is_said_and_not_left_out() {
        use std::os::unix::ffi::OsStringExt;
        let variable = ("JOBCAST_INGEST__TOKEN".to_string(), OsString::from_vec(b"hunter\xff".to_vec()));
        let why = Settings::load(None, [variable]).expect_err("not UTF-8").to_string();
        assert!(why.contains("ingest.token, in JOBCAST_INGEST__TOKEN: ") && !why.contains("hunter"), "{why}");
    }

    #[test]
    fn a_secret_is_never_printed() {
        let read = load("[ingest]\ntoken = \"hunter2\"\n", &[]).expect("valid");
        assert_eq!(read.ingest.token.get(), Some("hunter2"));
        assert!(!format!("{read:?}{}", read.to_toml()).contains("hunter2"));
        for key in Defaults::new().expect("defaults").keys() {
            let text = format!("{key} = \"redis://hunter2@h\"\n");
            let Ok(read) = load(&text, &[]) else { continue };
            let is_masked = !read.to_toml().contains("hunter2");
            assert_eq!(is_masked, SECRETS.contains(&&*key), "{key}");
        }
    }
}
