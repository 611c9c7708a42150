//! The statements on the tables of a file. The id of a job is bound to `?1` to `?4` ([`Id::bind`]), what follows from `?5`
//! on.

use super::catalogue::RowNumbers;
use super::ids::Id;
use super::position::Of;
use super::tables::{EventTable, JobTable, Numbering, Tables};
use crate::config::FinalStatuses;
use crate::event::JobStatus;

/// The number of the first parameter after the job's id.
const NEXT: usize = 1 + Id::PARAMETERS;

/// Ids of watched jobs, each in every way in which it may be stored. Without a type, they compare with the ids in a table
/// as bound ones do.
pub const MAKE_WATCHED: &str = "CREATE TEMP TABLE watched (job_id BLOB PRIMARY KEY) WITHOUT ROWID";

/// Ids in a list of `[text, bytes in hexadecimal, number or null, bytes of a UUID or null]`.
const LISTED: &str = "SELECT value ->> 0 FROM json_each(?1) UNION ALL SELECT unhex(value ->> 1) FROM json_each(?1)
     UNION ALL SELECT value ->> 2 FROM json_each(?1) WHERE value ->> 2 IS NOT NULL
     UNION ALL SELECT unhex(value ->> 3) FROM json_each(?1) WHERE value ->> 3 IS NOT NULL";

pub fn insert_watched() -> String {
    format!("INSERT OR IGNORE INTO temp.watched {LISTED}")
}

pub fn delete_watched() -> String {
    format!("DELETE FROM temp.watched WHERE job_id IN ({LISTED})")
}

impl EventTable {
    /// The columns of an event, as [`Tables::read_event`] reads them.
    pub fn list(&self) -> String {
        let [id, step, kind, time, actor, payload] = &self.parts;
        let identity = self.identity.as_ref().map_or_else(String::new, |identity| format!(", {identity}"));
        let (number, job) = (&self.number, self.job.sql());
        format!("{number}, {id}, {job}, {step}, {kind}, {time}, {actor}, {payload}{identity}")
    }

    /// Expression that tells rows apart which have had the same number, never null.
    fn identity(&self) -> String {
        format!("coalesce({}, '')", self.identity.as_ref().unwrap_or(&self.parts[0]))
    }

    /// Rows of a job: one part for each way in which its id may be stored, each by index.
    fn of_job(&self, select: &str, job: &Id, more: &str) -> String {
        let name = &self.name;
        let parts = self.job.conditions(job, 1);
        let parts = parts.iter().map(|condition| format!("SELECT {select} FROM {name} e WHERE {condition}{more}"));
        parts.collect::<Vec<_>>().join(" UNION ALL ")
    }

    /// Expression: the value of some row of a job, else null.
    fn value_of_job(&self, select: &str, job: &Id, more: &str) -> String {
        let name = &self.name;
        let parts = self.job.conditions(job, 1);
        let parts = parts.iter().map(|condition| format!("(SELECT {select} FROM {name} e WHERE {condition}{more})"));
        format!("coalesce({})", parts.collect::<Vec<_>>().join(", "))
    }

    /// The end of a statement that selects the columns of an event: one more row for a job of which a value that is to be a
    /// number is none, and stands below every number. Its first column holds a text, which comes after all numbers, the
    /// others are null. Such a value above every number is among the rows after any.
    fn or_unnumbered(&self, job: &Id) -> String {
        if self.numbering != Numbering::Job {
            return String::new();
        }
        let (name, number, lowest) = (&self.name, &self.number, i64::MIN);
        let nulls = ", NULL".repeat(self.width() - 1);
        let parts = self.job.conditions(job, 1);
        let parts = parts.iter().map(|condition| {
            format!(
                " UNION ALL SELECT typeof(number){nulls}
                 FROM (SELECT {number} AS number FROM {name} e WHERE {condition} ORDER BY 1 LIMIT 1)
                 WHERE typeof(number) <> 'integer' OR number = {lowest}"
            )
        });
        parts.collect()
    }

