//! Notices writes of other processes, by watching the database's directory.

use crate::supervise::fault;
use crate::telemetry;
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The pause between a change of the file and the first check.
///
/// The file changes before the commit in it can be read: a writer with `synchronous=FULL` first waits for the disk, and
/// only then marks the commit in shared memory, which no watcher sees. So a change leads to several checks, each after a
/// pause four times as long as the one before, up to [`MAX_BACKOFF`], until the file has been quiet for [`CHECKED_FOR`].
/// The poll finds what even the last check was too early for.
const FIRST_BACKOFF: Duration = Duration::from_millis(1);
const MAX_BACKOFF: Duration = Duration::from_secs(1);
/// Longer than a disk takes for one commit.
const CHECKED_FOR: Duration = Duration::from_secs(30);

/// Pause before a watch that ended unasked is begun again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

pub struct FileWatch {
    path: PathBuf,
    /// Notified by the watcher, on its own thread.
    changed: Arc<Notify>,
    next_check: Option<NextCheck>,
    state: State,
}

/// The state of the watch itself.
enum State {
    Watching(Watching),
    /// The watch ended unasked. It is begun again then.
    Ended {
        again_at: Instant,
    },
    /// The system refused it: then only the poll notices other processes' writes.
    Refused,
}

/// A watch, for as long as this lives.
struct Watching {
    watcher: Option<RecommendedWatcher>,
    /// Cancelled when the watcher's thread has ended, whichever way.
    ended: CancellationToken,
}

impl Drop for Watching {
    fn drop(&mut self) {
        if self.ended.is_cancelled() {
            // Its drop expects the thread to be there, and would panic.
            std::mem::forget(self.watcher.take());
        }
    }
}

/// The thread's side of a watch.
struct Told {
    changed: Arc<Notify>,
    _is_alive: DropGuard,
}

/// A check that is due after a change of the file.
#[derive(Clone, Copy)]
struct NextCheck {
    at: Instant,
    /// The pause before it.
    backoff: Duration,
    /// The time of the change.
    changed_at: Instant,
}

impl NextCheck {
    fn first(now: Instant) -> Self {
        Self { at: now + FIRST_BACKOFF, backoff: FIRST_BACKOFF, changed_at: now }
    }

    /// Returns the check after this one; `None` when the change is long ago.
    fn following(self, now: Instant) -> Option<Self> {
        let backoff = (self.backoff * 4).min(MAX_BACKOFF);
        (now - self.changed_at < CHECKED_FOR).then(|| Self { at: now + backoff, backoff, ..self })
    }
}

impl Told {
    fn note_change(&self) {
        self.changed.notify_one();
    }
}

impl State {
    fn begin(path: &Path, changed: &Arc<Notify>) -> Self {
        let ended = CancellationToken::new();
        let told = Told { changed: changed.clone(), _is_alive: ended.clone().drop_guard() };
        let state = match watch(path, told) {
            Ok(watcher) => Self::Watching(Watching { watcher: Some(watcher), ended }),
            Err(error) => {
                tracing::warn!(%error, "cannot watch the database file for changes; other processes' writes wait for the poll");
                Self::Refused
            }
        };
        state.show();
        state
    }

    fn show(&self) {
        let is_watching = matches!(self, Self::Watching(_));
        telemetry::SOURCE_LISTENING.gauge(&[]).set(if is_watching { 1.0 } else { 0.0 });
    }

    /// Returns when the watch has ended, or is to begin again. May be dropped and called again.
    async fn is_due(&self) {
        match self {
            Self::Watching(watching) => watching.ended.cancelled().await,
            Self::Ended { again_at } => tokio::time::sleep_until(*again_at).await,
            Self::Refused => std::future::pending().await,
        }
    }
}

impl FileWatch {
    pub fn new(path: &Path) -> Self {
        let changed = Arc::new(Notify::new());
        let state = State::begin(path, &changed);
        Self { path: path.to_path_buf(), changed, next_check: None, state }
    }

    /// Takes note that the watch has ended, or begins it again.
    fn carry_on(&mut self) {
        if matches!(self.state, State::Watching(_)) {
            tracing::error!("the watch of the database file ended unasked; it is begun again");
            self.state = State::Ended { again_at: Instant::now() + RESTART_DELAY };
            self.state.show();
        } else {
            self.state = State::begin(&self.path, &self.changed);
            // The file may have changed in between.
            self.changed.notify_one();
        }
    }

