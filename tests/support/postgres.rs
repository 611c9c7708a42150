//! A PostgreSQL server of the tests' own, on a throw-away directory. PostgreSQL refuses to run as root: then it runs as
//! the user `postgres`.

use super::address::{self, host};
use super::eventually;
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, Row};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

pub struct Postgres {
    folder: TempDir,
    pub port: u16,
}

impl Postgres {
    /// A server with an empty database; its trust is the machine's own.
    pub async fn start() -> Self {
        let server = Self::prepare();
        server.up().await;
        server
    }

    /// The same, with more settings.
    pub async fn start_with(settings: &str) -> Self {
        let server = Self::prepare();
        server.set(settings);
        server.up().await;
        server
    }

    /// A cluster that has not been started yet.
    fn prepare() -> Self {
        let server = Self { folder: folder(), port: address::port() };
        run(&["initdb", "--auth=trust", "--username=postgres", "--no-sync", "-D", text(&server.data())]);
        server.set(&format!(
            "listen_addresses = '{}'\nunix_socket_directories = ''\nfsync = off\nport = {}\n\
             max_prepared_transactions = 64\nmax_connections = 200\nautovacuum_naptime = 5s\n",
            host(),
            server.port
        ));
        server
    }

    /// A physical standby of this server, streaming.
    pub async fn standby(&self) -> Self {
        let standby = self.back_up(&["-R"]);
        standby.up().await;
        standby
    }

    /// A base backup of this server, as a cluster that has not been started yet.
    fn back_up(&self, more: &[&str]) -> Self {
        let backup = Self { folder: folder(), port: address::port() };
        let (data, from) = (backup.data(), self.connection_string());
        let words = ["pg_basebackup", "-D", text(&data), "-c", "fast", "--no-sync", "-d", &from];
        run(&[&words, more].concat());
        backup.set(&format!("port = {}\n", backup.port));
        backup
    }

    /// Makes the server listen on a Unix socket, too, and returns its directory.
    pub async fn listen_on_socket(&self) -> String {
        let socket = text(self.folder.path()).to_string();
        self.set(&format!("unix_socket_directories = '{socket}'\n"));
        self.down("fast");
        self.up().await;
        socket
    }

    /// The server's address as libpq and its tools take it, as the owner.
    pub fn connection_string(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", host(), self.port)
    }

    /// A server that keeps its write-ahead log in an archive.
    pub async fn start_archiving() -> Self {
        let server = Self::prepare();
        std::fs::create_dir(server.archive()).expect("a directory");
        own(&server.archive());
        server.set(&format!("archive_mode = on\narchive_command = 'cp %p {}/%f'\n", text(&server.archive())));
        server.up().await;
        server
    }

    fn archive(&self) -> PathBuf {
        self.folder.path().join("archive")
    }

    /// A base backup of a server that archives, for [`Postgres::recover`].
    pub fn base_backup(&self) -> Self {
        self.back_up(&[])
    }

    /// Recovers this base backup by the archive of `from`, up to and with the transaction `last`, and on a timeline of
    /// its own.
    pub async fn recover(&self, from: &Self, last: &str) {
        let mut source = from.connect().await;
        let segment = "SELECT pg_walfile_name(pg_current_wal_insert_lsn()), pg_switch_wal()";
        let segment: String = source.fetch_one(segment).await.expect("a segment").get(0);
        eventually("the log to be archived", async || {
            let archived = "SELECT last_archived_wal FROM pg_stat_archiver";
            let archived: Option<String> = source.fetch_one(archived).await.expect("the archiver").get(0);
            archived.filter(|archived| *archived >= segment)
        })
        .await;
        let signal = self.data().join("recovery.signal");
        std::fs::write(&signal, "").expect("a signal");
        own(&signal);
        self.set(&format!(
            "archive_mode = off\nrestore_command = 'cp {}/%f %p'\nrecovery_target_xid = '{last}'\n\
             recovery_target_action = 'promote'\n",
            text(&from.archive())
        ));
        self.up().await;
        let mut recovered = self.connect().await;
        eventually("the end of the recovery", async || {
            let is_over = recovered.fetch_one("SELECT NOT pg_is_in_recovery()").await.expect("an answer");
            is_over.get::<bool, _>(0).then_some(())
        })
        .await;
    }

