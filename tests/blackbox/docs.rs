//! The commands that the guides show, run as a reader would: blocks that are marked `sh run` to their end, which must be a
//! good one, and those that are marked `sh serve` beside them.

use crate::support::daemon::{BINARY, Daemon, finish};
use crate::support::{Postgres, Redis, address, eventually};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::TcpStream;

#[tokio::test]
async fn the_commands_of_the_readme_and_of_five_minutes_do_what_they_say() {
    let database = Postgres::start().await;
    let url = database.url("postgres");
    Reader::new(address::free()).follow("README.md").await;
    Reader::new(address::free()).with("DATABASE_URL", &url).follow("docs/five-minutes.md").await;
}

#[tokio::test]
async fn the_commands_of_the_guides_to_stores_do_what_they_say() {
    let server = Redis::start().await;
    Reader::new(address::free()).with("REDIS_URL", &server.url()).follow("docs/redis.md").await;
    Reader::new(address::free()).follow("docs/sqlite.md").await;
}

#[tokio::test]
async fn the_commands_of_the_protocol_do_what_they_say() {
    let daemon = Daemon::start().await;
    daemon.write("build-7", 0..3).await;
    daemon.set_status("build-7", "COMPLETED").await;
    Reader::new(daemon.http).follow("docs/protocol.md").await;
}

/// A reader in an empty folder, whose Jobcast has an address of its own in place of the default.
struct Reader {
    folder: TempDir,
    http: SocketAddr,
    variables: Vec<(String, String)>,
    serving: Option<Child>,
}

impl Reader {
    fn new(http: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let admin = address::free();
        // Commands whose address is no setting are given it on the command line.
        let wrapper = format!(
            "#!/bin/sh\ncase \"$1\" in\n  tail) exec '{BINARY}' \"$@\" --url 'http://{http}' ;;\n  \
             demo) exec '{BINARY}' \"$@\" --listen '{http}' --admin-listen '{admin}' ;;\n  *) exec '{BINARY}' \"$@\" ;;\nesac\n"
        );
        let programs = folder.path().join("bin");
        std::fs::create_dir(&programs).expect("a directory");
        std::fs::write(programs.join("jobcast"), wrapper).expect("a program");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(programs.join("jobcast"), executable).expect("its rights");
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("PATH"));
        let mut reader = Self { folder, http, variables: Vec::new(), serving: None };
        reader.set("PATH", &path);
        reader.set("JOBCAST_HTTP__LISTEN", &http.to_string());
        reader.set("JOBCAST_ADMIN__LISTEN", &admin.to_string());
        reader
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.into(), value.into()));
    }

    /// Runs every marked block of a page in its order.
    async fn follow(mut self, page: &str) {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect(page);
        let blocks = blocks(&text);
        assert!(blocks.iter().any(|(mark, _)| *mark == "run"), "{page} has no block that is marked as one to run");
        for (mark, block) in blocks {
            let script = block.replace("127.0.0.1:8080", &self.http.to_string());
            match mark {
                "serve" => self.serve(&script).await,
                "run" => {
                    let mut bash = self.bash(&format!("set -euo pipefail\n{script}"));
                    let output = finish(bash.stdout(Stdio::piped()).stderr(Stdio::piped())).await;
                    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
                    assert!(output.status.success(), "{page}:\n{script}\nsaid: {}", said.concat());
                }
                other => panic!("{page}: a block is marked {other:?}"),
            }
        }
    }

    async fn serve(&mut self, script: &str) {
        self.stop();
        // A group of its own, so that it can be ended with all that it has started.
        let child = self.bash(script).process_group(0).stdout(Stdio::null()).spawn().expect("bash");
        self.serving = Some(child);
        eventually("what the page serves", async || TcpStream::connect(self.http).await.ok()).await;
    }

    fn bash(&self, script: &str) -> Command {
        let mut bash = Command::new("bash");
        bash.args(["-c", script]).current_dir(self.folder.path()).stdin(Stdio::null());
        bash.envs(self.variables.iter().map(|(name, value)| (name, value)));
        bash
    }

    fn stop(&mut self) {
        if let Some(mut child) = self.serving.take() {
            let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", child.id())]).status();
            let _ = child.wait();
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Marks and texts of the fenced blocks that have a word after `sh`.
fn blocks(page: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(mark) = line.strip_prefix("```sh ") {
            let block: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            found.push((mark, block.join("\n")));
        }
    }
    found
}
