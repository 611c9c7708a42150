//! The files of `deploy/`, held against what the daemon really has: its settings, its metrics, its tables.

use crate::support::daemon::{finish, stream_path};
use crate::support::{Daemon, Postgres, Stream};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn files(below: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(below).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Documents of a YAML file, by the parser that Debian has.
async fn yaml(file: &str) -> Vec<Value> {
    let parse = "import json, sys, yaml\nprint(json.dumps(list(yaml.safe_load_all(open(sys.argv[1])))))";
    let mut python = Command::new("/usr/bin/python3");
    python.args(["-c", parse]).arg(root().join(file)).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = finish(&mut python).await;
    assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Runs a program that must succeed; returns what it printed.
async fn succeed(command: &mut Command) -> String {
    let output = finish(command.stdout(Stdio::piped()).stderr(Stdio::piped())).await;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{command:?}: {said}");
    said
}

// ---- settings

/// Dotted names of all settings.
fn settings() -> BTreeSet<String> {
    fn walk(table: &toml::Table, at: &str, into: &mut BTreeSet<String>) {
        for (key, value) in table {
            match value {
                toml::Value::Table(table) => walk(table, &format!("{at}{key}."), into),
                _ => {
                    into.insert(format!("{at}{key}"));
                }
            }
        }
    }
    let mut names = BTreeSet::new();
    walk(&read("config/jobcast.toml").parse().expect("TOML"), "", &mut names);
    names
}

#[tokio::test]
async fn every_setting_that_the_files_for_operators_name_exists() {
    let known = settings();
    let is_known = |name: &str| {
        let key = |name: &str| name.to_lowercase().replace("__", ".");
        let of_file = name.strip_suffix("_FILE").is_some_and(|name| known.contains(&key(name)));
        of_file || known.contains(&key(name)) || ["CONFIG", "TOKEN"].contains(&name)
    };
    let mut all = files(&root().join("deploy"));
    all.extend(files(&root().join("docs")));
    all.extend(["README.md", "Dockerfile", "llms.txt"].map(|file| root().join(file)));
    let mut met = 0;
    for file in all.iter().filter(|file| file.extension().is_none_or(|end| end != "png")) {
        let text = std::fs::read_to_string(file).expect("text");
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '{'));
        for name in words.filter_map(|word| word.strip_prefix("JOBCAST_")) {
            // what stands for any of them, and the chart's own template
            if name.is_empty() || name.contains('{') {
                continue;
            }
            met += 1;
            assert!(is_known(name), "{}: there is no setting JOBCAST_{name}", file.display());
        }
    }
    assert!(met > 20, "only {met} found");
    let mut own = BTreeSet::new();
    let table: toml::Table = read("deploy/kustomize/base/jobcast.toml").parse().expect("TOML");
    for (section, keys) in &table {
        own.extend(keys.as_table().expect("a section").keys().map(|key| format!("{section}.{key}")));
    }
    assert!(own.is_subset(&known), "{own:?}");
}

// ---- the orchestrators' arithmetic

fn seconds(text: &str) -> u64 {
    text.trim_end_matches('s').parse().unwrap_or_else(|_| panic!("{text:?} is no number of seconds"))
}

/// Defaults of `shutdown.grace` and `shutdown.drain` together.
fn leaving() -> u64 {
    let defaults: toml::Table = read("config/jobcast.toml").parse().expect("TOML");
    ["grace", "drain"].iter().map(|key| seconds(defaults["shutdown"][key].as_str().expect("text"))).sum()
}

#[tokio::test]
async fn every_orchestrator_waits_for_longer_than_leaving_takes_and_probes_the_admin_listener() {
    let compose = &yaml("deploy/compose.yaml").await[0];
    let jobcast = &compose["services"]["jobcast"];
    assert!(seconds(jobcast["stop_grace_period"].as_str().expect("text")) > leaving());
    assert_eq!(jobcast["ports"][0], "127.0.0.1:8080:8080");

    let unit = read("deploy/systemd/jobcast.service");
    let stop = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).expect("TimeoutStopSec");
    assert!(seconds(stop) > leaving());

    let base: toml::Table = read("deploy/kustomize/base/jobcast.toml").parse().expect("TOML");
    let port = |section: &str| -> u64 {
        let listen = base[section]["listen"].as_str().expect("text");
        listen.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
    };
    let times: u64 = ["grace", "drain"].iter().map(|key| seconds(base["shutdown"][key].as_str().expect("text"))).sum();
    let deployment = &yaml("deploy/kustomize/base/deployment.yaml").await[0]["spec"]["template"]["spec"];
    let container = &deployment["containers"][0];
    check_pod(deployment, container, times);
    assert_eq!(container["ports"][0]["containerPort"], port("http"));
    assert_eq!(container["ports"][1]["containerPort"], port("admin"));

    let sidecar = &yaml("deploy/kustomize/sidecar/patch.yaml").await[0]["spec"]["template"]["spec"];
    let container = &sidecar["initContainers"][0];
    let variable = |name: &str| {
        let found = container["env"].as_array().expect("a list").iter().find(|one| one["name"] == name);
        seconds(found.and_then(|one| one["value"].as_str()).unwrap_or_else(|| panic!("{name} is missing")))
    };
    check_pod(sidecar, container, variable("JOBCAST_SHUTDOWN__GRACE") + variable("JOBCAST_SHUTDOWN__DRAIN"));
    assert_eq!(container["restartPolicy"], "Always", "else the API never starts");
}