    /// The number of the columns of an event.
    pub fn width(&self) -> usize {
        if self.identity.is_some() { 9 } else { 8 }
    }

    /// Expression: the highest number of a row, null where there is none.
    fn highest(&self) -> String {
        format!("(SELECT max({}) FROM {} e)", self.number, self.name)
    }

    /// Expression: the highest number that was given out for the table, or below every number.
    fn newest(&self) -> String {
        let highest = self.highest();
        match self.numbering {
            Numbering::Table(RowNumbers::Autoincrement) => {
                let given = format!("(SELECT seq FROM sqlite_sequence WHERE name = {})", self.name_text);
                format!("coalesce({given}, {highest}, {})", i64::MIN)
            }
            Numbering::Table(RowNumbers::Reused | RowNumbers::Renumbered) | Numbering::Job => {
                format!("coalesce({highest}, {})", i64::MIN)
            }
        }
    }

    /// The highest number that was given out, as a look has it.
    pub fn newest_number(&self) -> String {
        match self.numbering {
            Numbering::Table(_) => format!("SELECT {}", self.newest()),
            Numbering::Job => format!("SELECT {}", i64::MAX),
        }
    }

    /// Expression: the highest number that a row of the job can have had, or below every number.
    fn newest_of(&self, job: &Id) -> String {
        match self.numbering {
            Numbering::Table(_) => self.newest(),
            Numbering::Job => {
                let rows = self.of_job(&format!("max({}) AS number", self.number), job, "");
                format!("coalesce((SELECT max(number) FROM ({rows})), {})", i64::MIN)
            }
        }
    }

    /// The numbers of a job's events, in no order.
    pub fn all_of_job(&self, job: &Id) -> String {
        self.of_job(&self.number, job, "")
    }

    /// Events of a job after number `?5`, of which a page takes some.
    pub fn rest_of_job(&self, job: &Id) -> String {
        format!("{} ORDER BY 1 LIMIT ?6", self.of_job(&self.list(), job, &format!(" AND {} > ?5", self.number)))
    }

    /// Events of a job after number `?5` up to `?6`, at most `?7`. Where each job has numbers of its own, what is above every
    /// number is no integer: it comes with those up to the highest one.
    pub fn range_of_job(&self, job: &Id) -> String {
        let number = &self.number;
        let range = match self.numbering {
            Numbering::Table(_) => format!(" AND {number} > ?5 AND {number} <= ?6"),
            Numbering::Job => format!(" AND {number} > ?5 AND ({number} <= ?6 OR ?6 = {})", i64::MAX),
        };
        format!("{}{} ORDER BY 1 LIMIT ?7", self.of_job(&self.list(), job, &range), self.or_unnumbered(job))
    }

    /// Events of watched jobs after number `?1` up to `?2`, at most `?3`, and rows without a job.
    pub fn range_of_watched(&self) -> String {
        let (list, name, number, job) = (self.list(), &self.name, &self.number, self.job.sql());
        format!(
            "SELECT {list} FROM {name} e NOT INDEXED WHERE {number} > ?1 AND {number} <= ?2
               AND ({job} IN (SELECT job_id FROM temp.watched) OR {job} IS NULL)
             ORDER BY {number} LIMIT ?3"
        )
    }

    /// The identity of the row with number `?5`, null where another job has it. No row where none has it.
    pub fn at_number(&self, job: &Id) -> String {
        let (name, number, identity) = (&self.name, &self.number, self.identity());
        match self.numbering {
            Numbering::Job => self.of_job(&identity, job, &format!(" AND {number} = ?5")),
            Numbering::Table(_) => {
                let is_own = self.job.conditions(job, 1).join(" OR ");
                format!("SELECT CASE WHEN {is_own} THEN {identity} END FROM {name} e WHERE {number} = ?5")
            }
        }
    }

