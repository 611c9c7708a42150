//! A simulated CI: it queues jobs, and three runners work on them. All that it does is to write rows to the file.

mod scripts;
mod store;
mod words;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use scripts::{SCRIPTS, Script, Step};
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use store::{DemoEvent, Store};
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, sleep};
use words::Words;

const RUNNERS: [&str; 3] = ["runner-1", "runner-2", "runner-3"];
/// Share of the jobs that fail.
const FAILING: f64 = 0.2;
/// Share of the jobs that are cancelled.
const CANCELLED: f64 = 0.04;
/// Lines that a burst writes at once.
const BURST_LINES: usize = 200;
const PEOPLE: &[&str] = &["ada", "grace", "linus", "margaret"];

/// Runs until `leaving` resolves. Returns early only when the file cannot be written.
pub async fn run(database: &Path, leaving: impl Future<Output = ()>) -> Result<(), sqlx::Error> {
    let store = Store::open(database).await?;
    let (queue, queued) = mpsc::channel(1);
    let queued = Mutex::new(queued);
    let working = async {
        let [first, second, third] = RUNNERS.map(|name| work(name, &queued, &store));
        tokio::try_join!(keep_queueing(queue, &store), first, second, third)
    };
    tokio::select! {
        ended = working => ended.map(|_| ()),
        () = leaving => Ok(()),
    }
}

/// Keeps one job waiting for a runner at all times. Every kind of job comes once before one comes again.
async fn keep_queueing(queue: mpsc::Sender<Job>, store: &Store) -> Result<(), sqlx::Error> {
    let mut numbers = SCRIPTS.map(|_| rand::random_range(120..2400));
    let mut kinds = words::Deck::default();
    loop {
        let Some(kind) = kinds.draw(&mut rand::rng(), || (0..SCRIPTS.len()).collect()) else { return Ok(()) };
        numbers[kind] += 1;
        let job = Job::new(&SCRIPTS[kind], numbers[kind]);
        store.write(&job.id, None, vec![DemoEvent::of_job("job.queued", json!({}))], Some("QUEUED")).await?;
        if queue.send(job).await.is_err() {
            return Ok(());
        }
    }
}

async fn work(runner: &'static str, queued: &Mutex<mpsc::Receiver<Job>>, store: &Store) -> Result<(), sqlx::Error> {
    loop {
        let next = queued.lock().await.recv().await;
        let Some(job) = next else { return Ok(()) };
        Run { job, runner, store }.finish().await?;
        store.forget_old_jobs().await?;
        sleep(Duration::from_millis(rand::random_range(400..2500))).await;
    }
}

/// End of a job, decided before it begins.
#[derive(Clone, Copy)]
enum Fate {
    Completes,
    /// Fails in the step with this index.
    FailsIn(usize),
    /// Is cancelled in the step with this index.
    IsCancelledIn(usize),
}

struct Job {
    id: String,
    script: &'static Script,
    fate: Fate,
    rng: StdRng,
    words: Words,
}

impl Job {
    fn new(script: &'static Script, number: u32) -> Self {
        let mut rng = StdRng::from_rng(&mut rand::rng());
        let step = rng.random_range(0..script.steps.len());
        let fate = match rng.random_range(0.0..1.0) {
            roll if roll < FAILING => Fate::FailsIn(step),
            roll if roll < FAILING + CANCELLED => Fate::IsCancelledIn(step),
            _ => Fate::Completes,
        };
        Self { id: format!("{}-{number}", script.prefix), script, fate, rng, words: Words::default() }
    }

    fn pick(&mut self, from: &[&'static str]) -> &'static str {
        from.choose(&mut self.rng).copied().unwrap_or_default()
    }

    fn fill(&mut self, template: &str) -> String {
        self.words.fill(template, &mut self.rng)
    }

    fn line(&mut self, step: &'static str, template: &str) -> DemoEvent {
        DemoEvent::of_step(step, "step.output", json!({ "line": self.fill(template) }))
    }

    fn lines(&mut self, step: &'static str, templates: &[&str]) -> Vec<DemoEvent> {
        templates.iter().map(|template| self.line(step, template)).collect()
    }

    fn seconds(&mut self, between: (f64, f64)) -> Duration {
        Duration::from_secs_f64(self.rng.random_range(between.0..between.1))
    }
}

/// A job that a runner has taken.
struct Run<'a> {
    job: Job,
    runner: &'static str,
    store: &'a Store,
}

impl Run<'_> {
    async fn finish(mut self) -> Result<(), sqlx::Error> {
        let begun = Instant::now();
        self.start().await?;
        for (number, step) in self.job.script.steps.iter().enumerate() {
            match self.job.fate {
                Fate::FailsIn(fatal) if fatal == number => {
                    self.step_until_it_fails(step).await?;
                    return self.fail(begun, step, number).await;
                }
                Fate::IsCancelledIn(fatal) if fatal == number => {
                    let share = self.job.rng.random_range(0.2..0.8);
                    self.begin(step, share).await?;
                    let by = self.job.pick(PEOPLE);
                    return self.end("CANCELLED", vec![DemoEvent::of_job("job.cancelled", json!({ "by": by }))]).await;
                }
                _ => self.step(step).await?,
            }
        }
        let done = json!({ "durationMs": elapsed_ms(begun) });
        self.end("COMPLETED", vec![DemoEvent::of_job("job.completed", done)]).await
    }

