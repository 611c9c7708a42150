//! Supervision of the parts that the daemon cannot live without: its long-lived tasks and threads.
//!
//! A part that ends although nobody asked it to, or panics, would leave streams that look alive and carry nothing. The
//! first such end is announced, and whoever runs the daemon makes it not ready, drains it and ends it with an error.
//! Invariant: every part holds a [`Part`], whose drop announces the end, whichever way it came.
//!
//! Two kinds of work need no end of the daemon: [`restarted`] is for tasks that can begin anew, [`guarded`] for work on
//! behalf of somebody, who is told that it failed.

pub mod fault;

use crate::shutdown::{Phase, ShutdownWatch};
use futures_util::FutureExt;
use std::borrow::Cow;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Pause before a task that ended unasked is started again.
const RESTART_DELAY: Duration = Duration::from_secs(1);

/// Name of a part in logs: "tail", "delivery-0".
pub type PartName = Cow<'static, str>;

/// Starts the parts; cheap to clone.
#[derive(Clone)]
pub struct Supervisor {
    shutdown: ShutdownWatch,
    /// The first part that ended unasked.
    failure: Arc<watch::Sender<Option<PartFailure>>>,
}

/// A part that ended although the process goes on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the part {part:?} {}; see the log before this", if *.panicked { "panicked" } else { "ended unasked" })]
pub struct PartFailure {
    pub part: PartName,
    pub panicked: bool,
}

impl Supervisor {
    /// A supervisor that tells ends which the shutdown asked for from those that nobody did.
    pub fn new(shutdown: ShutdownWatch) -> Self {
        Self { shutdown, failure: Arc::new(watch::Sender::new(None)) }
    }

    /// Registers a part that somebody else runs. It lives until what is returned is dropped.
    pub fn part(&self, name: impl Into<PartName>) -> Part {
        Part { name: name.into(), supervisor: self.clone() }
    }

    /// Runs `work` as a task, which is to go on until the process stops.
    pub fn task<F>(&self, name: &'static str, work: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let part = self.part(name);
        tokio::spawn(async move {
            let _part = part;
            fault::until_struck(name, work).await;
        })
    }

    /// Runs `work` on a thread of that name, which is to go on until the process stops.
    pub fn thread(
        &self,
        name: impl Into<PartName>,
        work: impl FnOnce() + Send + 'static,
    ) -> io::Result<thread::JoinHandle<()>> {
        let part = self.part(name);
        thread::Builder::new().name(part.name.to_string()).spawn(move || {
            let _part = part;
            work();
        })
    }

    /// Returns when a part has ended unasked.
    pub async fn failed(&self) -> PartFailure {
        let mut failures = self.failure.subscribe();
        loop {
            if let Some(failure) = failures.borrow_and_update().clone() {
                return failure;
            }
            // The sender is in `self`, and so there.
            let _ = failures.changed().await;
        }
    }

    /// The first part that has ended unasked, if any has.
    pub fn failure(&self) -> Option<PartFailure> {
        self.failure.borrow().clone()
    }
}

/// Stands for one running part; its drop is the part's end.
pub struct Part {
    name: PartName,
    supervisor: Supervisor,
}

impl Drop for Part {
    fn drop(&mut self) {
        if self.supervisor.shutdown.phase() >= Phase::Stopped {
            return;
        }
        let failure = PartFailure { part: std::mem::take(&mut self.name), panicked: thread::panicking() };
        tracing::error!(part = %failure.part, panicked = failure.panicked, "a part of the daemon ended unasked");
        self.supervisor.failure.send_if_modified(|first| {
            let is_first = first.is_none();
            first.get_or_insert(failure);
            is_first
        });
    }
}

/// Runs a task that is to go on until it is aborted, and starts it again whenever it ends or panics.
pub async fn restarted<F>(name: &'static str, mut start: impl FnMut() -> F)
where
    F: Future<Output = ()>,
{
    loop {
        let ended = AssertUnwindSafe(fault::until_struck(name, start())).catch_unwind().await;
        tracing::error!(part = name, panicked = ended.is_err(), "a task ended unasked; it is started again");
        tokio::time::sleep(RESTART_DELAY).await;
    }
}

/// The work panicked. The log has the panic's message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a bug of Jobcast's own, see the log")]
pub struct Panicked;

/// Does work on behalf of somebody who goes on after a panic in it.
pub async fn guarded<T>(name: &'static str, work: impl Future<Output = T>) -> Result<T, Panicked> {
    let work = async {
        fault::strike(name);
        work.await
    };
    AssertUnwindSafe(work).catch_unwind().await.map_err(|_| Panicked)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shutdown::Shutdown;
    use std::sync::atomic::{AtomicU8, Ordering};

    async fn announced(supervisor: &Supervisor) -> PartFailure {
        tokio::time::timeout(Duration::from_secs(30), supervisor.failed()).await.expect("an announcement")
    }

    #[tokio::test]
    async fn a_task_that_panics_is_announced_by_its_name() {
        let shutdown = Shutdown::default();
        let supervisor = Supervisor::new(shutdown.watch());
        supervisor.task("tail", async { panic!("on purpose") });
        assert_eq!(announced(&supervisor).await, PartFailure { part: "tail".into(), panicked: true });
    }

    #[tokio::test]
    async fn a_thread_that_returns_is_announced_and_the_first_to_end_is_the_one_named() {
        let shutdown = Shutdown::default();
        let supervisor = Supervisor::new(shutdown.watch());
        supervisor.thread("delivery-0", || ()).expect("a thread").join().expect("its end");
        drop(supervisor.part("later"));
        assert_eq!(announced(&supervisor).await, PartFailure { part: "delivery-0".into(), panicked: false });
    }

    #[tokio::test]
    async fn an_end_that_was_asked_for_is_not_announced() {
        let shutdown = Shutdown::default();
        let supervisor = Supervisor::new(shutdown.watch());
        shutdown.enter(Phase::Stopped);
        supervisor.task("tail", async {}).await.expect("its end");
        assert_eq!(supervisor.failure(), None);
    }

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_started_again() {
        let (starts, third) = (AtomicU8::new(0), tokio::sync::Notify::new());
        let runs = restarted("listener", || async {
            match starts.fetch_add(1, Ordering::Relaxed) {
                0 => panic!("on purpose"),
                1 => {}
                _ => third.notify_one(),
            }
        });
        tokio::select! {
            () = runs => {}
            () = third.notified() => {}
        }
    }

    #[tokio::test]
    async fn a_panic_in_guarded_work_is_told_to_who_asked_for_it() {
        assert_eq!(guarded("page", async { panic!("on purpose") }).await, Err::<(), _>(Panicked));
        assert_eq!(guarded("page", async { 7 }).await, Ok(7));
    }
}
