//! The commands that the guides show, run as a reader would. The word after a block's language says how:
//!
//! | mark | the block is |
//! |---|---|
//! | `sh run`, `sql run` | run to its end, which must be a good one |
//! | `sh serve` | run beside those that follow |
//! | `toml NAME` | written to the file of this name |
//! | `sh not-run: why`, `sql not-run: why` | not run here, for this reason |
//!
//! A block of commands without one of these fails a test, so that none is left out unseen.

use crate::support::daemon::{BINARY, Daemon, finish};
use crate::support::http2::Secure;
use crate::support::{Postgres, Redis, address, eventually};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;
use tokio::net::TcpStream;

/// Pages that the tests below follow.
const FOLLOWED: [&str; 10] = [
    "README.md",
    "docs/behind-your-api.md",
    "docs/five-minutes.md",
    "docs/leaving.md",
    "docs/map-your-table.md",
    "docs/operate.md",
    "docs/postgresql.md",
    "docs/protocol.md",
    "docs/redis.md",
    "docs/sqlite.md",
];

#[test]
fn every_block_of_commands_is_run_or_says_why_it_is_not() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut followed = vec!["docs/tls.md".to_string()];
    followed.extend(FOLLOWED.map(str::to_string));
    let mut met = 0;
    for page in pages(root) {
        let text = std::fs::read_to_string(&page).expect("a page");
        let name = page.strip_prefix(root).expect("inside").display().to_string();
        for Block { language, mark, text } in blocks(&text) {
            if !["sh", "bash", "console", "shell", "sql"].contains(&language) {
                continue;
            }
            met += 1;
            match mark.split_once(':') {
                Some(("not-run", why)) => assert!(why.trim().len() > 15, "{name}: why is this not run?\n{text}"),
                _ if matches!((language, mark), ("sh", "run" | "serve") | ("sql", "run")) => {
                    assert!(followed.contains(&name), "{name} has blocks to run, and no test that does");
                }
                _ => panic!("{name}: mark this block `{language} run`, or `{language} not-run: why`:\n{text}"),
            }
        }
    }
    assert!(met >= 20, "only {met} blocks were found");
}

/// All pages for readers: those of the root, of docs/ and of the recipes.
fn pages(root: &Path) -> Vec<PathBuf> {
    let entries = |folder: &Path| -> Vec<PathBuf> {
        let found = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        found.map(|entry| entry.expect("an entry").path()).collect()
    };
    let mut all = [root.to_path_buf(), root.join("docs"), root.join("deploy"), root.join("client")]
        .map(|folder| entries(&folder))
        .concat();
    all.extend(entries(&root.join("recipes")).iter().filter(|path| path.is_dir()).flat_map(|folder| entries(folder)));
    all.retain(|path| path.extension().is_some_and(|end| end == "md"));
    all
}

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
async fn the_statements_and_settings_for_postgresql_and_for_a_view_pass_the_check() {
    let server = Postgres::start().await;
    server.execute(include_str!("../../src/source/postgres/schema.sql")).await;
    let reader = Reader::new(address::free()).with("DATABASE_URL", &server.url("postgres"));
    let secret = reader.folder.path().join("database-url");
    std::fs::write(&secret, server.url("jobcast")).expect("a file");
    let secret = secret.display().to_string();
    reader.with("JOBCAST_SOURCE__POSTGRES__URL_FILE", &secret).follow("docs/postgresql.md").await;

    server
        .execute(
            "CREATE TABLE tasks (id bigint PRIMARY KEY, external_id text NOT NULL);
             CREATE TABLE task_events (id bigint PRIMARY KEY, task_id bigint REFERENCES tasks, kind text,
                 at timestamptz, output text, error text);
             CREATE INDEX ON task_events (task_id, at); CREATE INDEX ON tasks (external_id)",
        )
        .await;
    let reader = Reader::new(address::free()).with("DATABASE_URL", &server.url("postgres"));
    reader.with("JOBCAST_SOURCE__POSTGRES__URL", &server.url("postgres")).follow("docs/map-your-table.md").await;
}

#[tokio::test]
async fn the_commands_of_the_protocol_do_what_they_say() {
    let daemon = Daemon::start().await;
    daemon.write("build-7", 0..3).await;
    daemon.set_status("build-7", "COMPLETED").await;
    Reader::new(daemon.http).follow("docs/protocol.md").await;
}

#[tokio::test]
async fn the_commands_for_operators_do_what_they_say() {
    let settings =
        [("stream.heartbeat", "1s"), ("http.cors.origins", "https://app.example.org"), ("shutdown.grace", "0s")];
    let mut daemon = Daemon::with(&settings).await;
    daemon.write("build-7", 0..3).await;
    daemon.set_status("build-7", "RUNNING").await;
    let public = format!("doctor http://{}", daemon.http);
    let reader = || {
        let at_daemon =
            [("doctor https://app.example.org", public.as_str()), ("127.0.0.1:9464", &daemon.admin.to_string())];
        at_daemon.into_iter().fold(Reader::new(daemon.http), |reader, (from, to)| reader.reading(from, to))
    };
    reader().follow("docs/behind-your-api.md").await;
    let operator = reader();
    let file = operator.folder.path().join("jobcast.toml");
    std::fs::write(&file, "[log]\nlevel = \"warn\"\n").expect("a file");
    let file = file.display().to_string();
    operator.reading("/etc/jobcast/jobcast.toml", &file).follow("docs/operate.md").await;
    reader().follow("docs/leaving.md").await;
    assert!(daemon.exit().await.success());
}