    /// A new cluster that this server, which is down and stays so, is upgraded to by `pg_upgrade`: of the same version,
    /// which it takes for one as good as the next.
    pub async fn upgrade(&self) -> Self {
        let new = Self::prepare();
        let bin = program("pg_upgrade").parent().expect("a directory").to_path_buf();
        let (bin, old_data, new_data) = (text(&bin).to_string(), self.data(), new.data());
        let words = ["pg_upgrade", "--link", "-U", "postgres", "-b", &bin, "-B", &bin];
        let clusters = ["-d", text(&old_data), "-D", text(&new_data)];
        // It keeps its socket and its notes there.
        let status = command(&[&words[..], &clusters].concat()).current_dir(new.folder.path()).status();
        assert!(status.expect("pg_upgrade").success(), "pg_upgrade");
        new.up().await;
        new
    }

    /// The whole database as SQL.
    pub async fn dump(&self) -> String {
        let url = self.url("postgres");
        let dump = move || command(&["pg_dump", "-d", &url]).stdout(Stdio::piped()).output();
        let dumped = tokio::task::spawn_blocking(dump).await.expect("pg_dump").expect("pg_dump");
        assert!(dumped.status.success(), "{dumped:?}");
        String::from_utf8(dumped.stdout).expect("a dump")
    }

    /// Makes a standby a primary.
    pub async fn promote(&self) {
        run(&["pg_ctl", "promote", "--silent", "-D", text(&self.data())]);
    }

    /// Waits until this standby has everything that its primary has written so far.
    pub async fn caught_up_with(&self, primary: &Self) {
        let written = "SELECT (pg_current_wal_lsn() - '0/0')::bigint";
        let written: i64 = primary.connect().await.fetch_one(written).await.expect("a position").get(0);
        let mut standby = self.connect().await;
        let replayed = "SELECT (pg_last_wal_replay_lsn() - '0/0')::bigint";
        eventually("the standby", async || {
            (standby.fetch_one(replayed).await.expect("a position").get::<i64, _>(0) >= written).then_some(())
        })
        .await;
    }

    /// Sets the next transaction id of a server that is down.
    pub fn move_xids(&self, next: u32) {
        // A page of the commit log has to be there.
        let segment = self.data().join("pg_xact").join(format!("{:04X}", next / (1 << 20)));
        std::fs::write(&segment, vec![0; 1 << 18]).expect("a segment");
        own(&segment);
        run(&["pg_resetwal", "-x", &next.to_string(), "-D", text(&self.data())]);
    }

    /// More settings; they count from the next start on.
    pub fn set(&self, settings: &str) {
        let file = self.data().join("postgresql.auto.conf");
        let known = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(&file, known + settings).expect("settings");
    }

    /// Replaces pg_hba.conf, which says who may connect and how.
    pub fn let_in(&self, rules: &str) {
        std::fs::write(self.data().join("pg_hba.conf"), rules).expect("rules");
        run(&["pg_ctl", "reload", "--silent", "-D", text(&self.data())]);
    }

    /// A file that only the server's own user may read.
    pub fn keep(&self, name: &str, content: &str) {
        let file = self.data().join(name);
        std::fs::write(&file, content).expect("a file");
        own(&file);
        std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("its rights");
    }

    /// Waits until the server has logged a text at least this often. A daemon may give up on a statement earlier.
    pub async fn logs_times(&self, text: &str, times: usize) {
        let logged = async || (self.log().matches(text).count() >= times).then_some(());
        eventually(&format!("{text:?} in PostgreSQL's log, {times} times"), logged).await;
    }

    /// Everything that the server has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).expect("the server's log")
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
        PgConnectOptions::new().host(&host().to_string()).port(self.port).username("postgres").database("postgres")
    }

    /// Connects as its owner.
    pub async fn connect(&self) -> PgConnection {
        self.options().connect().await.expect("PostgreSQL")
    }

    /// Returns true where a table can be read from a block of it on, as PostgreSQL 14 was the first to do.
    pub async fn reads_ends_of_tables(&self) -> bool {
        let version = "SELECT current_setting('server_version_num')::int >= 140000";
        self.connect().await.fetch_one(version).await.expect("a version").get(0)
    }

    pub async fn execute(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut self.connect().await).await.expect(sql);
    }

    /// A script, as an operator runs it.
    pub async fn psql(&self, script: &str) {
        assert!(self.try_psql(script).await, "{script}");
    }

    /// The same; false where it fails.
    pub async fn try_psql(&self, script: &str) -> bool {
        let file = self.folder.path().join("script.sql");
        std::fs::write(&file, script).expect("a script");
        let url = self.url("postgres");
        // it waits for writers, which are tasks of the same thread
        let run = move || command(&["psql", "-qX", "-v", "ON_ERROR_STOP=1", "-d", &url, "-f", text(&file)]).status();
        tokio::task::spawn_blocking(run).await.expect("psql").expect("psql").success()
    }

    pub fn address(&self) -> SocketAddr {
        (host(), self.port).into()
    }

    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@{}/postgres", self.address())
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