/// Holds a pod's times and probes against the times of leaving that its Jobcast has.
fn check_pod(pod: &Value, container: &Value, leaving: u64) {
    let pre_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"].as_u64().expect("preStop");
    let patience = pod["terminationGracePeriodSeconds"].as_u64().expect("terminationGracePeriodSeconds");
    assert!(patience > pre_stop + leaving, "{patience}s for {pre_stop}s and {leaving}s");
    let admin = &container["ports"][1];
    assert_eq!(admin["containerPort"], 9464);
    for (probe, path) in [("startupProbe", "/readyz"), ("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")] {
        assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
        assert_eq!(container[probe]["httpGet"]["port"], admin["name"], "{probe}");
    }
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
}

#[tokio::test]
async fn all_yaml_of_deploy_can_be_read() {
    let mut count = 0;
    for file in files(&root().join("deploy")) {
        let name = file.strip_prefix(root()).expect("inside").display().to_string();
        if name.ends_with(".yaml") && !name.contains("/templates/") {
            assert!(!yaml(&name).await.is_empty(), "{name}");
            count += 1;
        }
    }
    assert!(count > 15, "{count}");
    let schema: Value = serde_json::from_str(&read("deploy/helm/jobcast/values.schema.json")).expect("JSON");
    let values = &yaml("deploy/helm/jobcast/values.yaml").await[0];
    for key in values.as_object().expect("values").keys() {
        assert!(schema["properties"][key].is_object(), "the schema does not know {key}");
    }
}

#[tokio::test]
async fn the_charts_templates_use_values_that_there_are_and_let_operators_open_the_network_policy() {
    let values = &yaml("deploy/helm/jobcast/values.yaml").await[0];
    let schema: Value = serde_json::from_str(&read("deploy/helm/jobcast/values.schema.json")).expect("JSON");
    let (of_jobcast, mut used) = (settings(), BTreeSet::new());
    for template in files(&root().join("deploy/helm/jobcast/templates")) {
        let text = std::fs::read_to_string(&template).expect("text");
        for rest in text.split(".Values.").skip(1) {
            let path: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '.').collect();
            let is_known = match path.strip_prefix("settings.") {
                Some(key) => of_jobcast.iter().any(|name| name == key || name.starts_with(&format!("{key}."))),
                None => path.split('.').try_fold(values, |at, key| at.get(key)).is_some(),
            };
            assert!(is_known, "{}: there is no value {path}", template.display());
            used.insert(path);
        }
    }
    for (group, of_group) in values.as_object().expect("values") {
        let known = &schema["properties"][group];
        let keys = of_group.as_object().filter(|_| known["additionalProperties"] == false);
        for key in keys.into_iter().flat_map(|of_group| of_group.keys()) {
            assert!(known["properties"][key].is_object(), "the schema does not know {group}.{key}");
        }
    }
    for key in values["networkPolicy"].as_object().expect("a group").keys() {
        assert!(used.contains(&format!("networkPolicy.{key}")), "no template uses networkPolicy.{key}");
    }
    assert_eq!(values["networkPolicy"]["extraEgress"], serde_json::json!([]));
}

#[tokio::test]
async fn the_systemd_unit_is_as_hard_as_its_first_line_says() {
    let mut analyze = Command::new("systemd-analyze");
    let unit = root().join("deploy/systemd/jobcast.service");
    // in tenths
    succeed(analyze.args(["security", "--offline=true", "--threshold=15"]).arg(unit)).await;
}

// ---- packages