    /// Number, identity and job of the row with number `?1`.
    pub fn row_at_number(&self) -> String {
        self.row_at("?1")
    }

    /// Number, identity and job of the row with the highest number.
    pub fn highest_row(&self) -> String {
        self.row_at(&self.highest())
    }

    fn row_at(&self, place: &str) -> String {
        let (name, number, identity, job) = (&self.name, &self.number, self.identity(), self.job.sql());
        format!("SELECT {number}, {identity}, {job} FROM {name} e WHERE {number} = {place}")
    }

    /// Number and identity of the event before a job's last `?5` events.
    pub fn before_last(&self, job: &Id) -> String {
        let rows = self.of_job(&format!("{}, {}", self.number, self.identity()), job, "");
        format!("{rows} ORDER BY 1 DESC LIMIT 1 OFFSET ?5")
    }

    /// Expressions for the first row of a page after number `?5`: the identity of the row with that number, of the job or of
    /// any; and, where it is of any, that row's job, and number and identity of the job's newest row up to there.
    fn held(&self, job: &Id, of: Of) -> (String, String) {
        let (name, number, identity) = (&self.name, &self.number, self.identity());
        match of {
            Of::Job => {
                let held = self.value_of_job(&identity, job, &format!(" AND {number} = ?5"));
                (held, "NULL, NULL, NULL".into())
            }
            Of::Any => {
                let at = |what: &str| format!("(SELECT {what} FROM {name} e WHERE {number} = ?5)");
                let select = format!("{number} AS number, {identity} AS identity");
                let rows = self.of_job(&select, job, &format!(" AND {number} <= ?5"));
                let own = |what: &str| format!("(SELECT {what} FROM ({rows} ORDER BY 1 DESC LIMIT 1))");
                (at(&identity), format!("{}, {}, {}", at(self.job.sql()), own("number"), own("identity")))
            }
        }
    }

    /// The highest number of a job's events.
    pub fn highest_of_job(&self, job: &Id) -> String {
        format!("SELECT {}", self.newest_of(job))
    }

    /// Number and identity of the event with the id that is bound from `?5` on.
    pub fn find(&self, job: &Id, id: &Id) -> String {
        let select = format!("{}, {}", self.number, self.identity());
        let ids = self.id.conditions(id, NEXT);
        let parts = ids.iter().map(|condition| self.of_job(&select, job, &format!(" AND {condition}")));
        format!("{} ORDER BY 1 LIMIT 1", parts.collect::<Vec<_>>().join(" UNION ALL "))
    }

    /// The stored type of the newest event of a job, up to number `?6`, whose type is in the list `?5`.
    pub fn newest_of_types(&self, job: &Id) -> String {
        let kind = &self.kind;
        let is_listed =
            format!(" AND CAST({kind} AS TEXT) IN (SELECT value FROM json_each(?5)) AND {} <= ?6", self.number);
        let rows = self.of_job(&format!("{}, CAST({kind} AS TEXT)", self.number), job, &is_listed);
        format!("{rows} ORDER BY 1 DESC LIMIT 1")
    }
}

impl JobTable {
    /// Expression: the status of a job, empty where it is null, and null where there is no such job.
    fn status_of(&self, job: &Id) -> String {
        let (name, status) = (&self.name, &self.status);
        let parts = self.id.conditions(job, 1);
        let parts =
            parts.iter().map(|condition| format!("(SELECT coalesce({status}, '') FROM {name} j WHERE {condition})"));
        format!("coalesce({})", parts.collect::<Vec<_>>().join(", "))
    }

    /// The status of a job.
    pub fn find(&self, job: &Id) -> String {
        format!("SELECT {}", self.status_of(job))
    }

