//! One Jobcast process on a throw-away directory.

use super::http::{self, Answer};
use super::sse::Stream;
use super::{PATIENCE, address, eventually};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tempfile::TempDir;

pub const BINARY: &str = env!("CARGO_BIN_EXE_jobcast");

pub struct Daemon {
    child: Child,
    folder: TempDir,
    settings: Vec<(String, String)>,
    log: Arc<Mutex<String>>,
    pub http: SocketAddr,
    pub admin: SocketAddr,
}

impl Daemon {
    pub async fn start() -> Self {
        Self::with(&[]).await
    }

    /// Starts one with settings by their dotted names.
    pub async fn with(settings: &[(&str, &str)]) -> Self {
        Self::after(":", settings).await
    }

    /// Starts one in a shell, after this line of the shell's.
    pub async fn after(line: &str, settings: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut all = vec![
            ("http.listen".to_string(), address::free().to_string()),
            ("admin.listen".into(), address::free().to_string()),
            ("source.sqlite.path".into(), folder.path().join("jobs.db").display().to_string()),
            // Few tests write anything after a final status.
            ("source.end_grace".into(), "100ms".into()),
        ];
        all.extend(settings.iter().map(|(key, value)| (key.to_string(), value.to_string())));
        let log = Arc::default();
        let (child, http, admin) = spawn(line, &all, &log).await;
        Self { child, folder, settings: all, log, http, admin }
    }

    /// Starts one that reads from a server of this kind at this address.
    pub async fn on(kind: &str, url: &str, more: &[(&str, &str)]) -> Self {
        let key = format!("source.{kind}.url");
        Self::with(&[&[("source.kind", kind), (&key, url)], more].concat()).await
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn database(&self) -> PathBuf {
        self.folder().join("jobs.db")
    }

    /// A connection of another process' kind: what a runner that writes rows itself has.
    pub async fn rows(&self) -> SqliteConnection {
        let options = SqliteConnectOptions::new().filename(self.database()).busy_timeout(Duration::from_secs(20));
        options.connect().await.expect("the daemon's database")
    }

    /// Everything it has said so far, in all of its lives.
    pub fn log(&self) -> String {
        self.log.lock().expect("the log").clone()
    }

    /// Waits until one line of the log has all of these parts, and returns it. A thread of the daemon's own writes the
    /// log, and one of the tests reads it: an event can be seen before the line about it.
    pub async fn logs(&self, parts: &[&str]) -> String {
        eventually(&format!("a line of the log with {parts:?}"), async || {
            self.log().lines().find(|line| parts.iter().all(|part| line.contains(part))).map(str::to_string)
        })
        .await
    }

    /// Waits until the log has a text this often, and checks that it has it no more often.
    pub async fn logs_times(&self, text: &str, times: usize) {
        let found = eventually(&format!("{text:?} in the log, {times} times"), async || {
            Some(self.log().matches(text).count()).filter(|found| *found >= times)
        })
        .await;
        assert_eq!(found, times, "{text:?} in:\n{}", self.log());
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    // ---- its life

    /// `kill -9`
    pub fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.pid())]).status();
        assert!(done.expect("sh").success(), "cannot signal the daemon");
    }

    /// Starts it once more, on the same addresses and the same file.
    pub async fn restart(&mut self) {
        let mut settings = self.settings.clone();
        settings.push(("http.listen".into(), self.http.to_string()));
        settings.push(("admin.listen".into(), self.admin.to_string()));
        (self.child, _, _) = spawn(":", &settings, &self.log).await;
    }

    pub async fn exit(&mut self) -> ExitStatus {
        let child = &mut self.child;
        eventually("the daemon's exit", async || child.try_wait().expect("wait")).await
    }

    // ---- its addresses

    pub async fn get(&self, path: &str) -> Answer {
        http::request(self.http, "GET", path, &[], b"").await
    }

    pub async fn send(&self, method: &str, path: &str, body: &Value) -> Answer {
        let headers = [("Content-Type", "application/json")];
        http::request(self.http, method, path, &headers, body.to_string().as_bytes()).await
    }

    pub async fn ask_admin(&self, path: &str) -> Answer {
        http::request(self.admin, "GET", path, &[], b"").await
    }

    /// Appends numbered events by ingest, in one request.
    pub async fn write(&self, job: &str, numbers: impl IntoIterator<Item = u64>) {
        let events: Vec<Value> = numbers.into_iter().map(numbered).collect();
        let answer = self.send("POST", &format!("/runner-jobs/{job}/events"), &json!(events)).await;
        assert_eq!(answer.status, 201, "{answer:?}");
    }

    pub async fn set_status(&self, job: &str, status: &str) {
        let answer = self.send("PUT", &format!("/runner-jobs/{job}"), &json!({ "status": status })).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// A stream of the whole job.
    pub async fn stream(&self, job: &str) -> Stream {
        Stream::open(self.http, &stream_path(job), &[]).await
    }

    pub async fn stream_after(&self, job: &str, last: &str) -> Stream {
        Stream::open(self.http, &stream_path(job), &[("Last-Event-ID", last)]).await
    }

    /// The value of a metric; the sum over its labels, unless the name has them. 0 where it was never counted.
    pub async fn metric(&self, name: &str) -> f64 {
        let answer = self.ask_admin("/metrics").await;
        let of_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']));
        let text = answer.text();
        let lines = text.lines().filter(of_it);
        lines.map(|line| line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok()).expect("a number")).sum()
    }

    /// Waits until a metric has this value. Much is counted a moment after it can be seen.
    pub async fn metric_is(&self, name: &str, value: f64) {
        eventually(&format!("{name} to be {value}"), async || (self.metric(name).await == value).then_some(())).await;
    }

    /// Waits until a metric has at least this value.
    pub async fn metric_reaches(&self, name: &str, value: f64) {
        let reached = async || (self.metric(name).await >= value).then_some(());
        eventually(&format!("{name} to reach {value}"), reached).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("---- the daemon said:\n{}----", self.log());
        }
        assert!(std::thread::panicking() || !self.log().contains("panicked"), "the daemon panicked:\n{}", self.log());
    }
}