#[tokio::test]
async fn the_sbom_names_every_crate_that_is_linked_with_its_licence_and_hash_and_none_that_is_not() {
    let bom = succeed(Command::new("python3").arg(root().join("deploy/package/sbom"))).await;
    let bom: Value = serde_json::from_str(&bom).expect("JSON");
    assert_eq!((&bom["bomFormat"], &bom["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let of_jobcast = &bom["metadata"]["component"];
    assert_eq!((&of_jobcast["name"], &of_jobcast["version"]), (&"jobcast".into(), &env!("CARGO_PKG_VERSION").into()));
    let components = bom["components"].as_array().expect("a list");
    let names: BTreeSet<&str> = components.iter().filter_map(|one| one["name"].as_str()).collect();
    let manifest: toml::Table = read("Cargo.toml").parse().expect("TOML");
    let of = |section: &str| manifest[section].as_table().expect("a table").keys().map(String::as_str);
    let linked: BTreeSet<&str> = of("dependencies").collect();
    assert!(linked.is_subset(&names), "{:?}", linked.difference(&names));
    // Those of other platforms, and those of tests alone.
    let others = ["windows-sys", "wasm-bindgen", "cc"].into_iter().chain(of("dev-dependencies"));
    let unlinked: Vec<&str> = others.filter(|name| !linked.contains(name) && names.contains(name)).collect();
    assert_eq!(unlinked, [""; 0]);
    for one in components {
        assert!(one["licenses"][0]["expression"].is_string(), "{one}");
        assert_eq!(one["hashes"][0]["content"].as_str().map(str::len), Some(64), "{one}");
    }
    let known: BTreeSet<&str> =
        components.iter().chain([of_jobcast]).filter_map(|one| one["bom-ref"].as_str()).collect();
    let edges = bom["dependencies"].as_array().expect("a list");
    assert_eq!(edges.len(), known.len());
    for other in edges.iter().flat_map(|edge| edge["dependsOn"].as_array().expect("a list")) {
        assert!(other.as_str().is_some_and(|other| known.contains(other)), "{other}");
    }
}

#[tokio::test]
async fn every_package_and_image_has_the_version_of_the_crate_and_the_changelog_tells_of_it() {
    let version = env!("CARGO_PKG_VERSION");
    for package in ["client/package.json", "deploy/npm/package.json"] {
        let manifest: Value = serde_json::from_str(&read(package)).expect("JSON");
        assert_eq!(manifest["version"], version, "{package}");
    }
    let chart = &yaml("deploy/helm/jobcast/Chart.yaml").await[0];
    assert_eq!((&chart["version"], &chart["appVersion"]), (&version.into(), &version.into()));
    let image = format!("jobcast:{version}");
    let base = &yaml("deploy/kustomize/base/deployment.yaml").await[0]["spec"]["template"]["spec"];
    let sidecar = &yaml("deploy/kustomize/sidecar/patch.yaml").await[0]["spec"]["template"]["spec"];
    for container in [&base["containers"][0], &sidecar["initContainers"][0]] {
        assert_eq!(container["image"], image, "{container}");
    }
    let changes = read("CHANGELOG.md");
    let newest = changes.lines().find_map(|line| line.strip_prefix("## "));
    assert_eq!(newest.and_then(|title| title.split(' ').next()), Some(version));
}

// ---- the composition

#[tokio::test]
async fn the_compositions_database_and_writer_make_a_job_that_jobcast_casts_with_no_more_than_select() {
    let server = Postgres::start().await;
    // what the image of PostgreSQL runs at its first start, in the order of the names that it sees
    let compose = &yaml("deploy/compose.yaml").await[0];
    let volumes = compose["services"]["postgres"]["volumes"].as_array().expect("volumes").iter();
    let mounts = volumes.filter_map(|volume| volume.as_str()?.strip_suffix(":ro")?.split_once(':'));
    let mut scripts: Vec<(&str, &str)> = mounts.map(|(own, seen)| (seen, own)).collect();
    scripts.sort_unstable();
    assert_eq!(scripts.len(), 4, "{scripts:?}");
    for (_, script) in scripts {
        server.psql(&read(&format!("deploy/{script}"))).await;
    }
    // may be run twice, as it says
    server.psql(&read("deploy/postgres-roles.sql")).await;
    let daemon = Daemon::on("postgres", &server.url("jobcast"), &[]).await;
    let mut writer = Command::new("sh");
    writer.arg(root().join("deploy/compose/writer.sh")).env("WRITER_JOBS", "1").env("WRITER_PAUSE", "0");
    let address = server.address();
    writer.env("PGHOST", address.ip().to_string()).env("PGPORT", address.port().to_string());
    succeed(writer.env("PGUSER", "writer").env("PGDATABASE", "postgres")).await;

    let jobs = daemon.get("/runner-jobs").await.json();
    let job = jobs["jobs"][0]["jobId"].as_str().expect("a job").to_string();
    let mut stream = Stream::open(daemon.http, &stream_path(&job), &[]).await;
    let all = stream.rest().await;
    let of_steps = all.iter().filter(|message| message.event.as_deref().is_some_and(|kind| kind.starts_with("step.")));
    assert_eq!(of_steps.count(), 4 * 7, "{all:?}");
    assert!(all.last().is_some_and(|message| message.is("stream.complete")));

    let insert = "INSERT INTO job_events (job_id, type) VALUES ('x', 'x')";
    let mut psql = Command::new("psql");
    psql.args(["-qX", "-d", &server.url("jobcast"), "-c", insert]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let refused = finish(&mut psql).await;
    assert!(!refused.status.success(), "the role may write");
}

// ---- watching it

/// Names of metrics in an expression, without the endings of a histogram's series.
fn metrics_of(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | ':'));
    let metrics = words.filter(|word| word.starts_with("jobcast_") || word.starts_with("process_"));
    metrics.map(|name| name.trim_end_matches("_bucket").to_string()).collect()
}

/// Values that an expression compares labels with, as `outcome=~"full|full_address"`.
fn label_values(expression: &str) -> Vec<String> {
    let quoted = expression.split('"').skip(1).step_by(2);
    quoted
        .filter(|text| !text.contains('$') && *text != "jobcast")
        .flat_map(|text| text.split('|'))
        .map(Into::into)
        .collect()
}

/// Expressions of the rules and of the dashboard.
async fn expressions() -> Vec<String> {
    let rules = &yaml("deploy/prometheus/rules.yaml").await[0];
    let groups = rules["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules"));
    let mut all: Vec<String> = rules.map(|rule| rule["expr"].as_str().expect("an expression").to_string()).collect();
    let dashboard: Value = serde_json::from_str(&read("deploy/grafana/jobcast.json")).expect("JSON");
    for panel in dashboard["panels"].as_array().expect("panels") {
        let targets = panel["targets"].as_array().into_iter().flatten();
        all.extend(targets.map(|target| target["expr"].as_str().expect("an expression").to_string()));
    }
    assert!(all.len() > 50, "{}", all.len());
    all
}

#[tokio::test]
async fn every_query_of_rules_and_dashboard_asks_for_metrics_that_the_daemon_has() {
    let daemon = Daemon::start().await;
    daemon.write("job", 0..3).await;
    daemon.stream("job").await.take(3).await;
    daemon.has_subscribers(0).await;
    let scraped = daemon.ask_admin("/metrics").await.text();
    let is_scraped = |name: &str| scraped.contains(&format!("# TYPE {name} "));
    // What has not happened yet is not among them: the table of all metrics is.
    let table = read("src/telemetry.rs");
    let mut met = BTreeSet::new();
    for expression in expressions().await {
        for name in metrics_of(&expression) {
            assert!(is_scraped(&name) || table.contains(&format!("(\"{name}\"")), "{name} is no metric: {expression}");
            met.insert(name);
        }
        for value in label_values(&expression) {
            let is_source = ["postgres", "redis", "sqlite"].contains(&value.as_str());
            assert!(is_source || table.contains(&format!("\"{value}\"")), "{value} is no label's value: {expression}");
        }
    }
    let operate = read("docs/operate.md");
    assert!(met.iter().filter(|name| name.starts_with("jobcast_")).all(|name| operate.contains(name.as_str())));
}

#[tokio::test]
async fn prometheus_takes_the_rules_their_tests_pass_and_each_alert_has_its_runbook() {
    let rules = root().join("deploy/prometheus/rules.yaml");
    let promtool = |arguments: &[&str]| {
        let mut promtool = Command::new("promtool");
        promtool.args(arguments);
        promtool
    };
    succeed(promtool(&["check", "rules"]).arg(&rules)).await;
    succeed(promtool(&["test", "rules"]).arg(root().join("deploy/prometheus/rules.test.yaml"))).await;

    // The dashboard's queries are good PromQL, with Grafana's variables filled in.
    let queries: Vec<String> = expressions().await;
    let filled = queries.iter().map(|query| query.replace("$__rate_interval", "1m").replace(['$'], ""));
    let rules: Vec<Value> = filled
        .enumerate()
        .map(|(number, expr)| serde_json::json!({ "record": format!("query:{number}"), "expr": expr }))
        .collect();
    let folder = tempfile::tempdir().expect("a directory");
    let file = folder.path().join("queries.yaml");
    let groups = serde_json::json!({ "groups": [{ "name": "queries", "rules": rules }] });
    std::fs::write(&file, groups.to_string()).expect("a file");
    succeed(promtool(&["check", "rules"]).arg(&file)).await;

    let (rules, tests, operate) =
        (read("deploy/prometheus/rules.yaml"), read("deploy/prometheus/rules.test.yaml"), read("docs/operate.md"));
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in &alerts {
        assert!(operate.contains(&format!("\n### {alert}\n")), "{alert} has no runbook");
        assert!(rules.contains(&format!("docs/operate.md#{}\n", alert.to_lowercase())), "{alert} has no link");
        assert!(tests.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
    }
    assert_eq!(operate.matches("\n### Jobcast").count(), alerts.len(), "a runbook for an alert that is gone");
}