    /// Returns when the file should be read. May be dropped and called again; no change is lost.
    pub async fn check_due(&mut self) {
        loop {
            tokio::select! {
                () = self.changed.notified() => {
                    // A first check that is still due covers this change, too.
                    if self.next_check.is_none_or(|check| check.backoff > FIRST_BACKOFF) {
                        self.next_check = Some(NextCheck::first(Instant::now()));
                    }
                }
                check = due(self.next_check) => {
                    self.next_check = check.following(Instant::now());
                    return;
                }
                () = self.state.is_due() => self.carry_on(),
            }
        }
    }
}

/// Returns the check when it is due; never where there is none.
async fn due(check: Option<NextCheck>) -> NextCheck {
    match check {
        Some(check) => {
            tokio::time::sleep_until(check.at).await;
            check
        }
        None => std::future::pending().await,
    }
}

fn watch(path: &Path, told: Told) -> notify::Result<RecommendedWatcher> {
    let path = std::path::absolute(path)?;
    let name = path.file_name().unwrap_or_default().to_os_string();
    let folder = path.parent().unwrap_or(Path::new("/")).to_path_buf();
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        fault::strike("file watch");
        if is_change(&event, &name) {
            told.note_change();
        }
    })?;
    watcher.watch(&folder, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}

/// Tells if the database of this name may have changed.
fn is_change(event: &notify::Result<notify::Event>, name: &OsStr) -> bool {
    // After an error, which means that events were missed, rather check.
    event.as_ref().map_or(true, |event| {
        !matches!(event.kind, EventKind::Access(_)) && event.paths.iter().any(|path| is_database(path, name))
    })
}

/// Tells the database and its `-wal` from other files. `-shm` does not count: our own reads change it.
fn is_database(path: &Path, name: &OsStr) -> bool {
    let rest = path.file_name().and_then(|file| file.as_encoded_bytes().strip_prefix(name.as_encoded_bytes()));
    matches!(rest, Some(b"" | b"-wal"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use notify::event::{AccessKind, DataChange, ModifyKind, RenameMode};

    #[test]
    fn checks_after_a_change_grow_rarer_and_go_on_for_longer_than_a_disk_takes() {
        let changed = Instant::now();
        let mut checks = vec![NextCheck::first(changed)];
        while let Some(next) = checks.last().and_then(|last| last.following(last.at)) {
            checks.push(next);
        }
        let pauses: Vec<Duration> = checks.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
        assert!(pauses.is_sorted() && pauses.iter().all(|pause| *pause <= MAX_BACKOFF), "{pauses:?}");
        assert!(checks.len() < 40 && checks.last().is_some_and(|last| last.at - changed >= CHECKED_FOR));
    }

    #[test]
    fn a_log_beside_the_database_and_what_our_own_reads_change_are_not_the_database() {
        let is_of = |file: &str| is_database(Path::new(file), OsStr::new("jobs.db"));
        for file in ["/data/jobs.db", "/data/jobs.db-wal", "jobs.db"] {
            assert!(is_of(file), "{file}");
        }
        for file in
            ["jobs.db-shm", "jobs.db-journal", "jobs.db.log", "jobs.db2", "jobs", "old-jobs.db", "jobs.db/x", ""]
        {
            assert!(!is_of(file), "{file}");
        }
    }

    #[test]
    fn a_change_of_the_database_wakes_and_neither_a_look_at_it_nor_a_line_of_a_log_beside_it_does() {
        let modified = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let wakes = |kind: EventKind, files: &[&str]| {
            let event = files.iter().fold(notify::Event::new(kind), |event, file| event.add_path(file.into()));
            is_change(&Ok(event), OsStr::new("jobs.db"))
        };
        assert!(wakes(modified, &["/data/jobs.db"]) && wakes(modified, &["/data/jobs.db-wal"]));
        // A file that is put in the place of another is named second.
        let renamed = EventKind::Modify(ModifyKind::Name(RenameMode::Both));
        assert!(wakes(renamed, &["/data/restored", "/data/jobs.db"]));
        assert!(!wakes(modified, &["/data/jobs.db.log"]) && !wakes(modified, &["/data/jobs.db-shm"]));
        assert!(!wakes(renamed, &["/data/jobs.db.log", "/data/jobs.db.log.1"]));
        assert!(!wakes(EventKind::Access(AccessKind::Read), &["/data/jobs.db"]));
        assert!(is_change(&Err(notify::Error::generic("the queue overflowed")), OsStr::new("jobs.db")));
    }
}
