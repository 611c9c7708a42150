//! What readers ask for: pages, the place of an event, the newest, the list of jobs.

use super::Store;
use super::link::Link;
use super::literal;
use super::moment::{MOMENT, MOMENT_COLUMNS, Moment};
use super::position::{Ended, Position};
use super::table::{Mark, Tables};
use super::tell::{MANY, WIDEST, job_columns, read_row};
use crate::cursor::Cursor;
use crate::event::{JobId, JobStatus};
use crate::source::{JobSummary, Limit, Page, PageResult, Standing};
use crate::sse::Reset;
use sqlx::Row;
use sqlx::postgres::PgRow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

impl Store {
    pub async fn page(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        mut position: Position,
        limit: Limit,
    ) -> Result<PageResult, sqlx::Error> {
        if tables.job_id.spelled(job.as_str()).is_none() {
            return Ok(PageResult::NoSuchJob);
        }
        let began = Instant::now();
        let before = position.clone();
        let is_fresh = position.is_beginning();
        let told = loop {
            let told = self.tell(link, tables, job, &mut position, limit.events).await?;
            let may_know = told.moment.may_know(&before);
            if may_know && self.has_seen(link, &told.moment, &before).await? {
                break told;
            }
            // a standby that lags comes to it; another database, or one that was restored, does not
            if began.elapsed() >= self.settle {
                let wait = Page {
                    end: before.seal(job),
                    is_complete: false,
                    status: None,
                    events: Vec::new(),
                    is_last: false,
                };
                return Ok(if may_know { PageResult::Page(wait) } else { PageResult::Lost(Reset::Rewound) });
            }
            position = before.clone();
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let (has_job, nothing_is_open) = (told.has_job, told.moment.xmin >= told.moment.xmax);
        let status = told.status.clone();
        let (events, is_last) = told.deliver(job, &mut position, limit);
        if is_fresh && events.is_empty() && !has_job {
            return Ok(PageResult::NoSuchJob);
        }
        let mut ending = self.ending(status.as_deref(), &events);
        if is_last && ending.is_none() {
            ending = self.final_event(link, tables, job).await?;
        }
        // a reader that was given nothing stays where it stood, so that its token is known to the ring
        let end = if events.is_empty() { before } else { position };
        Ok(PageResult::Page(Page {
            end: end.seal(job),
            is_complete: is_last && ending.is_some() && nothing_is_open,
            status: ending.or_else(|| self.settings.statuses.resolve(&status?)),
            events,
            is_last,
        }))
    }

    /// Whether the server knows the end of every transaction that a position speaks of. A standby may not have come to
    /// it: then its tail would tell again what the position was given elsewhere.
    async fn has_seen(&self, link: &mut Link, moment: &Moment, position: &Position) -> Result<bool, sqlx::Error> {
        if !moment.is_standby || position.ceiling() <= moment.xmin {
            return Ok(true);
        }
        let ended = position.range().map_or(position.settled(), |(end, _)| end);
        let open = ended.open.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        let counted = position.counted().keys().map(u64::to_string).collect::<Vec<_>>().join(",");
        let (xmin, mark) = (moment.xmin, ended.mark);
        if mark.saturating_sub(xmin) > WIDEST as u64 {
            // rather twice than never
            return Ok(true);
        }
        let sql = format!(
            "SELECT NOT EXISTS (
               SELECT FROM (SELECT generate_series({xmin}, {mark}::bigint - 1) EXCEPT SELECT unnest('{{{open}}}'::bigint[])
                 UNION SELECT unnest('{{{counted}}}'::bigint[])) known (x)
               WHERE x >= {xmin} AND pg_xact_status(x::text::xid8) = 'in progress')"
        );
        let answer = link.ask(sql).await?;
        answer.first().ok_or(sqlx::Error::RowNotFound)?.try_get(0)
    }

    /// The position after the event with this id, as one who shows events by key would mean it.
    pub async fn find(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        id: &str,
    ) -> Result<Option<Cursor>, sqlx::Error> {
        if tables.job_id.spelled(job.as_str()).is_none() || tables.id.spelled(id).is_none() {
            return Ok(None);
        }
        let (of_job, of_id) = (tables.job_id.is(job.as_str()), tables.id.is(id));
        let (row, events) = (tables.row(), &tables.events);
        let head = self.snapshot(tables, Some(job));
        let sql = format!(
            "{head} SELECT {MOMENT}, r.* FROM s, m, (SELECT {row} FROM {events} e WHERE {of_job} AND {of_id} LIMIT 1) r"
        );
        let answer = link.ask(sql).await?;
        let Some(found) = answer.first() else { return Ok(None) };
        let (moment, stored) = (self.moment(found)?, read_row(found, MOMENT_COLUMNS + 1, job)?);
        // what is not settled yet, up to it, is counted
        let up_to = format!("({}) IS NOT TRUE", tables.after(job.as_str(), &stored.key));
        let (end, counted) = self.count_newer(link, tables, job, moment.mark(), &up_to).await?;
        Ok(Some(Position::after_key(tables.best, end, stored.key, counted).seal(job)))
    }

