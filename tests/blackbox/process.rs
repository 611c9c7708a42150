//! The process: the log holds nobody up, and no part of the daemon dies alone.

#[cfg(feature = "fault-injection")]
mod faults;

use crate::support::daemon::{jobcast, run, stream_path, write_rows};
use crate::support::http::request;
use crate::support::{Stream, address, eventually};
use sqlx::ConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// A daemon whose standard error the test chooses.
struct Process {
    child: Child,
    folder: TempDir,
    http: SocketAddr,
    admin: SocketAddr,
}

impl Process {
    async fn start(stderr: Stdio, variables: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().expect("a directory"), stderr, variables).await
    }

    async fn start_in(folder: TempDir, stderr: Stdio, variables: &[(&str, &str)]) -> Self {
        let (http, admin) = (address::free(), address::free());
        let settings = [
            ("http.listen", http.to_string()),
            ("admin.listen", admin.to_string()),
            ("source.sqlite.path", folder.path().join("jobs.db").display().to_string()),
            ("source.poll_interval", "100ms".into()),
            ("source.ready_grace", "1ms".into()),
            ("shutdown.grace", "10m".into()),
            ("shutdown.drain", "10m".into()),
        ];
        let settings = settings.map(|(key, value)| (key.to_string(), value));
        let mut command = jobcast(&["serve"], &settings);
        command.envs(variables.iter().copied());
        let mut child = command.stderr(stderr).spawn().expect("the binary");
        eventually("the daemon to serve", async || {
            assert_eq!(child.try_wait().expect("wait"), None, "the daemon did not start");
            tokio::net::TcpStream::connect(admin).await.ok()
        })
        .await;
        Self { child, folder, http, admin }
    }

    async fn status(&self, path: &str) -> u16 {
        request(self.admin, "GET", path, &[], b"").await.status
    }

    async fn send(&self, id: u64) -> u16 {
        let event = format!("{{\"type\":\"x\",\"id\":\"e-{id}\",\"payload\":{{\"n\":{id}}}}}");
        let headers = [("Content-Type", "application/json")];
        request(self.http, "POST", "/runner-jobs/job/events", &headers, event.as_bytes()).await.status
    }

    async fn metric(&self, name: &str) -> Option<f64> {
        let metrics = request(self.admin, "GET", "/metrics", &[], b"").await.text();
        metrics.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
    }

    async fn stream(&self) -> Stream {
        Stream::open(self.http, &stream_path("job"), &[]).await
    }

    /// Waits for the exit, and returns its code.
    async fn exit_code(&mut self) -> Option<i32> {
        let child = &mut self.child;
        eventually("the daemon's exit", async || child.try_wait().expect("wait")).await.code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Goes through an outage of the source, which the daemon logs, and expects that events arrive after it, and that lines which
/// are refused are counted.
async fn survives_an_outage_with(stderr: Stdio, is_refused: bool) {
    let mut process = Process::start(stderr, &[]).await;
    assert_eq!(process.send(0).await, 201);
    let mut stream = process.stream().await;
    assert_eq!(stream.event().await.number(), 0);
    let options = SqliteConnectOptions::new().filename(process.folder.path().join("jobs.db"));
    let mut rows = options.connect().await.expect("the database");
    for number in 1..3 {
        let rename = |from, to| sqlx::AssertSqlSafe(format!("ALTER TABLE {from} RENAME TO {to}"));
        sqlx::raw_sql(rename("job_events", "away")).execute(&mut rows).await.expect("an outage");
        eventually("the outage to be noticed", async || (process.status("/readyz").await == 503).then_some(())).await;
        sqlx::raw_sql(rename("away", "job_events")).execute(&mut rows).await.expect("its end");
        eventually("the source to be back", async || (process.status("/readyz").await == 200).then_some(())).await;
        let mut stream = process.stream().await;
        write_rows(&mut rows, "job", number..number + 1).await;
        for expected in 0..=number {
            assert_eq!(stream.event().await.number(), expected);
        }
    }
    if is_refused {
        let is_counted = async || (process.metric("jobcast_log_lines_lost_total").await? >= 1.0).then_some(());
        eventually("lost lines to be counted", is_counted).await;
    }
    let pid = process.child.id().to_string();
    let terminate = || assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill").success());
    terminate();
    eventually("the signal", async || (process.status("/readyz").await == 503).then_some(())).await;
    terminate();
    assert_eq!(process.exit_code().await, Some(0));
}

#[tokio::test]
async fn a_full_disk_under_the_log_neither_stops_a_start_nor_what_is_served() {
    survives_an_outage_with(File::options().write(true).open("/dev/full").expect("/dev/full").into(), true).await;
}

#[tokio::test]
async fn a_log_whose_reader_has_gone_stops_nothing() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    survives_an_outage_with(writer.into(), true).await;
}

#[tokio::test]
async fn a_log_that_nobody_reads_stops_nothing() {
    let (_reader, writer) = std::io::pipe().expect("a pipe");
    let mut filler = writer.try_clone().expect("a pipe");
    // It blocks when the pipe is full, and ends with the test.
    let (sender, filled) = std::sync::mpsc::channel();
    std::thread::spawn(move || while filler.write_all(&[b'x'; 4096]).is_ok() && sender.send(()).is_ok() {});
    while filled.recv_timeout(std::time::Duration::from_secs(1)).is_ok() {}
    // They wait for the reader.
    survives_an_outage_with(writer.into(), false).await;
}

#[tokio::test]
async fn commands_whose_output_cannot_be_written_end_quietly_or_with_an_error() {
    for arguments in [&["schema", "sqlite"][..], &["check"]] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let folder = tempfile::tempdir().expect("a directory");
        let settings = [("source.sqlite.path".to_string(), folder.path().join("jobs.db").display().to_string())];
        let expected = run(arguments, &[("source.sqlite.path", &settings[0].1)]).await.status.code();
        let gone = jobcast(arguments, &settings).stdout(writer).stderr(Stdio::piped()).output().expect("the binary");
        assert_eq!((gone.status.code(), gone.stderr.as_slice()), (expected, &b""[..]), "{arguments:?}");
        let full = || File::options().write(true).open("/dev/full").expect("/dev/full");
        let full = jobcast(arguments, &settings).stdout(full()).stderr(full()).status().expect("the binary");
        assert_eq!(full.code(), Some(1), "{arguments:?}");
    }
}
