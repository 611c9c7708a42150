//! The database as one process knows it: its address, its pools, its tables, its durable mark.

use super::address::{connect_options, describe};
use super::ends::PostgresEnds;
use super::error::QueryError;
use super::expansion::Expansion;
use super::first_versions::FirstVersions;
use super::open_list::KnownEnded;
use super::pool::{ConnectionPool, CurrentLife, Login, PooledConnection};
use super::position::{Life, Position};
use super::problem::SchemaProblem;
use super::session::Session;
use super::snapshot::DurableMark;
use super::sql;
use super::tables::{Children, Column, Relation, RelationKind, Tables};
use super::turns::Kind;
use crate::config;
use crate::error::{SourceCode, SourceError};
use crate::event::JobId;
use crate::source::times::is_misleading;
use crate::source::{Change, EventKey};
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{Notify, RwLock};

pub struct Store {
    pub settings: config::Postgres,
    /// Time that a standby gets to catch up, and a late writer after a job's end.
    pub settle: Duration,
    /// The ends of jobs, as this process has seen them.
    pub ends: PostgresEnds,
    /// For history, ingest and checks.
    pub pool: ConnectionPool,
    /// For the tail, which never waits for readers to give a connection back.
    pub tail_pool: ConnectionPool,
    /// The credentials of all of these, and of the connection that listens for notifications.
    pub login: Login,
    /// Wakes the listener when they have been renewed.
    pub renewed: Notify,
    /// The life of the database that the newest connection has found.
    life: CurrentLife,
    /// Read when they are first needed, and forgotten when the database says that they have changed.
    tables: RwLock<Option<KnownTables>>,
    /// No unique index says that the ids of a job's events differ.
    may_repeat_ids: AtomicBool,
    /// Host, port and database for messages; never a password.
    address: String,
    /// Port in the URL; `None` for a socket of this machine.
    port: Option<u16>,
    durable_mark: Mutex<DurableMark>,
    /// `None` where every version of an event is delivered.
    pub first_versions: Option<FirstVersions>,
    known_ended: Mutex<KnownEnded>,
    /// Length of payloads that are stored compressed.
    pub expansion: Expansion,
}

/// Least time between two looks at the catalogue because of a cursor, which anybody can make up.
const CATALOGUE_LIFETIME: Duration = Duration::from_secs(1);

struct KnownTables {
    tables: Arc<Tables>,
    read_at: Instant,
}

impl Store {
    /// Prepares the store. Fails only with an error that trying again cannot mend: a database that is away may come.
    pub async fn open(settings: &config::Source) -> Result<Arc<Self>, SourceError> {
        let store = Self::prepare(settings)?;
        match store.tables().await {
            Err(error) if !error.is_retryable() => return Err(error),
            Err(error) => tracing::warn!(code = error.code.as_str(), %error, "the database does not answer yet"),
            Ok(_) => {}
        }
        Ok(store)
    }

    /// Makes the store without asking the database anything.
    pub fn prepare(settings: &config::Source) -> Result<Arc<Self>, SourceError> {
        let options = connect_options(&settings.postgres)?;
        let read_timeout = settings.read_timeout;
        let (address, port) = (describe(&options), options.get_socket().is_none().then(|| options.get_port()));
        let login = Login::new(options);
        let life = CurrentLife::default();
        Ok(Arc::new(Self {
            settings: settings.postgres.clone(),
            settle: settings.settle,
            ends: PostgresEnds::new(settings.end_grace),
            pool: ConnectionPool::new(login.clone(), life.clone(), settings.postgres.pool, read_timeout),
            tail_pool: ConnectionPool::new(login.clone(), life.clone(), 1, read_timeout),
            login,
            life,
            renewed: Notify::new(),
            address,
            port,
            tables: RwLock::default(),
            may_repeat_ids: AtomicBool::default(),
            durable_mark: Mutex::default(),
            first_versions: settings.dedupe.then(FirstVersions::default),
            known_ended: Mutex::default(),
            expansion: Expansion::default(),
        }))
    }

