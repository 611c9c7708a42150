//! What the simulated jobs do: steps, how long they take, and what they print. Differs from run to run.

use rand::RngExt;
use rand::seq::IndexedRandom;
use std::time::Duration;

/// One job to come.
pub struct Script {
    /// What its id begins with.
    pub project: &'static str,
    pub name: &'static str,
    pub branch: String,
    pub commit: String,
    pub trigger: &'static str,
    pub steps: Vec<Step>,
}

pub struct Step {
    pub id: &'static str,
    pub name: &'static str,
    pub lasts: Duration,
    pub lines: Vec<String>,
    pub tells_progress: bool,
    pub outcome: Outcome,
}

pub enum Outcome {
    Passes,
    Fails { error: String, lines: Vec<String> },
    IsCancelled { by: &'static str },
}

impl Step {
    /// Its output in the pieces in which it comes: mostly a few lines, now and then many at once.
    pub fn pieces(&self) -> Vec<&[String]> {
        if self.lines.is_empty() {
            return vec![&[]; 8];
        }
        let at_once = if self.lines.len() > 60 { 40 } else { 2 };
        self.lines.chunks(at_once).collect()
    }
}

/// One of them, by chance.
pub fn any() -> Script {
    let all = [rust_build, web_deploy, migration, agent, import];
    let mut script = pick(&all)();
    let last = script.steps.len();
    match random(0..20) {
        0..4 => {
            let step = &mut script.steps[random(1..last)];
            step.outcome = failure(step);
        }
        4 => script.steps[random(0..last)].outcome = Outcome::IsCancelled { by: pick(&PEOPLE) },
        _ => {}
    }
    script
}

const PEOPLE: [&str; 4] = ["ada", "grace", "linus", "margaret"];
const CRATES: [&str; 18] = [
    "libc",
    "bytes",
    "serde",
    "tokio",
    "hyper",
    "rustls",
    "tracing",
    "uuid",
    "indexmap",
    "regex",
    "time",
    "rand",
    "clap",
    "http",
    "futures",
    "parking_lot",
    "hashbrown",
    "sqlx",
];
const MODULES: [&str; 8] = ["auth", "billing", "search", "orders", "export", "session", "mail", "cart"];
const CLAIMS: [&str; 8] = [
    "rejects_an_expired_token",
    "keeps_the_order",
    "survives_a_restart",
    "rounds_half_to_even",
    "is_idempotent",
    "times_out_in_time",
    "handles_an_empty_list",
    "escapes_what_users_write",
];

fn random(range: std::ops::Range<usize>) -> usize {
    rand::rng().random_range(range)
}

fn pick<T: Copy>(from: &[T]) -> T {
    // never empty: all callers hand in constants
    from.choose(&mut rand::rng()).copied().unwrap_or(from[0])
}

fn seconds(least: f64, most: f64) -> f64 {
    rand::rng().random_range(least..most)
}

fn hash() -> String {
    format!("{:07x}", rand::rng().random_range(0..1u32 << 28))
}

fn script(project: &'static str, name: &'static str, trigger: &'static str, steps: Vec<Step>) -> Script {
    let branch = pick(&["main", "main", "fix/flaky-export", "feature/dark-mode", "release/2.4"]).to_string();
    Script { project, name, branch, commit: hash(), trigger, steps }
}

fn step(id: &'static str, name: &'static str, lasts: f64, lines: Vec<String>) -> Step {
    let lasts = Duration::from_secs_f64(lasts);
    Step { id, name, lasts, lines, tells_progress: false, outcome: Outcome::Passes }
}

fn with_progress(step: Step) -> Step {
    Step { tells_progress: true, ..step }
}

fn failure(step: &Step) -> Outcome {
    let (module, claim, line) = (pick(&MODULES), pick(&CLAIMS), random(20..400));
    let (error, lines) = match step.id {
        "test" | "e2e" | "clippy" => (
            format!("1 of {} tests failed", random(80..300)),
            vec![
                format!("---- {module}::{claim} stdout ----"),
                format!("thread '{module}::{claim}' panicked at src/{module}.rs:{line}:9:"),
                "assertion `left == right` failed".into(),
                format!("  left: {}", random(0..50)),
                format!(" right: {}", random(50..99)),
            ],
        ),
        "deploy" | "smoke" => (
            "the new version did not become healthy".into(),
            vec![
                format!("pod web-{} is restarting (exit code 137)", hash()),
                "readiness probe failed: connection refused".into(),
                "rolling back to the version before".into(),
            ],
        ),
        _ => (
            format!("exit code {}", random(1..4)),
            vec![format!("error: could not finish `{}`", step.name), format!("  --> src/{module}.rs:{line}:17")],
        ),
    };
    Outcome::Fails { error, lines }
}

fn checkout() -> Step {
    let lines = vec![
        "Cloning into '.'...".into(),
        format!("remote: Enumerating objects: {}, done.", random(900..9000)),
        format!("HEAD is now at {}", hash()),
    ];
    step("checkout", "Check out", seconds(0.8, 2.0), lines)
}

fn rust_build() -> Script {
    let mut compiled: Vec<String> = CRATES
        .iter()
        .map(|name| format!("   Compiling {name} v{}.{}.{}", random(0..3), random(0..40), random(0..9)))
        .collect();
    compiled.push(format!("    Finished `release` profile [optimized] in {:.2}s", seconds(9.0, 14.0)));
    let lints = MODULES.iter().map(|module| format!("    Checking {module} v0.4.0")).collect();
    let mut tests: Vec<String> = Vec::new();
    for module in MODULES {
        tests.extend(CLAIMS.map(|claim| format!("        PASS [{:>7.3}s] {module}::{claim}", seconds(0.001, 0.4))));
    }
    tests.push(format!("     Summary [{:>7.3}s] {} tests run: all passed", seconds(2.0, 6.0), tests.len()));
    script(
        "api",
        "Build and test",
        "push",
        vec![
            checkout(),
            with_progress(step("build", "Build", seconds(8.0, 14.0), compiled)),
            step("clippy", "Lints", seconds(2.0, 5.0), lints),
            step("test", "Tests", seconds(5.0, 11.0), tests),
        ],
    )
}

fn web_deploy() -> Script {
    let install = vec![
        format!("added {} packages, and audited {} packages in {}s", random(300..900), random(900..1200), random(3..9)),
        "found 0 vulnerabilities".into(),
    ];
    let build = MODULES
        .iter()
        .map(|module| {
            format!(
                "dist/assets/{module}-{}.js  {:.2} kB │ gzip: {:.2} kB",
                hash(),
                seconds(9.0, 90.0),
                seconds(3.0, 30.0)
            )
        })
        .collect();
    let e2e = CLAIMS
        .iter()
        .map(|claim| format!("  ✓ [chromium] › {}.spec.ts › {claim} ({}ms)", pick(&MODULES), random(90..900)))
        .collect();
    let deploy = ["web-1", "web-2", "web-3"].iter().flat_map(|host| {
        [format!("{host}: draining"), format!("{host}: replaced, healthy after {:.1}s", seconds(0.6, 2.4))]
    });
    let smoke = ["/", "/login", "/orders", "/api/health"].map(|path| format!("GET {path} 200 in {}ms", random(8..90)));
    script(
        "web",
        "Build, test, deploy",
        "merge",
        vec![
            checkout(),
            step("install", "Install", seconds(2.0, 5.0), install),
            with_progress(step("build", "Bundle", seconds(4.0, 8.0), build)),
            step("e2e", "Browser tests", seconds(5.0, 10.0), e2e),
            with_progress(step("deploy", "Deploy", seconds(5.0, 9.0), deploy.collect())),
            step("smoke", "Smoke test", seconds(1.0, 3.0), smoke.into()),
        ],
    )
}

fn migration() -> Script {
    let rows = random(20_000..90_000);
    let copied = (1..=12).map(|part| format!("orders: {} of {rows} rows", rows * part / 12)).collect();
    let backup = vec![format!("pg_basebackup: {} MB, checksum {}", random(400..4000), hash())];
    let verify = MODULES.iter().map(|module| format!("{module}: counts agree")).collect();
    script(
        "db",
        "Migrate the database",
        "manual",
        vec![
            step("backup", "Back up", seconds(2.0, 5.0), backup),
            with_progress(step("copy", "Copy rows", seconds(8.0, 15.0), copied)),
            step("verify", "Verify", seconds(3.0, 6.0), verify),
            step("switch", "Switch over", seconds(1.0, 2.0), vec!["read-only for 412 ms".into()]),
        ],
    )
}

fn agent() -> Script {
    let (module, claim) = (pick(&MODULES), pick(&CLAIMS));
    let read = ["README.md", "src/lib.rs", "tests/run"].map(|file| format!("read {file}"));
    let think = vec![
        format!("The issue says that `{module}` no longer {claim}."),
        format!("`src/{module}.rs` was changed last in {}.", hash()),
        "The clock is read twice; between the two reads the token may expire.".into(),
        "Reading it once is enough, and makes the test certain.".into(),
    ];
    let edit = vec![
        format!("--- a/src/{module}.rs"),
        format!("+++ b/src/{module}.rs"),
        "-    if token.expires < now() { return Err(Expired) }".into(),
        "+    if token.expires < at { return Err(Expired) }".into(),
    ];
    let test = CLAIMS.iter().map(|claim| format!("test {module}::{claim} ... ok")).collect();
    script(
        "agent",
        "Mend an issue",
        "issue",
        vec![
            step("read", "Read", seconds(3.0, 6.0), read.into()),
            step("think", "Think", seconds(5.0, 9.0), think),
            step("edit", "Edit", seconds(3.0, 6.0), edit),
            step("test", "Tests", seconds(4.0, 8.0), test),
            step("open", "Open a pull request", seconds(1.0, 2.0), vec![format!("pull request #{}", random(200..900))]),
        ],
    )
}

fn import() -> Script {
    let records = random(3..9) * 1000;
    let fetch = (1..=6).map(|part| format!("part-{part}.csv.gz  {:.1} MB", seconds(2.0, 30.0))).collect();
    // a burst: many lines at once
    let load =
        (1..=240).map(|part| format!("batch {part:>3}: {} records, {} skipped", records / 240, random(0..3))).collect();
    script(
        "import",
        "Nightly import",
        "schedule",
        vec![
            with_progress(step("fetch", "Fetch", seconds(3.0, 6.0), fetch)),
            with_progress(step("load", "Load", seconds(5.0, 10.0), load)),
            step("index", "Rebuild indexes", seconds(3.0, 7.0), Vec::new()),
            step("report", "Report", seconds(0.5, 1.5), vec![format!("{records} records are in")]),
        ],
    )
}
