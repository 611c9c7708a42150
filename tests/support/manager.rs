//! The service manager, as a test plays it by systemd's protocol: it holds the listening sockets, and hears what the daemon
//! says of itself.

use super::daemon::{in_shell, jobcast};
use super::{PATIENCE, address};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::UnixDatagram;
use tokio::time::timeout;

/// Names the sockets that standard input and output are, as descriptors 3 and 4, and says whom they are for.
const HAND_OVER: &str =
    "export LISTEN_FDS=2 LISTEN_PID=$$ LISTEN_FDNAMES=http:admin; exec 3<&0 4<&1 0</dev/null 1>/dev/null";

pub struct Manager {
    folder: TempDir,
    sockets: [TcpListener; 2],
    notifications: UnixDatagram,
    pub http: SocketAddr,
}

impl Manager {
    /// One that listens on addresses of its own.
    pub fn start() -> Self {
        Self::listening_on(address::free())
    }

    pub fn listening_on(http: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let sockets = [http, address::free()].map(|address| TcpListener::bind(address).expect("a socket"));
        let http = sockets[0].local_addr().expect("an address");
        let notifications = UnixDatagram::bind(folder.path().join("notify")).expect("a socket");
        Self { folder, sockets, notifications, http }
    }

    pub fn database(&self) -> String {
        self.folder.path().join("jobs.db").display().to_string()
    }

    /// A daemon that is handed the sockets over.
    pub fn command(&self, settings: &[(&str, &str)]) -> Command {
        let mut all = vec![("source.sqlite.path".to_string(), self.database())];
        all.extend(settings.iter().map(|(key, value)| (key.to_string(), value.to_string())));
        let mut command = in_shell(HAND_OVER, &jobcast(&["serve"], &all));
        let [http, admin] = [0, 1].map(|index: usize| self.sockets[index].try_clone().expect("a descriptor"));
        command.env("NOTIFY_SOCKET", self.folder.path().join("notify"));
        command.stdin(Stdio::from(OwnedFd::from(http))).stdout(Stdio::from(OwnedFd::from(admin)));
        command
    }

    /// Starts a daemon, and returns when it says that it is ready.
    pub async fn run(&self, settings: &[(&str, &str)]) -> Child {
        let child = self.command(settings).stderr(Stdio::inherit()).spawn().expect("the binary");
        self.hears("READY=1").await;
        child
    }

    /// Returns the next notification with this in it.
    pub async fn hears(&self, news: &str) -> String {
        let mut bytes = [0; 4096];
        let hear = async {
            loop {
                let length = self.notifications.recv(&mut bytes).await.expect("a notification");
                let said = String::from_utf8_lossy(&bytes[..length]).into_owned();
                if said.lines().any(|line| line == news) {
                    return said;
                }
            }
        };
        timeout(PATIENCE, hear).await.unwrap_or_else(|_| panic!("the daemon never says {news}"))
    }
}