    /// Host, port and database; never a password.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Makes ready to log in as these settings say, on connections that are opened from now on.
    pub fn prepare_login(self: &Arc<Self>, settings: &config::Postgres) -> Result<Change, SourceError> {
        let options = connect_options(settings)?;
        if describe(&options) != self.address {
            let cause = "it leads to another server or database than at the start";
            return Err(SourceError::new(
                SourceCode::CannotOpen,
                "reading source.postgres.url",
                cause,
                "restart for that",
            ));
        }
        let store = self.clone();
        Ok(Box::new(move || {
            store.login.renew(options);
            store.renewed.notify_one();
        }))
    }

    pub fn error(&self, operation: &str, error: QueryError) -> SourceError {
        error.into_source_error(format!("{operation} ({})", self.address))
    }

    /// Makes the error of an operation on the tables. If it says that they are not what they were, they are forgotten.
    pub async fn table_error(&self, operation: &str, error: QueryError) -> SourceError {
        if error.is_of_tables() {
            *self.tables.write().await = None;
        }
        self.error(operation, error)
    }

    /// Makes the error of an operation on one job, and narrows it down to that job if its rows can be the cause.
    pub async fn job_error(&self, operation: &str, error: QueryError, job: &JobId) -> SourceError {
        if error.is_of_rows() {
            return self.error(operation, error).of_job(job.clone());
        }
        self.table_error(operation, error).await
    }

    /// Returns true if a pooler or proxy stands before the server, which says that it was called at port `own`.
    pub fn is_behind_proxy(&self, own: Option<i32>) -> bool {
        self.port.is_some() && own != self.port.map(i32::from)
    }

    pub fn durable_mark(&self) -> MutexGuard<'_, DurableMark> {
        self.durable_mark.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true where a statement was answered by another server than the one that its session knows. That one counts
    /// from now on.
    pub fn is_elsewhere(&self, known: Option<Life>, answered: Option<Life>) -> bool {
        let is_elsewhere = known.zip(answered).is_some_and(|(known, answered)| known != answered);
        if is_elsewhere {
            self.life.learn(answered);
        }
        is_elsewhere
    }

