//! Faults on purpose, for tests: in binaries with the feature `fault-injection`, a part panics or ends when a file is
//! there. In all others the functions do nothing, and the compiler leaves no trace of them.
//!
//! The variable `JOBCAST_FAULT` holds `PART:panic:FILE` or `PART:end:FILE`. The part removes the file when the fault
//! strikes, which happens once for each file.

#[cfg(not(feature = "fault-injection"))]
mod without {
    /// Returns `work` itself.
    pub fn until_struck<F: Future>(_part: &'static str, work: F) -> F {
        work
    }

    /// Does nothing.
    #[inline]
    pub fn strike(_part: &str) {}
}

#[cfg(not(feature = "fault-injection"))]
pub use without::{strike, until_struck};

#[cfg(feature = "fault-injection")]
mod with {
    use std::path::PathBuf;
    use std::sync::LazyLock;
    use std::time::Duration;

    /// Interval between two looks for the file.
    const LOOK: Duration = Duration::from_millis(20);

    struct Fault {
        part: String,
        kind: Kind,
        file: PathBuf,
    }

    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Kind {
        Panic,
        End,
    }

    static FAULT: LazyLock<Option<Fault>> = LazyLock::new(|| {
        let text = std::env::var("JOBCAST_FAULT").ok()?;
        let mut words = text.splitn(3, ':');
        let part = words.next()?.to_string();
        let kind = if words.next()? == "panic" { Kind::Panic } else { Kind::End };
        Some(Fault { part, kind, file: words.next()?.into() })
    });

    /// Returns the fault of a part if its file is there, and removes the file.
    fn take(part: &str) -> Option<Kind> {
        let fault = FAULT.as_ref().filter(|fault| fault.part == part)?;
        std::fs::remove_file(&fault.file).ok().map(|()| fault.kind)
    }

    /// Returns the fault of a part when it strikes.
    pub async fn struck(part: &str) -> Kind {
        loop {
            if let Some(kind) = take(part) {
                return kind;
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Panics or returns, as a fault says.
    pub fn fail(kind: Kind) {
        assert!(kind != Kind::Panic, "a fault on purpose");
    }

    /// Does `work`, unless the part's fault strikes before its end.
    pub async fn until_struck(part: &'static str, work: impl Future<Output = ()>) {
        if FAULT.as_ref().is_none_or(|fault| fault.part != part) {
            return work.await;
        }
        tokio::select! {
            () = work => {}
            kind = struck(part) => fail(kind),
        }
    }

    /// Panics if the part has a fault that strikes now.
    pub fn strike(part: &str) {
        take(part).into_iter().for_each(fail);
    }
}

#[cfg(feature = "fault-injection")]
pub use with::{Kind, fail, strike, struck, until_struck};
