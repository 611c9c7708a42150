//! The section of the source, with one part for each kind of store.
//!
//! The doc comment on a field is also its line in `config/jobcast.toml` and `docs/settings.md`, so it is written for
//! operators.

use super::mapping::{Create, EventOrder, Field, PayloadColumns, PayloadKind, TimestampUnit};
use super::redis::Redis;
use super::validate::Problems;
use super::values::{Secret, duration, one_of};
use crate::event::JobStatus;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Source {
    /// Kind of the event store: sqlite (embedded), postgres or redis.
    #[serde(deserialize_with = "one_of")]
    pub kind: SourceKind,
    /// Longest time between two reads of the tail. Wake-ups make it fast; this makes it certain.
    #[serde(with = "duration")]
    pub poll_interval: Duration,
    /// Wait after a first failed read. It doubles with each further one, with jitter.
    #[serde(with = "duration")]
    pub retry_initial: Duration,
    /// Longest wait after a failed read.
    #[serde(with = "duration")]
    pub retry_max: Duration,
    /// Time that the end of a job waits for transactions that were open when its status became final.
    #[serde(with = "duration")]
    pub settle: Duration,
    /// Time after a job's final status, or after the last event since, in which more events are waited for: many runners
    /// write their last lines late. A job that ended longer ago is complete at once.
    #[serde(with = "duration")]
    pub end_grace: Duration,
    /// Time that streams, and polls that may wait, wait for a job that the source does not know yet, before they are told
    /// that there is none. 0s: they are told at once.
    #[serde(with = "duration")]
    pub appear: Duration,
    /// Deliver only the first version of an event, and none that an UPDATE makes of it later. Only where UPDATEs can be
    /// seen, in PostgreSQL without a column xid, and where an index says that an event's id or number is unique. Holds for
    /// the last 200,000 events that the process has read: after a restart, from another replica, or to a reader that
    /// resumes from within what one read delivered, an UPDATE may arrive as the same event once more.
    pub dedupe: bool,
    /// Time without an answer of the source after which /readyz says no; 0s for never, since streams are held meanwhile.
    #[serde(with = "duration")]
    pub ready_grace: Duration,
    /// Time for which failures that only a person can mend (credentials, rights, tables) are told as passing ones, where the
    /// source has worked since the start: passwords are rotated, and tables migrated. 0s: not at all.
    #[serde(with = "duration")]
    pub forgive: Duration,
    /// Time that one read may take, for the tail and for history. Then it is given up, cancelled where the store knows how,
    /// and tried again.
    #[serde(with = "duration")]
    pub read_timeout: Duration,
    /// The embedded store, for kind "sqlite".
    pub sqlite: Sqlite,
    /// The tables of a database, for kind "postgres".
    pub postgres: Postgres,
    /// The streams of a server, a Cluster or a Sentinel group, for kind "redis".
    pub redis: Redis,
}

/// Kind of the event store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    Sqlite,
    Postgres,
    Redis,
}

/// Intervals of the loops that read a source: the part of its section that they are given, without any address in it.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Longest time between two reads of the tail.
    pub poll_interval: Duration,
    /// First wait after a failed read; it doubles with each further one.
    pub retry_initial: Duration,
    /// Longest wait after a failed read.
    pub retry_max: Duration,
}

impl Default for Source {
    fn default() -> Self {
        Self {
            kind: SourceKind::Sqlite,
            poll_interval: Duration::from_millis(500),
            retry_initial: Duration::from_millis(200),
            retry_max: Duration::from_secs(10),
            settle: Duration::from_secs(2),
            end_grace: Duration::from_secs(2),
            appear: Duration::from_secs(10),
            dedupe: false,
            ready_grace: Duration::ZERO,
            forgive: Duration::from_secs(60),
            read_timeout: Duration::from_secs(15),
            sqlite: Sqlite::default(),
            postgres: Postgres::default(),
            redis: Redis::default(),
        }
    }
}

impl Source {
    pub fn pace(&self) -> Pace {
        Pace { poll_interval: self.poll_interval, retry_initial: self.retry_initial, retry_max: self.retry_max }
    }

