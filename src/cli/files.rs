//! The open files that the process may have, and their sharing out: each connection is one.

use crate::http::MAX_ADMIN_CONNECTIONS;
use std::fs;

/// Connections beyond the streams that are accepted where there are files for them, so that requests are answered and
/// streams beyond the limit are told to come back.
const MAX_SPARE_CONNECTIONS: usize = 1024;
/// The same share of the connections where files are few: one in so many.
const SPARE_SHARE: usize = 8;
/// Files that the store may need later: connections that it opens again, temporary files, its log.
const STORE_FILES: usize = 32;
/// Files that one thread of the server or of delivery needs: its poll, its wake-ups, its timer.
const FILES_PER_WORKER: usize = 4;
/// Files that are open at this point of a start, where the system does not say.
const USUAL_FILES: usize = 64;

/// The files that are not for public connections.
#[derive(Clone, Copy, Debug)]
pub struct OpenFiles {
    reserved: usize,
}

/// The files that are for public connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    /// Public connections, with and without a stream.
    pub connections: usize,
    /// Streams.
    pub streams: usize,
}

/// The system allows so few open files that nothing could be served.
#[derive(Debug, thiserror::Error)]
#[error(
    "this process may have {limit} open files and needs {reserved} besides its connections: raise its limit (ulimit -n, LimitNOFILE)"
)]
pub struct TooFewFiles {
    limit: usize,
    reserved: usize,
}

impl OpenFiles {
    /// Counts the files that are open before the first connection, and adds those of `workers` threads, of the admin
    /// listener, and of a store that connects again.
    pub fn measure(workers: usize) -> Self {
        let open = fs::read_dir("/proc/self/fd").map_or(USUAL_FILES, Iterator::count);
        Self { reserved: open + workers * FILES_PER_WORKER + MAX_ADMIN_CONNECTIONS + STORE_FILES }
    }

    /// Raises the soft limit, 1,024 on many systems, as far as `max_streams` needs it and the hard limit allows. Where that is
    /// not far enough, fewer connections are accepted, so that the admin listener and the store always have theirs.
    pub fn share(self, max_streams: usize) -> Result<Shares, TooFewFiles> {
        let wanted = max_streams.saturating_add(MAX_SPARE_CONNECTIONS).saturating_add(self.reserved);
        let limit = match rlimit::increase_nofile_limit(wanted as u64) {
            Ok(limit) => usize::try_from(limit).unwrap_or(usize::MAX),
            Err(error) => {
                tracing::warn!(%error, "the limit of open files cannot be read");
                wanted
            }
        };
        let shares = self.share_of(limit, max_streams)?;
        if shares.streams < max_streams {
            tracing::warn!(
                open_files = limit,
                streams = shares.streams,
                configured = max_streams,
                "this process may have fewer open files than http.max_connections needs, so it holds fewer streams: raise its limit (ulimit -n, LimitNOFILE)"
            );
        }
        Ok(shares)
    }

    fn share_of(self, limit: usize, max_streams: usize) -> Result<Shares, TooFewFiles> {
        let available = limit.saturating_sub(self.reserved);
        let least_spare = MAX_SPARE_CONNECTIONS.min(available / SPARE_SHARE);
        if least_spare == 0 {
            return Err(TooFewFiles { limit, reserved: self.reserved });
        }
        let streams = max_streams.min(available - least_spare);
        Ok(Shares { connections: streams + MAX_SPARE_CONNECTIONS.min(available - streams), streams })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_take_what_admin_and_store_leave() {
        let share = |streams, limit| OpenFiles { reserved: 100 }.share_of(limit, streams).ok();
        assert_eq!(share(10_000, 20_000), Some(Shares { connections: 11_024, streams: 10_000 }));
        assert_eq!(share(10_000, 1_124), Some(Shares { connections: 1_024, streams: 896 }));
        assert_eq!(share(10_000, 180), Some(Shares { connections: 80, streams: 70 }));
        assert_eq!(share(10, 180), Some(Shares { connections: 80, streams: 10 }));
        assert_eq!(share(10, 107), None);
    }
}