    async fn start(&mut self) -> Result<(), sqlx::Error> {
        let script = self.job.script;
        let (branch, trigger) = (self.job.pick(script.branches), self.job.pick(script.triggers));
        let (branch, trigger, commit) = (self.job.fill(branch), self.job.fill(trigger), self.job.fill("{hex}"));
        self.job.words.hold("branch", branch.clone());
        self.job.words.hold("commit", commit.clone());
        let steps: Vec<_> = script.steps.iter().map(|step| json!({ "id": step.id, "name": step.name })).collect();
        let name = self.job.fill(script.name);
        let started = json!({ "name": name, "branch": branch, "commit": commit, "trigger": trigger, "steps": steps });
        self.write(vec![DemoEvent::of_job("job.started", started)], Some("RUNNING")).await
    }

    async fn step(&mut self, step: &'static Step) -> Result<(), sqlx::Error> {
        let begun = self.begin(step, 1.0).await?;
        let mut last = self.job.lines(step.id, step.last);
        last.push(DemoEvent::of_step(step.id, "step.completed", json!({ "durationMs": elapsed_ms(begun) })));
        self.write(last, None).await
    }

    async fn step_until_it_fails(&mut self, step: &'static Step) -> Result<(), sqlx::Error> {
        let share = self.job.rng.random_range(0.3..0.9);
        let begun = self.begin(step, share).await?;
        let failure = &step.failure;
        let mut last: Vec<_> = self.job.lines(step.id, failure.lines).into_iter().map(DemoEvent::on_stderr).collect();
        let failed = json!({ "durationMs": elapsed_ms(begun), "error": failure.error, "exitCode": failure.exit_code });
        last.push(DemoEvent::of_step(step.id, "step.failed", failed));
        self.write(last, None).await
    }

    /// Runs the step from its start through `share` of its time.
    async fn begin(&mut self, step: &'static Step, share: f64) -> Result<Instant, sqlx::Error> {
        let (begun, whole) = (Instant::now(), self.job.seconds(step.seconds));
        // A share above 1 lies beyond the end of the step: this one has no burst.
        let mut burst_at = step.bursts.then(|| self.job.rng.random_range(0.1..2.0));
        let mut first = vec![DemoEvent::of_step(step.id, "step.started", json!({ "name": step.name }))];
        first.extend(self.job.lines(step.id, step.first));
        self.write(first, None).await?;
        loop {
            sleep(self.job.seconds((0.08, 0.65))).await;
            let done = begun.elapsed().as_secs_f64() / whole.as_secs_f64();
            if done >= share {
                return Ok(begun);
            }
            let count = match burst_at {
                Some(at) if done > at => {
                    burst_at = None;
                    BURST_LINES
                }
                _ => self.job.rng.random_range(1..4),
            };
            let mut events = Vec::new();
            for _ in 0..if step.lines.is_empty() { 0 } else { count } {
                let template = self.job.pick(step.lines);
                events.push(self.job.line(step.id, template));
            }
            if let Some(message) = step.progress {
                let progress = json!({ "percent": (done * 100.0).round() as u32, "message": self.job.fill(message) });
                events.push(DemoEvent::of_step(step.id, "step.progress", progress));
            }
            self.write(events, None).await?;
        }
    }

    /// Skips the remaining steps and ends the job.
    async fn fail(self, begun: Instant, failed: &Step, number: usize) -> Result<(), sqlx::Error> {
        let reason = json!({ "reason": format!("{} failed", failed.id) });
        let skipped = self.job.script.steps.iter().skip(number + 1);
        let mut last: Vec<_> =
            skipped.map(|step| DemoEvent::of_step(step.id, "step.skipped", reason.clone())).collect();
        let error = format!("{}: {}", failed.name, failed.failure.error);
        last.push(DemoEvent::of_job("job.failed", json!({ "durationMs": elapsed_ms(begun), "error": error })));
        self.end("FAILED", last).await
    }

    /// Writes the last events and the final status in one commit, so that nobody can see the one without the other.
    async fn end(self, status: &'static str, last: Vec<DemoEvent>) -> Result<(), sqlx::Error> {
        self.write(last, Some(status)).await
    }

    async fn write(&self, events: Vec<DemoEvent>, status: Option<&'static str>) -> Result<(), sqlx::Error> {
        self.store.write(&self.job.id, Some(self.runner), events, status).await
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    since.elapsed().as_millis() as u64
}