/// Appends numbered events, each in a transaction of its own unless one is open.
pub async fn append(to: &mut PgConnection, job: &str, numbers: impl IntoIterator<Item = u64>) {
    for number in numbers {
        let sql = format!(
            "INSERT INTO job_events (id, job_id, type, payload) VALUES ('e-{number}', '{job}', 'x', '{{\"n\":{number}}}')"
        );
        to.execute(sqlx::raw_sql(AssertSqlSafe(sql))).await.expect("insert");
    }
}

/// PgBouncer before a server, in transaction mode: each transaction may go to another connection.
pub struct Pooler {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Pooler {
    pub async fn start(server: &Postgres) -> Self {
        let (folder, port) = (folder(), address::port());
        let users = folder.path().join("users");
        std::fs::write(&users, "\"postgres\" \"\"\n\"reader\" \"\"\n").expect("users");
        own(&users);
        let file = folder.path().join("settings");
        std::fs::write(&file, Self::settings(&users, port, server)).expect("settings");
        own(&file);
        let program = ["/usr/sbin/pgbouncer", "pgbouncer"].into_iter().find(|path| Path::new(path).exists());
        let mut command = as_postgres(Path::new(program.unwrap_or("pgbouncer")));
        let child = command.args(["-q", text(&file)]).stderr(Stdio::null()).spawn().expect("PgBouncer");
        let pooler = Self { child, port, folder };
        eventually("PgBouncer to answer", async || pooler.options().connect().await.ok()).await;
        pooler
    }

    /// Leads to another server from now on. Its clients' connections stay.
    pub async fn lead_to(&self, server: &Postgres) {
        let [users, file] = ["users", "settings"].map(|name| self.folder.path().join(name));
        std::fs::write(&file, Self::settings(&users, self.port, server)).expect("settings");
        let told = Command::new("kill").args(["-HUP", &self.child.id().to_string()]).status();
        assert!(told.expect("kill").success());
        eventually("PgBouncer to lead elsewhere", async || {
            let mut connection = self.options().connect().await.ok()?;
            let port = connection.fetch_one(sqlx::raw_sql("SHOW port")).await.ok()?.get::<String, _>(0);
            (port == server.port.to_string()).then_some(())
        })
        .await;
    }

    fn settings(users: &Path, port: u16, server: &Postgres) -> String {
        format!(
            "[databases]\npostgres = host={host} port={}\n[pgbouncer]\nlisten_addr = {host}\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {}\npool_mode = transaction\ndefault_pool_size = 3\n\
             server_lifetime = 1\n",
            server.port,
            text(users),
            host = host(),
        )
    }

    fn options(&self) -> PgConnectOptions {
        let options = PgConnectOptions::new().host(&host().to_string()).port(self.port);
        let options = options.username("postgres").database("postgres");
        options.extra_float_digits(None).statement_cache_capacity(0)
    }

    pub fn url(&self, user: &str) -> String {
        format!("postgres://{user}@{}:{}/postgres", host(), self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a directory");
    own(folder.path());
    folder
}

fn own(path: &Path) {
    if is_root() {
        let owned = Command::new("chown").arg("postgres").arg(path).status();
        assert!(owned.expect("chown").success());
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path")
}

fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0)
}

/// That of the folder `POSTGRESQL`, if it has one, else the newest one that Debian has installed, else that of the path.
fn program(name: &str) -> PathBuf {
    let chosen = std::env::var_os("POSTGRESQL").map(|folder| Path::new(&folder).join(name));
    let mut folders: Vec<_> = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().collect();
    folders.sort_by_key(|folder| folder.file_name());
    let newest = folders.last().map(|folder| folder.path().join("bin").join(name));
    chosen.into_iter().chain(newest).find(|program| program.exists()).unwrap_or_else(|| name.into())
}

fn command(words: &[&str]) -> Command {
    let mut command = as_postgres(&program(words[0]));
    command.args(&words[1..]);
    command
}

fn as_postgres(program: &Path) -> Command {
    let mut command = if is_root() {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.current_dir("/").stdout(Stdio::null());
    command
}

fn run(words: &[&str]) {
    let status = command(words).status().expect("PostgreSQL's programs");
    assert!(status.success(), "{words:?}: {status}");
}