    /// Ids and statuses of watched jobs.
    fn watched(&self) -> String {
        let (name, id, status) = (&self.name, self.id.sql(), &self.status);
        format!(
            "SELECT 1, {id}, {status}, 0, NULL, NULL, NULL FROM {name} j WHERE {id} IN (SELECT job_id FROM temp.watched)"
        )
    }
}

impl Tables {
    fn status_of(&self, job: &Id) -> String {
        self.jobs.as_ref().map_or_else(|| "NULL".into(), |jobs| jobs.status_of(job))
    }

    /// One row: 1 where one of the tables has the job, else 0.
    pub fn exists(&self, job: &Id) -> String {
        let rows = self.events.of_job("1", job, "");
        match &self.jobs {
            Some(jobs) => format!("SELECT EXISTS ({rows}) OR {} IS NOT NULL", jobs.status_of(job)),
            None => format!("SELECT EXISTS ({rows})"),
        }
    }

    /// Expression, after a comma: the number of the newest change of a job's status. Nothing where the table has none.
    fn changed_of(&self, job: &Id) -> String {
        match &self.jobs {
            Some(JobTable { name, id, .. }) if self.is_own => {
                let is_job = id.conditions(job, 1).join(" OR ");
                format!(", (SELECT max(changed) FROM {name} j WHERE {is_job})")
            }
            _ => String::new(),
        }
    }

    /// Events of a job after number `?5`, at most `?6` rows. The first row has no number; it holds the identity at that
    /// number, the highest number, the status of the job, and more of the row at that number ([`EventTable::held`]).
    pub fn page(&self, job: &Id, after: Of) -> String {
        let events = &self.events;
        let number = &events.number;
        let (held, holder) = events.held(job, after);
        let (newest, status) = (events.newest_of(job), self.status_of(job));
        let more = if events.identity.is_some() { ", NULL" } else { "" };
        let rows = events.of_job(&events.list(), job, &format!(" AND {number} > ?5"));
        let unnumbered = events.or_unnumbered(job);
        format!(
            "SELECT NULL, {held}, {newest}, {status}, {holder}, NULL{more} UNION ALL {rows}{unnumbered} ORDER BY 1 LIMIT ?6"
        )
    }

    /// One row: the newest event of a job, its status, and, of Jobcast's own tables, the number of its newest change, all
    /// null where there is none.
    pub fn newest(&self, job: &Id) -> String {
        let rows = self.events.of_job(&self.events.list(), job, "");
        let (status, changed) = (self.status_of(job), self.changed_of(job));
        format!("SELECT r.*, {status}{changed} FROM (SELECT 1) LEFT JOIN ({rows} ORDER BY 1 DESC LIMIT 1) r")
    }

    /// The look of the tail. The first row holds the identity at number `?2`, that of the highest row, the highest number
    /// that was given out, the jobs of the two rows, and the number of the second; the others are jobs with their statuses
    /// and the number of its change. Those of Jobcast's own tables are all that changed after `?1`, and those in the list
    /// `?3`.
    pub fn look(&self) -> String {
        let events = &self.events;
        let (name, number, identity, job) = (&events.name, &events.number, events.identity(), events.job.sql());
        let first = match events.numbering {
            Numbering::Table(_) => {
                let (newest, highest) = (events.newest(), events.highest());
                let at = |what: &str, place: &str| format!("(SELECT {what} FROM {name} e WHERE {number} = {place})");
                let (marked, last) = (at(&identity, "?2"), at(&identity, &highest));
                format!("SELECT 0, {marked}, {last}, {newest}, {}, {}, {highest}", at(job, "?2"), at(job, &highest))
            }
            Numbering::Job => format!("SELECT 0, NULL, NULL, {}, NULL, NULL, NULL", i64::MAX),
        };
        match &self.jobs {
            None => first,
            Some(_) if self.is_own => format!("{first} UNION ALL {OWN_STATUSES}"),
            Some(jobs) => format!("{first} UNION ALL {}", jobs.watched()),
        }
    }

