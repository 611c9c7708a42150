//! Pages of several jobs, all up to one level: see `position/level.rs`. Jobs that stand at one place are read by one
//! statement. Where some stand at a level already and others behind it, these are brought to that one first.

use super::STANDBY_POLL;
use super::error::QueryError;
use super::history::behind;
use super::page::{PageEnd, PageRows};
use super::position::Position;
use super::session::Session;
use super::sql::{self, ManyQuery, PageQuery, Scope, XidBound};
use super::store::Store;
use super::tables::Tables;
use super::turns::Kind;
use crate::cursor::Cursor;
use crate::error::SourceError;
use crate::event::{Event, JobId};
use crate::source::{Limit, Page, PageResult, PagesBuilder, brings_on};
use crate::sse::Reset;
use sqlx::Row;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

/// Rows of each job that one statement reads for many. Whoever has more gets the others by a statement of its own.
pub const ROWS_EACH: usize = 32;
/// Bytes of payloads of each job, of which the same is true.
const BYTES_EACH: usize = 64 * 1024;

/// Reads a page of each job, in their order, until the limit is reached. `None` where no level can be told: then each page
/// ends where it can. Waits for a standby as a single page does.
pub async fn read_pages(
    store: &Store,
    wanted: &[(JobId, Cursor)],
    limit: Limit,
) -> Result<Option<Vec<PageResult>>, SourceError> {
    let began = Instant::now();
    let mut tables = store.tables().await?;
    let mut starts = Vec::with_capacity(wanted.len());
    for (job, after) in wanted {
        let position = Position::from_cursor(job, after.as_str());
        if let Some(position) = &position {
            tables = store.tables_for(position).await?;
        }
        starts.push((job, position));
    }
    let Some((first, _)) = wanted.first() else { return Ok(Some(Vec::new())) };
    loop {
        let can_wait = began.elapsed() < store.settle;
        let level = match fix_level(store, &tables, wanted).await {
            Ok(Some(level)) => level,
            Ok(None) => return Ok(None),
            Err(error) => return Err(store.job_error("reading history", error, first).await),
        };
        if let Some(stage) = find_stage(&tables, &starts, &level) {
            let pages = Reading::new(store, tables.clone(), &starts, UpTo::Stage(stage), can_wait).pages(limit).await?;
            if brings_on(wanted, &pages) {
                return Ok(Some(pages));
            }
        }
        let pages = Reading::new(store, tables.clone(), &starts, UpTo::Now(level), can_wait).pages(limit).await?;
        if !pages.is_empty() {
            return Ok(Some(pages));
        }
        tokio::time::sleep(STANDBY_POLL).await;
    }
}

/// Fixes the level that all jobs are read up to.
async fn fix_level(
    store: &Store,
    tables: &Arc<Tables>,
    wanted: &[(JobId, Cursor)],
) -> Result<Option<Position>, QueryError> {
    let Some((first, _)) = wanted.first() else { return Ok(None) };
    let connection = store.pool.get_for(Kind::lookup(first)).await?;
    let mut session = Session { store, connection, tables: tables.clone() };
    session.fix_level(wanted.iter().map(|(job, _)| job)).await
}

/// Finds the highest level that some of these jobs stand at and others behind, and that the server has come to by its own
/// word. `None` where there is none.
fn find_stage(tables: &Tables, starts: &[(&JobId, Option<Position>)], level: &Position) -> Option<Position> {
    let positions = || starts.iter().filter_map(|(_, position)| position.as_ref());
    let is_stage = |position: &&Position| {
        let is_listed = position.is_level() && !position.is_beginning() && position.settled().also.is_empty();
        is_listed && position.fits_list() && position.is_below(level) && !position.is_of_another_life(tables.life)
    };
    let highest = positions().filter(is_stage).reduce(|one, other| if one.is_below(other) { other } else { one })?;
    positions().any(|position| position != highest).then(|| highest.clone())
}

/// The end of a read.
enum UpTo {
    /// A level that was fixed for it.
    Now(Position),
    /// An earlier one.
    Stage(Position),
}

/// A job that is to be read.
struct Wanted<'a> {
    job: &'a JobId,
    start: Start,
}

/// The way to a page.
enum Start {
    NoSuchJob,
    /// The cursor means nothing.
    Unknown,
    /// It cannot end at the level: a cursor would have no room for both, counts by another scheme, or speaks of a floor.
    Apart(Position),
    /// Up to the level, from a position that the reader sent.
    UpToLevel(Position),
    /// It stays where it is, which is the level of a stage, or not below it.
    Staged(Position),
}

/// One read of several jobs.
struct Reading<'a> {
    store: &'a Store,
    tables: Arc<Tables>,
    wanted: Vec<Wanted<'a>>,
    level: Position,
    is_stage: bool,
    can_wait: bool,
    first_rows: FirstRows,
}