/// An event that carries a number in its payload and in its id.
pub fn numbered(number: u64) -> Value {
    json!({ "id": format!("e-{number}"), "type": "step.output", "stepId": "s", "payload": { "n": number } })
}

/// Writes numbered rows as a runner does, all in one transaction.
pub async fn write_rows(to: &mut SqliteConnection, job: &str, numbers: impl IntoIterator<Item = u64>) {
    let mut transaction = to.begin_with("BEGIN IMMEDIATE").await.expect("begin");
    for number in numbers {
        sqlx::query("INSERT INTO job_events (id, job_id, type, payload) VALUES (?1, ?2, 'step.output', ?3)")
            .bind(format!("e-{number}"))
            .bind(job)
            .bind(json!({ "n": number }).to_string())
            .execute(&mut *transaction)
            .await
            .expect("insert");
    }
    transaction.commit().await.expect("commit");
}

pub fn stream_path(job: &str) -> String {
    format!("/runner-jobs/{job}/events/stream")
}

/// A command of the binary, with settings by their dotted names and nothing else of the environment's.
pub fn jobcast(arguments: &[&str], settings: &[(String, String)]) -> Command {
    let mut command = Command::new(BINARY);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("JOBCAST_")) {
        command.env_remove(name);
    }
    for (key, value) in settings {
        command.env(format!("JOBCAST_{}", key.to_uppercase().replace('.', "__")), value);
    }
    command.args(arguments).stdin(Stdio::null());
    command
}

/// The same command in a shell, which it takes the place of after this line of the shell's.
pub fn in_shell(line: &str, command: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{line}; exec \"$@\""), "sh"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.stdin(Stdio::null());
    shell
}

/// Runs a command of the binary to its end.
pub async fn run(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let settings: Vec<_> = settings.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let mut command = jobcast(arguments, &settings);
    finish(command.stdout(Stdio::piped()).stderr(Stdio::piped())).await
}

/// Runs a command to its end, which must come.
pub async fn finish(command: &mut Command) -> Output {
    let mut child = command.spawn().expect("a process");
    let (out, err) = (child.stdout.take(), child.stderr.take());
    let read = |from: Option<Box<dyn std::io::Read + Send>>| {
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut from) = from {
                let _ = from.read_to_end(&mut bytes);
            }
            bytes
        })
    };
    let out = read(out.map(|out| Box::new(out) as _));
    let err = read(err.map(|err| Box::new(err) as _));
    let began = Instant::now();
    let status = loop {
        match child.try_wait().expect("wait") {
            Some(status) => break status,
            None if began.elapsed() > PATIENCE * 3 => {
                let _ = child.kill();
            }
            None => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    Output { status, stdout: out.join().expect("stdout"), stderr: err.join().expect("stderr") }
}

async fn spawn(line: &str, settings: &[(String, String)], log: &Arc<Mutex<String>>) -> (Child, SocketAddr, SocketAddr) {
    let before = log.lock().expect("the log").len();
    let mut command = in_shell(line, &jobcast(&["serve"], settings));
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the binary");
    let (into, from) = (log.clone(), child.stderr.take().expect("stderr"));
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            let mut log = into.lock().expect("the log");
            log.push_str(&line);
            log.push('\n');
        }
    });
    let address = |log: &str, name: &str| -> Option<SocketAddr> {
        let line = log.lines().find(|line| line.contains("serving ") || line.contains("\"serving\""))?;
        if let Ok(fields) = serde_json::from_str::<Value>(line) {
            return fields[name].as_str()?.parse().ok();
        }
        line.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok())
    };
    let (http, admin) = eventually("the daemon to serve", async || {
        let said = log.lock().expect("the log")[before..].to_string();
        if let Some(status) = child.try_wait().expect("wait") {
            panic!("the daemon did not start: {status}\n{said}");
        }
        address(&said, "http").zip(address(&said, "admin"))
    })
    .await;
    (child, http, admin)
}