    /// Jobs whose status is in the list `?1`, or all where it is null: id, status, time of the newest event. At most `?2`,
    /// the one with the newest activity first.
    pub fn list_jobs(&self) -> String {
        let EventTable { name, number, job, parts: [_, _, _, time, ..], .. } = &self.events;
        let job = job.sql();
        match &self.jobs {
            Some(_) if self.is_own => OWN_LIST.into(),
            Some(JobTable { name: jobs, id, status }) => {
                let id = id.sql();
                if !self.events.is_indexed {
                    // The newest event of each job would be a look at all events.
                    return format!(
                        "SELECT {id}, {status}, NULL FROM {jobs} j
                         WHERE (?1 IS NULL OR CAST({status} AS TEXT) IN (SELECT value FROM json_each(?1)))
                         ORDER BY {id} DESC LIMIT ?2"
                    );
                }
                let newest = format!("FROM {name} e WHERE {job} = {id} ORDER BY {number} DESC LIMIT 1");
                format!(
                    "SELECT {id}, {status}, (SELECT {time} {newest}) FROM {jobs} j
                     WHERE (?1 IS NULL OR CAST({status} AS TEXT) IN (SELECT value FROM json_each(?1)))
                     ORDER BY (SELECT {number} {newest}) DESC, {id} DESC LIMIT ?2"
                )
            }
            None => format!(
                "SELECT {job}, NULL, {time}, max({number}) FROM {name} e WHERE ?1 IS NULL AND {job} IS NOT NULL
                 GROUP BY {job} ORDER BY 4 DESC LIMIT ?2"
            ),
        }
    }
}

const OWN_STATUSES: &str = "SELECT 1, j.id, j.status, j.changed, NULL, NULL, NULL FROM runner_jobs j
       WHERE j.changed > ?1 AND (typeof(j.id) = 'text'
         OR NOT EXISTS (SELECT 1 FROM runner_jobs t WHERE t.id = CAST(j.id AS TEXT)))
     UNION ALL SELECT 1, w.value, coalesce((SELECT status FROM runner_jobs WHERE id = w.value),
         (SELECT status FROM runner_jobs WHERE id = CAST(w.value AS BLOB))), ?1,
         NULL, NULL, NULL
       FROM json_each(?3) w";

/// Those of the jobs in the list `?1` that one of Jobcast's own tables has.
pub const FIND_IN_OWN: &str = "SELECT w.value FROM json_each(?1) w
     WHERE EXISTS (SELECT 1 FROM runner_jobs WHERE id = w.value)
        OR EXISTS (SELECT 1 FROM runner_jobs WHERE id = CAST(w.value AS BLOB))
        OR EXISTS (SELECT 1 FROM job_events WHERE job_id = w.value)
        OR EXISTS (SELECT 1 FROM job_events WHERE job_id = CAST(w.value AS BLOB))";

const OWN_LIST: &str = "SELECT j.id, j.status,
       (SELECT e.timestamp FROM job_events e WHERE e.job_id = j.id ORDER BY e.seq DESC LIMIT 1) AS last_event_at
     FROM runner_jobs j WHERE (?1 IS NULL OR j.status IN (SELECT value FROM json_each(?1))) AND (typeof(j.id) = 'text'
       OR NOT EXISTS (SELECT 1 FROM runner_jobs t WHERE t.id = CAST(j.id AS TEXT)))
     ORDER BY max(coalesce(last_event_at, ''), j.updated_at) DESC, j.id LIMIT ?2";

/// The texts of a store that mean `status`.
pub fn texts_of(statuses: &FinalStatuses, status: JobStatus) -> Vec<String> {
    let usual = status.as_str();
    let is_usual = statuses.resolve(usual) == Some(status);
    let own = statuses.all().filter(|text| statuses.find(text) == Some(status)).map(String::from);
    own.chain(is_usual.then(|| usual.to_string())).collect()
}
