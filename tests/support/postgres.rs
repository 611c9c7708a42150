//! A PostgreSQL server of the tests' own, on a throw-away directory. PostgreSQL refuses to run as root: then it runs as
//! the user `postgres`.

use super::eventually;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

pub struct Postgres {
    folder: TempDir,
    pub port: u16,
}

impl Postgres {
    /// A server with an empty database; its trust is the machine's own.
    pub async fn start() -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let data = folder.path().join("data");
        if is_root() {
            let owned = Command::new("chown").arg("postgres").arg(folder.path()).status();
            assert!(owned.expect("chown").success());
        }
        run(&["initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", text(&data)]);
        let settings = "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nfsync = off\n\
                        max_prepared_transactions = 64\nmax_connections = 200\nautovacuum_naptime = 5s\n";
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
        let file = data.join("postgresql.auto.conf");
        std::fs::write(&file, format!("{settings}port = {port}\n")).expect("settings");
        let server = Self { folder, port };
        server.up().await;
        server
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// Starts the server again.
    pub async fn up(&self) {
        let log = self.folder.path().join("log");
        run(&["pg_ctl", "start", "--silent", "--no-wait", "-D", text(&self.data()), "-l", text(&log)]);
        eventually("PostgreSQL to answer", async || self.options().connect().await.ok()).await;
    }

    /// Stops it: smart, fast, or immediate, which is a crash.
    pub fn down(&self, mode: &str) {
        run(&["pg_ctl", "stop", "--silent", "-m", mode, "-D", text(&self.data())]);
    }

    fn options(&self) -> PgConnectOptions {
        PgConnectOptions::new().host("127.0.0.1").port(self.port).username("postgres").database("postgres")
    }

    /// As its owner.
    pub async fn connect(&self) -> PgConnection {
        self.options().connect().await.expect("PostgreSQL")
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connect().await).await.expect(sql);
    }

    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@127.0.0.1:{}/postgres", self.port)
    }

    /// A role that may read both tables and nothing else.
    pub async fn make_reader(&self) {
        self.execute("CREATE ROLE reader LOGIN; GRANT SELECT ON job_events, runner_jobs TO reader").await;
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let _ = command(&["pg_ctl", "stop", "--silent", "-m", "immediate", "-D", text(&self.data())]).status();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}

fn command(words: &[&str]) -> Command {
    let mut folders: Vec<_> = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().collect();
    folders.sort_by_key(|folder| folder.file_name());
    let newest = folders.last().map(|folder| folder.path().join("bin").join(words[0]));
    let program = newest.filter(|program| program.exists()).unwrap_or_else(|| words[0].into());
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(&words[1..]).current_dir("/").stdout(std::process::Stdio::null());
    command
}

fn run(words: &[&str]) {
    let status = command(words).status().expect("PostgreSQL's programs");
    assert!(status.success(), "{words:?}: {status}");
}