#[tokio::test]
async fn the_command_that_brings_an_authority_does_what_the_guide_to_tls_says() {
    let secure = Secure::start(&[]).await;
    let client = secure.client().await;
    client.write("build-7", 0..3).await;
    let ended = client.request("PUT", "/runner-jobs/build-7", br#"{"status":"COMPLETED"}"#).await.expect("an answer");
    assert_eq!(ended.status(), 200);
    let reader = Reader::new(secure.daemon.http);
    std::fs::write(reader.folder.path().join("company-ca.pem"), secure.authority.pem()).expect("a file");
    let url = format!("https://localhost:{}", address::localhost_to(secure.daemon.http).await);
    reader.reading("https://jobcast.example.org", &url).follow("docs/tls.md").await;
}

/// A reader in an empty folder, whose Jobcast has an address of its own in place of the default.
struct Reader {
    folder: TempDir,
    http: SocketAddr,
    variables: Vec<(String, String)>,
    /// Texts of the pages, each with what stands for it here.
    read_as: Vec<(String, String)>,
    serving: Option<Child>,
}

impl Reader {
    fn new(http: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a directory");
        let admin = address::free();
        // Commands whose address is no setting are given it on the command line.
        let wrapper = format!(
            "#!/bin/sh\ncase \"$1\" in\n  tail) case \"$*\" in *--url*) exec '{BINARY}' \"$@\" ;; esac; exec '{BINARY}' \"$@\" --url 'http://{http}' ;;\n  \
             demo) exec '{BINARY}' \"$@\" --listen '{http}' --admin-listen '{admin}' ;;\n  *) exec '{BINARY}' \"$@\" ;;\nesac\n"
        );
        let programs = folder.path().join("bin");
        std::fs::create_dir(&programs).expect("a directory");
        std::fs::write(programs.join("jobcast"), wrapper).expect("a program");
        let executable = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(programs.join("jobcast"), executable).expect("its rights");
        let path = format!("{}:{}", programs.display(), std::env::var("PATH").expect("PATH"));
        let mut reader = Self { folder, http, variables: Vec::new(), read_as: Vec::new(), serving: None };
        reader.set("PATH", &path);
        reader.set("JOBCAST_HTTP__LISTEN", &http.to_string());
        reader.set("JOBCAST_ADMIN__LISTEN", &admin.to_string());
        reader
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.set(name, value);
        self
    }

    /// Reads `to` where a page says `from`.
    fn reading(mut self, from: &str, to: &str) -> Self {
        self.read_as.push((from.into(), to.into()));
        self
    }

    fn set(&mut self, name: &str, value: &str) {
        self.variables.push((name.into(), value.into()));
    }

    /// Runs every marked block of a page in its order.
    async fn follow(mut self, page: &str) {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(page)).expect(page);
        let mut run = 0;
        for Block { language, mark, text } in blocks(&text) {
            let own = [("127.0.0.1:8080".to_string(), self.http.to_string())];
            let text = self.read_as.iter().chain(&own).fold(text, |text, (from, to)| text.replace(from, to));
            match (language, mark) {
                ("sh", "serve") => self.serve(&text).await,
                ("sh", "run") => self.run(page, &format!("set -euo pipefail\n{text}")).await,
                ("sql", "run") => {
                    let script = self.write("statements.sql", &text);
                    self.run(page, &format!("psql -qX -v ON_ERROR_STOP=1 -d \"$DATABASE_URL\" -f '{script}'")).await;
                }
                ("toml", name) if name.ends_with(".toml") => {
                    self.write(name, &text);
                    continue;
                }
                _ => continue,
            }
            run += 1;
        }
        assert!(run > 0, "{page} has no block that is marked as one to run");
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path.display().to_string()
    }

    async fn run(&self, page: &str, script: &str) {
        let output = finish(self.bash(script).stdout(Stdio::piped()).stderr(Stdio::piped())).await;
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        assert!(output.status.success(), "{page}:\n{script}\nsaid: {}", said.concat());
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

/// A fenced block.
struct Block<'a> {
    language: &'a str,
    /// The words after the language.
    mark: &'a str,
    text: String,
}

fn blocks(page: &str) -> Vec<Block<'_>> {
    let mut found = Vec::new();
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.trim_start().strip_prefix("```") {
            let (language, mark) = info.split_once(' ').unwrap_or((info, ""));
            let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            found.push(Block { language, mark, text: block.join("\n") });
        }
    }
    found
}
