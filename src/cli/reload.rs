//! Reloading: the settings are read again after SIGHUP, or when one of their files has changed, and the parts that can
//! take new ones do. A part that cannot says nothing: its keys are reported as waiting for a restart.

pub mod parts;

use super::{ConfigFile, meters};
use crate::config::{ConfigErrors, Effective, Settings, Values};
use crate::shutdown::{Phase, ReloadSignal, ShutdownWatch};
use crate::systemd;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Interval between two looks whether a file has changed. A look sees also what no notification tells of: files on a
/// network, and the links that Kubernetes changes.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time in which a file that has changed must not change again before it is read.
const REST: Duration = Duration::from_millis(250);

/// The change that a part will make once all parts have agreed.
pub type Apply = Box<dyn FnOnce() + Send>;

/// Checks new settings, and returns the change that they ask for, or the reason why they cannot be taken.
type Prepare = Box<dyn Fn(&Settings) -> Result<Apply, String> + Send + Sync>;

/// A part that takes new settings while it runs.
pub struct Reloadable {
    /// The keys that it takes, each a setting or a group of them.
    keys: &'static [&'static str],
    prepare: Prepare,
}

impl Reloadable {
    /// A part that takes these keys. `prepare` is called for every reload, also where its keys are unchanged, since a file that
    /// they name may have changed. It changes nothing yet. Where it fails, nobody takes anything of the new settings.
    pub fn new<F>(keys: &'static [&'static str], prepare: F) -> Self
    where
        F: Fn(&Settings) -> Result<Apply, String> + Send + Sync + 'static,
    {
        Self { keys, prepare: Box::new(prepare) }
    }

    fn takes(&self, key: &str) -> bool {
        let is_of = |group: &str| key.strip_prefix(group).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.keys.iter().any(|group| is_of(group))
    }
}

/// The origin of the settings, and those that are in effect.
pub(super) struct Reloader {
    config: ConfigFile,
    running: Values,
}

/// The keys that a reload was about.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    reloaded: Vec<String>,
    /// Changed, and not in effect before the next start.
    need_restart: Vec<String>,
}

/// The settings cannot be used, and the old ones stay.
#[derive(Debug, thiserror::Error)]
enum ReloadError {
    #[error("{}", .0.to_string().replace('\n', "; "))]
    Settings(#[from] ConfigErrors),
    #[error("{0}")]
    Part(String),
}

impl Reloader {
    /// Begins with the settings that are in effect.
    pub fn new(config: ConfigFile, running: Values) -> Self {
        Self { config, running }
    }

    /// Reloads whenever it is asked to, until the process stops.
    pub async fn run(
        mut self,
        parts: Vec<Reloadable>,
        effective: Effective,
        signal: ReloadSignal,
        shutdown: ShutdownWatch,
    ) {
        let mut files = Files::look(self.files());
        loop {
            let cause = tokio::select! {
                () = signal.received() => "SIGHUP",
                () = files.changed(|| self.files()) => "a changed file",
                () = shutdown.reached(Phase::Stopped) => return,
            };
            systemd::reloading();
            files = Files::look(self.files());
            match self.reload(&parts, &effective) {
                Ok(Outcome { reloaded, need_restart }) if need_restart.is_empty() => {
                    tracing::info!(cause, ?reloaded, "settings reloaded");
                }
                Ok(Outcome { reloaded, need_restart }) => {
                    tracing::warn!(cause, ?reloaded, ?need_restart, "settings reloaded, but some need a restart");
                }
                Err(error) => tracing::error!(cause, %error, "settings not reloaded: the old ones stay in effect"),
            }
            systemd::ready();
        }
    }

    /// The files that the settings come from, and the key file that they name. Certificates are looked at where they are served.
    fn files(&self) -> Vec<PathBuf> {
        let key_file = self.running.text("auth.jwt.key_file").filter(|name| !name.is_empty());
        self.config.files().into_iter().chain(key_file.map(PathBuf::from)).collect()
    }

    fn reload(&mut self, parts: &[Reloadable], effective: &Effective) -> Result<Outcome, ReloadError> {
        let (settings, values) = self.config.load_with_values()?;
        let prepared: Result<Vec<Apply>, String> = parts.iter().map(|part| (part.prepare)(&settings)).collect();
        prepared.map_err(ReloadError::Part)?.into_iter().for_each(|apply| apply());
        let is_taken = |key: &String| parts.iter().any(|part| part.takes(key));
        let (reloaded, need_restart): (Vec<String>, Vec<String>) =
            self.running.changed(&values).into_iter().partition(is_taken);
        for key in &reloaded {
            self.running.take(key, &values);
        }
        effective.take(&reloaded, &settings);
        meters::show_hash(effective);
        Ok(Outcome { reloaded, need_restart })
    }
}

/// The files of the settings as they were at one look.
#[derive(PartialEq, Eq)]
struct Files(Vec<Option<(SystemTime, u64, u64)>>);

impl Files {
    fn look(files: Vec<PathBuf>) -> Self {
        let state =
            |path: &Path| fs::metadata(path).and_then(|file| Ok((file.modified()?, file.len(), file.ino()))).ok();
        Self(files.iter().map(|path| state(path)).collect())
    }

    /// Returns when a file differs from this look and has come to rest, so that none is read half written.
    async fn changed(&self, files: impl Fn() -> Vec<PathBuf>) {
        let mut changed = None;
        loop {
            tokio::time::sleep(if changed.is_some() { REST } else { LOOK_INTERVAL }).await;
            let now = Self::look(files());
            if changed.as_ref() == Some(&now) {
                return;
            }
            changed = (now != *self).then_some(now);
        }
    }
}