/// The rows of one job up to the level, or as many as there was room for.
struct Reached {
    events: Vec<(Event, Cursor)>,
    end: Position,
    is_last: bool,
    /// The last answer of the database, without its rows.
    answer: PageEnd,
}

impl<'a> Reading<'a> {
    fn new(
        store: &'a Store,
        tables: Arc<Tables>,
        starts: &[(&'a JobId, Option<Position>)],
        up_to: UpTo,
        can_wait: bool,
    ) -> Self {
        let (level, is_stage) = match up_to {
            UpTo::Now(level) => (level, false),
            UpTo::Stage(level) => (level, true),
        };
        let start_of = |(job, position): &(&'a JobId, Option<Position>)| {
            let start = match position {
                None => Start::Unknown,
                Some(position) if is_stage => start_of_stage(&tables, job, position, &level),
                Some(position) => start(&tables, job, position.clone(), &level),
            };
            Wanted { job, start }
        };
        let wanted = starts.iter().map(start_of).collect();
        Self { store, tables, wanted, level, is_stage, can_wait, first_rows: FirstRows::default() }
    }

    /// Reads pages until the limit is reached. None if a standby has not come to the first position.
    async fn pages(mut self, limit: Limit) -> Result<Vec<PageResult>, SourceError> {
        let mut pages = PagesBuilder::new(limit);
        for place in 0..self.wanted.len() {
            let Some(rest) = pages.rest() else { break };
            let Some(page) = self.page_of(place, rest).await.transpose() else { break };
            match pages.add(page) {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => return Err(self.store.job_error("reading history", error, self.wanted[place].job).await),
            }
        }
        Ok(pages.into_results())
    }

    /// Reads the page of one job. `None` where a standby has not come to its position.
    async fn page_of(&mut self, place: usize, limit: Limit) -> Result<Option<PageResult>, QueryError> {
        let (job, start) = (self.wanted[place].job, &self.wanted[place].start);
        let before = match start {
            Start::NoSuchJob => return Ok(Some(PageResult::NoSuchJob)),
            Start::Unknown => return Ok(Some(PageResult::Lost(Reset::Unknown))),
            Start::Staged(position) => return Ok(Some(PageResult::Page(Page::staged(position.to_cursor(job))))),
            Start::Apart(position) | Start::UpToLevel(position) => position.clone(),
        };
        // Whoever has nothing yet stands at the one beginning, in whatever scheme its job is read.
        let stays = if before.is_beginning() { Position::beginning() } else { before.clone() };
        let kind = Kind::page(job, &before, self.store.durable_mark().xid());
        let connection = self.store.pool.get_for(kind).await?;
        let mut session = Session { store: self.store, connection, tables: self.tables.clone() };
        if matches!(start, Start::Apart(_)) {
            return session.page(job, &before, limit, self.can_wait).await;
        }
        let Reached { events, end, is_last, answer } =
            self.read_up_to_level(&mut session, place, before.clone(), limit).await?;
        let snapshot = &answer.snapshot;
        // A standby may not have come to what the reader was given elsewhere, and would give it again.
        if !snapshot.may_know(&before) || (snapshot.is_standby && !before.is_below(&self.level)) {
            return Ok(behind(job, &stays, snapshot, self.can_wait));
        }
        if before.is_beginning() && events.is_empty() && !answer.has_job {
            // It may have rows beyond the level of a stage.
            let staged = self.is_stage.then(|| PageResult::Page(Page::staged(stays.to_cursor(job))));
            return Ok(Some(staged.unwrap_or(PageResult::NoSuchJob)));
        }
        let end = if is_last { self.level.to_cursor(job) } else { end.to_cursor(job) };
        let mut result = session.finish_page(job, events, end, is_last && !self.is_stage, &answer).await?;
        if let PageResult::Page(page) = &mut result {
            page.is_staged = is_last && self.is_stage;
        }
        session.without_hasty_end(job, result, &self.level).await.map(Some)
    }

    async fn read_up_to_level(
        &mut self,
        session: &mut Session<'_>,
        place: usize,
        mut position: Position,
        limit: Limit,
    ) -> Result<Reached, QueryError> {
        let job = self.wanted[place].job;
        let mut events = Vec::new();
        let is_here = |wanted: &&Wanted| matches!(&wanted.start, Start::UpToLevel(other) if *other == position);
        let beside = self.wanted[place..].iter().filter(is_here).map(|wanted| wanted.job);
        let mut first = self.first_rows.of(session, job, &position, &self.level, beside, limit.events).await?;
        loop {
            let room = Limit {
                events: limit.events.saturating_sub(events.len()),
                bytes: limit.bytes.saturating_sub(bytes_of(&events)),
            };
            let (page, room) = match first.take() {
                Some(page) => (page, Limit { events: room.events.min(ROWS_EACH), ..room }),
                None => (session.rows_up_to(job, &position, &self.level, room).await?, room),
            };
            let (answer, reaches_level) = (page.answer(), page.end == *self.level.settled());
            let (more, has_all) = page.deliver(job, &mut position, room);
            events.extend(more);
            let is_last = has_all && reaches_level;
            if is_last || limit.is_reached_by(events.len(), bytes_of(&events)) {
                return Ok(Reached { events, end: position, is_last, answer });
            }
        }
    }
}

/// First rows of jobs that stand at one place, read together.
pub struct FirstRows {
    rows: HashMap<JobId, PageRows>,
    /// Most jobs that one statement reads.
    most: usize,
}

impl Default for FirstRows {
    fn default() -> Self {
        Self { rows: HashMap::new(), most: usize::MAX }
    }
}

impl FirstRows {
    /// Returns the first [`ROWS_EACH`] rows of a job up to the level, and one more. Reads them together with those of the
    /// jobs `beside` it, which stand at the same position, unless that was done. `None` where none can be read together with
    /// it, within about `limit` rows.
    pub async fn of<'j>(
        &mut self,
        session: &mut Session<'_>,
        job: &'j JobId,
        position: &Position,
        level: &Position,
        beside: impl Iterator<Item = &'j JobId>,
        limit: usize,
    ) -> Result<Option<PageRows>, QueryError> {
        if let Some(rows) = self.rows.remove(job) {
            return Ok(Some(rows));
        }
        if !position.is_level() {
            return Ok(None);
        }
        let most = (2 * limit / ROWS_EACH).min(self.most);
        let others = beside.filter(|other| *other != job && !self.rows.contains_key(*other));
        let jobs: Vec<&JobId> = std::iter::once(job).chain(others).take(most).collect();
        if jobs.len() < 2 {
            return Ok(None);
        }
        let each = Limit { events: ROWS_EACH, bytes: BYTES_EACH };
        let query = ManyQuery { jobs: jobs.clone(), position, end: level.settled(), limit: each };
        match session.first_rows(&query).await {
            Ok(rows) => self.rows.extend(jobs.into_iter().cloned().zip(rows)),
            // Read by itself, each job tells whether it is the cause.
            Err(error) if error.is_of_rows() => self.most = 1,
            Err(error) => return Err(error),
        }
        Ok(self.rows.remove(job))
    }
}

fn start(tables: &Tables, job: &JobId, mut position: Position, level: &Position) -> Start {
    if tables.events.job_id.canonical(job.as_str()).is_none() {
        return Start::NoSuchJob;
    }
    let before = position.clone();
    if position.is_beginning() {
        position.adopt(tables.best);
    }
    if !position.is_honoured(tables) {
        return Start::Unknown;
    }
    position.settle_in(tables);
    // A read of all rows takes over what is said of a floor; a level cannot.
    if position.above().is_none() && position.has_room_up_to(level) {
        Start::UpToLevel(position)
    } else {
        Start::Apart(before)
    }
}

/// The way to a page up to a level that a reader sent, of which others of its jobs stand behind.
fn start_of_stage(tables: &Tables, job: &JobId, position: &Position, stage: &Position) -> Start {
    match start(tables, job, position.clone(), stage) {
        Start::UpToLevel(settled) if position != stage && (position.is_beginning() || settled.is_below(stage)) => {
            Start::UpToLevel(settled)
        }
        Start::UpToLevel(_) | Start::Apart(_) => Start::Staged(position.clone()),
        other => other,
    }
}

fn bytes_of(events: &[(Event, Cursor)]) -> usize {
    events.iter().map(|(event, _)| event.payload.as_json().len()).sum()
}

impl Session<'_> {
    /// Reads the next rows of one job up to a level. Those of a range that an earlier read left unfinished come first, by
    /// themselves, up to its own end.
    pub async fn rows_up_to(
        &mut self,
        job: &JobId,
        position: &Position,
        level: &Position,
        limit: Limit,
    ) -> Result<PageRows, QueryError> {
        let end = XidBound::Fixed(position.range().map_or(level.settled(), |range| &range.end).clone());
        let scope = Scope::of(job, limit);
        let mut page = self.query_page(PageQuery { scope, position, end, published_by: Some(level) }).await?;
        page.rows.retain(|row| page.end.contains(row.xid));
        Ok(page)
    }

    /// Takes back that a job is complete, where it got rows after the level was fixed: they are not in the page.
    async fn without_hasty_end(
        &mut self,
        job: &JobId,
        mut result: PageResult,
        level: &Position,
    ) -> Result<PageResult, QueryError> {
        if let PageResult::Page(page) = &mut result
            && page.is_complete
        {
            let rows = self.tables.rows(level.scheme);
            let sql = sql::has_rows_beyond(&rows, self.durable_xid(), job, level.settled());
            page.is_complete = !self.connection.query_one(sql).await?.try_get::<bool, _>("has_rows")?;
        }
        Ok(result)
    }
}