    pub fn known_ended(&self) -> MutexGuard<'_, KnownEnded> {
        self.known_ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in a session of its own.
    pub async fn with_session<T>(
        &self,
        operation: &str,
        work: impl AsyncFnOnce(&mut Session<'_>) -> Result<T, QueryError>,
    ) -> Result<T, SourceError> {
        let tables = self.tables().await?;
        match self.run(tables, None, work).await {
            Ok(result) => Ok(result),
            Err(error) => Err(self.table_error(operation, error).await),
        }
    }

    /// The same, for work that reads the rows of one job.
    pub async fn with_job_session<T>(
        &self,
        operation: &str,
        job: &JobId,
        work: impl AsyncFnOnce(&mut Session<'_>) -> Result<T, QueryError>,
    ) -> Result<T, SourceError> {
        let tables = self.tables().await?;
        match self.run(tables, Some(Kind::lookup(job)), work).await {
            Ok(result) => Ok(result),
            Err(error) => Err(self.job_error(operation, error, job).await),
        }
    }

    async fn run<T>(
        &self,
        tables: Arc<Tables>,
        reader: Option<Kind>,
        work: impl AsyncFnOnce(&mut Session<'_>) -> Result<T, QueryError>,
    ) -> Result<T, QueryError> {
        let connection = match reader {
            Some(kind) => self.pool.get_for(kind).await?,
            None => self.pool.get().await?,
        };
        work(&mut Session { store: self, connection, tables }).await
    }

    /// Returns what tells events apart, by the newest look at the catalogue. Until the first one ids do.
    pub fn event_key(&self) -> EventKey {
        if self.may_repeat_ids.load(Relaxed) { EventKey::Cursor } else { EventKey::Id }
    }

    /// Returns the tables as they are known, or reads them from the catalogue. What another server said of its own counts
    /// no more.
    pub async fn tables(&self) -> Result<Arc<Tables>, SourceError> {
        if let Some(known) = self.tables.read().await.as_ref().filter(|known| !self.life.is_not(known.tables.life)) {
            return Ok(known.tables.clone());
        }
        let read_at = Instant::now();
        let catalogue = self.read_catalogue().await;
        let catalogue = catalogue.map_err(|error| self.error("looking at the tables", error))?;
        let tables = Arc::new(self.resolve_tables(&catalogue)?);
        tracing::info!(
            age = ?tables.best.xids,
            order = ?tables.best.order,
            has_jobs = tables.jobs.is_some(),
            "the tables are understood"
        );
        // It may be another server's.
        *self.durable_mark() = DurableMark::default();
        self.may_repeat_ids.store(tables.events.key == EventKey::Cursor, Relaxed);
        *self.tables.write().await = Some(KnownTables { tables: tables.clone(), read_at });
        Ok(tables)
    }

    /// Returns the tables for a position. If that needs columns which were not there, another process knows newer
    /// tables, and they are read again.
    pub async fn tables_for(&self, position: &Position) -> Result<Arc<Tables>, SourceError> {
        let tables = self.tables().await?;
        if position.is_beginning() || tables.supports(position.scheme) {
            return Ok(tables);
        }
        let mut known = self.tables.write().await;
        if known.as_ref().is_some_and(|known| known.read_at.elapsed() < CATALOGUE_LIFETIME) {
            return Ok(tables);
        }
        *known = None;
        drop(known);
        self.tables().await
    }

    async fn read_catalogue(&self) -> Result<Catalogue, QueryError> {
        let mut connection = self.pool.get().await?;
        Catalogue::read(&self.settings, &mut connection).await
    }

    fn resolve_tables(&self, catalogue: &Catalogue) -> Result<Tables, SourceError> {
        catalogue.resolve(&self.settings).map_err(|problems| {
            let operation = format!("looking at the tables ({})", self.address);
            let causes: Vec<String> = problems.iter().map(SchemaProblem::to_string).collect();
            let help = match &problems[..] {
                [only] => only.help(),
                _ => "`jobcast check` has a mend for each",
            };
            SourceError::new(SourceCode::Schema, operation, causes.join("; "), help)
        })
    }
}

/// Facts of the database that [`Tables`] are made of.
#[derive(Clone)]
pub struct Catalogue {
    pub events: Relation,
    /// `None` where no job table is configured.
    pub jobs: Option<Relation>,
    reports_wal: bool,
    /// `None` where the server does not tell.
    life: Option<Life>,
    /// The server knows `source.postgres.timestamp_zone`, and means by it what everybody does.
    knows_zone: bool,
}

impl Catalogue {
    pub async fn read(settings: &config::Postgres, connection: &mut PooledConnection) -> Result<Self, QueryError> {
        let mut events = read_relation(connection, &settings.events_table, &settings.columns.job_id).await?;
        if events.find(&settings.columns.xid).is_some_and(|column| column.tells_xid(events.kind)) {
            let (table, column) = (sql::quote_table(&events.name), sql::quote(&settings.columns.xid));
            // What a read of the rows is refused for is said when they are read.
            let others = ask(connection, sql::xid_of_another_life(&table, &column)).await?;
            // A subscription brings the transactions of its publisher, also such as this server has long ended.
            events.has_other_life = others.is_some() || is_subscribed(connection, &table).await?;
        }
        let has_end = ask(connection, sql::has_end(&sql::quote_table(&events.name))).await?;
        events.has_end = has_end.map(|row| row.try_get("has_end")).transpose()?.unwrap_or(false);
        events.tells_compression = ask(connection, sql::COMPRESSION.into()).await?.is_some();
        let jobs = match &*settings.jobs_table {
            "" => None,
            table => Some(read_relation(connection, table, &settings.job_columns.id).await?),
        };
        let reports_wal = ask(connection, sql::WAL_POSITION.into()).await?.is_some();
        let zone = &settings.timestamp_zone;
        let knows_zone = !is_misleading(zone) && ask(connection, sql::local_time(zone)).await?.is_some();
        let life = ask(connection, sql::LIFE.into()).await?;
        let life = life.as_ref().map(|row| row.try_get("life")).transpose()?.map(Life::of);
        Ok(Self { events, jobs, reports_wal, life, knows_zone })
    }

    /// The same without a job table.
    pub fn without_jobs(&self) -> Self {
        Self { jobs: None, ..self.clone() }
    }

    /// Understands the tables, or finds everything that is wrong with them.
    pub fn resolve(&self, settings: &config::Postgres) -> Result<Tables, Vec<SchemaProblem>> {
        let mut problems = Vec::new();
        let relations =
            [("source.postgres.events_table", Some(&self.events)), ("source.postgres.jobs_table", self.jobs.as_ref())];
        for (setting, relation) in relations {
            if let Some(missing) = relation.filter(|relation| !relation.is_there()) {
                problems.push(SchemaProblem::MissingRelation { setting, name: missing.name.clone() });
            }
        }
        if !self.knows_zone {
            problems.push(SchemaProblem::UnknownZone { name: settings.timestamp_zone.clone() });
        }
        if self.events.is_there() {
            let jobs = self.jobs.as_ref().filter(|jobs| jobs.is_there());
            match Tables::resolve(settings, &self.events, jobs, self.reports_wal) {
                Ok(tables) if problems.is_empty() => return Ok(Tables { life: self.life, ..tables }),
                Ok(_) => {}
                Err(more) => problems.extend(more),
            }
        }
        Err(problems)
    }
}

/// Returns true where a subscription fills the quoted table. Servers that know no subscriptions have none.
pub async fn is_subscribed(connection: &mut PooledConnection, table: &str) -> Result<bool, QueryError> {
    let row = ask(connection, sql::is_subscribed(table)).await?;
    Ok(row.map(|row| row.try_get("is_subscribed")).transpose()?.unwrap_or(false))
}

/// Returns the first row; `None` where there is none, or where the server refuses the statement.
async fn ask(connection: &mut PooledConnection, sql: String) -> Result<Option<PgRow>, QueryError> {
    match connection.query(sql).await {
        Ok(rows) => Ok(rows.into_iter().next()),
        Err(QueryError::Sqlx(sqlx::Error::Database(_))) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Reads a table or view from the catalogue; it has no columns where it is not there or may not be seen.
async fn read_relation(connection: &mut PooledConnection, name: &str, job_id: &str) -> Result<Relation, QueryError> {
    let rows = connection.query(sql::table_columns(name, job_id)).await?;
    let column = |row: &PgRow| {
        Ok::<_, QueryError>(Column {
            name: row.try_get("name")?,
            kind: row.try_get("type")?,
            may_be_null: row.try_get("may_be_null")?,
            has_default: row.try_get("has_default")?,
            is_unique: row.try_get("is_unique")?,
            is_enum: row.try_get("is_enum")?,
        })
    };
    let (mut kind, mut counts_rows) = (RelationKind::Table, false);
    if let Some(row) = rows.first() {
        counts_rows = row.try_get("counts_rows")?;
        kind = match row.try_get::<String, _>("relation_kind")?.as_str() {
            "r" if row.try_get("has_children")? => RelationKind::Parent(Children::Heirs),
            "r" => RelationKind::Table,
            "p" => RelationKind::Parent(Children::Partitions),
            "v" => RelationKind::View,
            _ => RelationKind::Other,
        };
    }
    let columns = rows.iter().map(column).collect::<Result<_, _>>()?;
    Ok(Relation {
        name: name.into(),
        kind,
        columns,
        has_other_life: false,
        counts_rows,
        has_end: false,
        tells_compression: false,
    })
}