    pub(super) fn validate(&self, problems: &mut Problems) {
        problems.require_longer_than_zero(self.poll_interval, "source.poll_interval");
        problems.require(
            self.read_timeout >= Duration::from_millis(10),
            "source.read_timeout",
            "must be at least 10ms",
        );
        problems.require_longer_than_zero(self.retry_initial, "source.retry_initial");
        problems.require(
            self.retry_max >= self.retry_initial,
            "source.retry_max",
            "must be at least source.retry_initial",
        );
        self.sqlite.validate(problems);
        self.postgres.validate(self.kind == SourceKind::Postgres, problems);
        self.redis.validate(self.kind == SourceKind::Redis, problems);
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sqlite {
    /// The database file.
    pub path: PathBuf,
    /// Permission to make Jobcast's own tables: auto (in a file that is not there yet or has no tables; a file of others is
    /// opened read-only), always (in any file) or never.
    #[serde(deserialize_with = "one_of")]
    pub create: Create,
    /// Table or view of the events.
    pub events_table: String,
    /// Table or view of the jobs; "": there is none.
    pub jobs_table: String,
    /// Way in which the payload's column is read: auto (Jobcast's own column and those of type JSON or JSONB are JSON,
    /// numbers are numbers, blobs are UTF-8, texts are texts), json, text or bytes.
    pub payload_kind: PayloadKind,
    /// Unit of a timestamp that is a number: auto (by its size; a REAL may be a Julian day), s, ms, us or ns.
    pub timestamp_unit: TimestampUnit,
    /// Zone of a timestamp that is stored without one, such as Europe/Paris or +02:00.
    pub timestamp_zone: String,
    /// Names for stored types: { "20" = "info" }. A type that is not among them keeps its own.
    pub types: BTreeMap<String, String>,
    /// Columns of the event table, of which only job_id must be there. "" is none, "= text" a constant. A view or a table
    /// WITHOUT ROWID needs seq.
    pub columns: Columns,
    /// Columns of the job table.
    pub job_columns: JobColumns,
    /// Texts in the job table that say that a job has ended.
    pub statuses: FinalStatuses,
    /// Types of events that end a job, for stores without a job table.
    pub final_types: FinalStatuses,
}

impl Default for Sqlite {
    fn default() -> Self {
        Self {
            path: "jobcast.db".into(),
            create: Create::default(),
            events_table: "job_events".into(),
            jobs_table: "runner_jobs".into(),
            payload_kind: PayloadKind::default(),
            timestamp_unit: TimestampUnit::default(),
            timestamp_zone: "UTC".into(),
            types: BTreeMap::new(),
            columns: Columns::default(),
            job_columns: JobColumns::default(),
            statuses: FinalStatuses::usual_statuses(),
            final_types: FinalStatuses::default(),
        }
    }
}

impl Sqlite {
    /// Returns true if tables or columns have other names than Jobcast's own: then they are somebody else's.
    pub fn is_mapped(&self) -> bool {
        let usual = Self::default();
        self.events_table != usual.events_table
            || self.jobs_table != usual.jobs_table
            || self.columns != usual.columns
            || self.job_columns != usual.job_columns
    }

    fn validate(&self, problems: &mut Problems) {
        problems.require(!self.path.as_os_str().is_empty(), "source.sqlite.path", "must name a file");
        problems.require(!self.events_table.is_empty(), "source.sqlite.events_table", "must name a table");
        problems.require(!self.columns.job_id.is_empty(), "source.sqlite.columns.job_id", "must name a column");
        problems.require(!self.timestamp_zone.is_empty(), "source.sqlite.timestamp_zone", "must name a zone");
        problems.require(
            self.create != Create::Always || !self.is_mapped(),
            "source.sqlite.create",
            "must not be always where the settings name tables or columns of others: Jobcast makes its own ones only",
        );
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Postgres {
    /// postgres://user:password@host:5432/database?sslmode=verify-full, with a user that may SELECT. Also by
    /// JOBCAST_SOURCE__POSTGRES__URL_FILE.
    pub url: Secret,
    /// PEM file with the authority that sslmode=verify-ca and verify-full trust; "": the public ones.
    pub root_cert: PathBuf,
    /// Connections for history and ingest. The tail and the wake-ups have one more each.
    pub pool: u32,
    /// Table of the events, or "schema.table".
    pub events_table: String,
    /// Table of the jobs; "": there is none.
    pub jobs_table: String,
    /// Channel that a trigger notifies; "": Jobcast only polls.
    pub listen: String,
    /// Time by which the clock of one writer of a job may be behind the others'. Only for a table without columns xid and seq.
    #[serde(with = "duration")]
    pub look_back: Duration,
    /// Interval at which all of a job is read, to find events with an older time or a lower number than those that
    /// are looked for; longer where that takes long. Only without a column xid.
    #[serde(with = "duration")]
    pub sweep: Duration,
    /// Way in which the payload's column is read: auto (json and jsonb are JSON, bytea is UTF-8, texts are texts), json,
    /// text or bytes.
    pub payload_kind: PayloadKind,
    /// Unit of a timestamp that is a number: auto (by its size), s, ms, us or ns.
    pub timestamp_unit: TimestampUnit,
    /// Zone of a timestamp that is stored without one, such as Europe/Paris or +02:00.
    pub timestamp_zone: String,
    /// Order of a job's events: seq (where there is such a column, else as timestamp) or timestamp.
    pub order: EventOrder,
    /// Names for stored types: { "20" = "info" }. A type that is not among them keeps its own.
    pub types: BTreeMap<String, String>,
    /// Columns of the event table, of which only job_id must be there. "" is none, "= text" a constant. Without seq and
    /// xid, events are found by their timestamp.
    pub columns: Columns,
    /// Columns of the job table.
    pub job_columns: JobColumns,
    /// Texts in the job table that say that a job has ended.
    pub statuses: FinalStatuses,
    /// Types of events that end a job, for stores without a job table.
    pub final_types: FinalStatuses,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    /// Id of the event, unique within its job. Without one, seq is the id.
    pub id: String,
    /// Id of the job that the event belongs to.
    pub job_id: String,
    /// Id of the step.
    pub step_id: Field,
    /// Type of the event, or "= text" for the same type always.
    #[serde(rename = "type")]
    pub kind: Field,
    /// Time of the event.
    pub timestamp: String,
    /// Writer of the event, or "= text".
    pub actor: Field,
    /// Content of the event: a column, a list of columns for an object of them, or "*" for the whole row.
    pub payload: PayloadColumns,
    /// Ascending number of the row.
    pub seq: String,
    /// Transaction that wrote the row (xid8), in PostgreSQL.
    pub xid: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobColumns {
    /// Id of the job.
    pub id: String,
    /// Status of the job.
    pub status: String,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            id: "id".into(),
            job_id: "job_id".into(),
            step_id: "step_id".into(),
            kind: "type".into(),
            timestamp: "timestamp".into(),
            actor: "actor".into(),
            payload: "payload".into(),
            seq: "seq".into(),
            xid: "xid".into(),
        }
    }
}

impl Default for JobColumns {
    fn default() -> Self {
        Self { id: "id".into(), status: "status".into() }
    }
}

impl Default for Postgres {
    fn default() -> Self {
        Self {
            url: Secret::default(),
            root_cert: PathBuf::new(),
            pool: 4,
            events_table: "job_events".into(),
            jobs_table: "runner_jobs".into(),
            listen: "jobcast".into(),
            look_back: Duration::from_secs(60),
            sweep: Duration::from_secs(30),
            payload_kind: PayloadKind::default(),
            timestamp_unit: TimestampUnit::default(),
            timestamp_zone: "UTC".into(),
            order: EventOrder::default(),
            types: BTreeMap::new(),
            columns: Columns::default(),
            job_columns: JobColumns::default(),
            statuses: FinalStatuses::usual_statuses(),
            final_types: FinalStatuses::default(),
        }
    }
}

impl Postgres {
    fn validate(&self, is_used: bool, problems: &mut Problems) {
        problems.require(
            !is_used || self.url.get().is_some(),
            "source.postgres.url",
            "must be given for source.kind = \"postgres\", such as postgres://user:password@host:5432/database",
        );
        problems.require(self.pool > 0, "source.postgres.pool", "must be at least 1");
        problems.require(!self.events_table.is_empty(), "source.postgres.events_table", "must name a table");
        problems.require(!self.columns.job_id.is_empty(), "source.postgres.columns.job_id", "must name a column");
        problems.require(!self.timestamp_zone.is_empty(), "source.postgres.timestamp_zone", "must name a zone");
        problems.require_longer_than_zero(self.look_back, "source.postgres.look_back");
        problems.require_longer_than_zero(self.sweep, "source.postgres.sweep");
    }
}

/// Texts of a store that say how a job ended.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct FinalStatuses {
    /// Texts that mean COMPLETED.
    pub completed: Vec<String>,
    /// Texts that mean FAILED.
    pub failed: Vec<String>,
    /// Texts that mean CANCELLED.
    pub cancelled: Vec<String>,
}

impl FinalStatuses {
    pub(super) fn usual_statuses() -> Self {
        Self { completed: vec!["COMPLETED".into()], failed: vec!["FAILED".into()], cancelled: vec!["CANCELLED".into()] }
    }

    /// Returns the status that `text` stands for, if it is one of these.
    pub fn find(&self, text: &str) -> Option<JobStatus> {
        let is_in = |texts: &[String]| texts.iter().any(|one| one == text);
        if is_in(&self.completed) {
            Some(JobStatus::Completed)
        } else if is_in(&self.failed) {
            Some(JobStatus::Failed)
        } else if is_in(&self.cancelled) {
            Some(JobStatus::Cancelled)
        } else {
            None
        }
    }

    /// The entry of a list that stands for every text that no list names.
    pub const ANY: &str = "*";

    /// Returns the status that a text means which is there only once a job has ended: as [`FinalStatuses::find`] does,
    /// else that of the list with [`FinalStatuses::ANY`] in it.
    pub fn find_outcome(&self, text: &str) -> Option<JobStatus> {
        self.find(text).or_else(|| self.find(Self::ANY))
    }

    /// Returns the status that `text` means: one of these, else one of the usual words.
    pub fn resolve(&self, text: &str) -> Option<JobStatus> {
        self.find(text).or_else(|| text.parse().ok())
    }

    /// Returns the text to write for `status`: the first of these, else the usual word.
    pub fn spelling(&self, status: JobStatus) -> &str {
        let own = match status {
            JobStatus::Completed => self.completed.first(),
            JobStatus::Failed => self.failed.first(),
            JobStatus::Cancelled => self.cancelled.first(),
            JobStatus::Pending | JobStatus::Queued | JobStatus::Running => None,
        };
        own.map_or(status.as_str(), String::as_str)
    }

    pub fn all(&self) -> impl Iterator<Item = &str> {
        [&self.completed, &self.failed, &self.cancelled].into_iter().flatten().map(String::as_str)
    }
}