    /// How many rows there are of each transaction that had not ended at this mark, or, where those are many, at a list
    /// of the open ones instead.
    async fn count_newer(
        &self,
        link: &mut Link,
        tables: &Tables,
        job: &JobId,
        mark: u64,
        which: &str,
    ) -> Result<(Ended, BTreeMap<u64, u64>), sqlx::Error> {
        let mut end = Ended::below(mark);
        loop {
            let sql = format!(
                "{} SELECT c.xid, count(*)::bigint FROM (SELECT {} FROM {} e WHERE {} AND {} AND {which}) c GROUP BY 1",
                self.snapshot(tables, None),
                tables.row(),
                tables.events,
                tables.job_id.is(job.as_str()),
                tables.since(&Mark::At(end.clone())),
            );
            let mut counted = BTreeMap::new();
            for row in link.ask(sql).await? {
                counted.insert(row.try_get::<i64, _>(0)? as u64, row.try_get::<i64, _>(1)? as u64);
            }
            if counted.len() <= MANY || !end.open.is_empty() {
                return Ok((end, counted));
            }
            let level = Position::level(tables.best, end.clone(), BTreeMap::new());
            match self.list_open(link, tables, &level, false).await? {
                Some((listed, reached)) if listed.mark > end.mark => {
                    // what has committed is not forgotten in a crash
                    let last = counted.keys().next_back().map_or(0, |last| last + 1);
                    end = listed.until(reached.max(last));
                    if end.open.is_empty() && end.mark == mark {
                        return Ok((end, counted));
                    }
                }
                _ => return Ok((end, counted)),
            }
        }
    }

    pub async fn newest(&self, link: &mut Link, tables: &Tables, job: &JobId) -> Result<Option<Standing>, sqlx::Error> {
        if tables.job_id.spelled(job.as_str()).is_none() {
            return Ok(None);
        }
        let (of_job, events) = (tables.job_id.is(job.as_str()), &tables.events);
        let (status, has_job) = job_columns(tables, job);
        let head = self.snapshot(tables, Some(job));
        let sql = format!(
            "{head} SELECT {MOMENT}, {status}, {has_job} OR EXISTS (SELECT FROM {events} e WHERE {of_job}) FROM s, m"
        );
        let answer = link.ask(sql).await?;
        let first = answer.first().ok_or(sqlx::Error::RowNotFound)?;
        if !first.try_get::<bool, _>(MOMENT_COLUMNS + 1)? {
            return Ok(None);
        }
        let mark = self.moment(first)?.mark();
        let (end, counted) = self.count_newer(link, tables, job, mark, "true").await?;
        let status: Option<String> = first.try_get(MOMENT_COLUMNS)?;
        let cursor = Position::level(tables.best, end, counted).seal(job);
        let status = status.and_then(|status| self.settings.statuses.resolve(&status));
        Ok(Some(Standing { cursor, status }))
    }

    pub async fn jobs(
        &self,
        link: &mut Link,
        tables: &Tables,
        status: Option<JobStatus>,
        limit: usize,
    ) -> Result<Vec<JobSummary>, sqlx::Error> {
        let Some(jobs) = &tables.jobs else { return Ok(Vec::new()) };
        let wanted = status
            .map_or_else(|| "true".into(), |status| format!("{}::text = {}", jobs.status, literal(status.as_str())));
        let sql = format!(
            "SELECT {id}::text, {status}::text, to_char(l.at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.MS\"Z\"')
             FROM {table} j LEFT JOIN LATERAL (
               SELECT max({at}) AS at FROM {events} e WHERE {job_id} = {id}
             ) l ON true WHERE {wanted} ORDER BY l.at DESC NULLS LAST, 1 LIMIT {limit}",
            id = jobs.id.column(),
            status = jobs.status,
            table = jobs.table,
            at = tables.timestamp(),
            events = tables.events,
            job_id = tables.job_id.column(),
        );
        let answer = link.ask(sql).await?;
        let summary = |row: &PgRow| {
            let status: Option<String> = row.try_get(1).ok()?;
            Some(JobSummary {
                job_id: row.try_get::<String, _>(0).ok()?.parse().ok()?,
                status: status.and_then(|status| self.settings.statuses.resolve(&status)),
                last_event_at: row.try_get(2).ok()?,
            })
        };
        Ok(answer.iter().filter_map(summary).collect())
    }
}
