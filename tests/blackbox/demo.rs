//! The demo, which strangers see first.

use crate::support::daemon::{BINARY, finish, run};
use crate::support::{address, eventually, http};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use tokio::net::TcpStream;

#[tokio::test]
async fn the_demo_shows_a_page_that_is_alive_and_asks_no_other_host_for_anything() {
    let browser = Path::new(env!("CARGO_MANIFEST_DIR")).join("client/test");
    let mut node = Command::new("node");
    node.arg("page.mjs").arg(BINARY).current_dir(browser);
    let output = finish(node.stdout(Stdio::piped()).stderr(Stdio::piped())).await;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}

struct Demo(Child);

impl Drop for Demo {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_demo_is_reached_from_outside_only_if_that_is_written_out_and_even_then_nobody_writes() {
    let (page, admin) = (address::free(), address::free().to_string());
    let listen = format!("0.0.0.0:{}", page.port());
    let refused = run(&["demo", "--listen", &listen, "--admin-listen", &admin], &[]).await;
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--allow-anonymous"));

    let mut demo = Command::new(BINARY);
    demo.args(["demo", "--listen", &listen, "--admin-listen", &admin, "--allow-anonymous"]).stdout(Stdio::null());
    let _demo = Demo(demo.spawn().expect("the demo"));
    eventually("the demo", async || TcpStream::connect(page).await.ok()).await;
    assert_eq!(http::request(page, "GET", "/", &[], b"").await.status, 200);
    let headers = [("Content-Type", "application/json")];
    let answer = http::request(page, "POST", "/runner-jobs/job/events", &headers, b"{\"type\":\"x\"}").await;
    assert_eq!(answer.code(), "ingest.disabled");
}

#[tokio::test]
async fn a_demo_follows_the_environment_and_names_an_address_that_can_be_opened() {
    let admin = address::free().to_string();
    let mut demo = Command::new(BINARY);
    demo.args(["demo", "--admin-listen", &admin, "--allow-anonymous"]).stdout(Stdio::piped());
    for (name, value) in [
        ("JOBCAST_HTTP__LISTEN", "0.0.0.0:0"),
        ("JOBCAST_HTTP__CORS__ORIGINS", "https://app.example.org"),
        ("JOBCAST_SOURCE__KIND", "postgres"),
    ] {
        demo.env(name, value);
    }
    let mut demo = Demo(demo.spawn().expect("the demo"));
    let said = demo.0.stdout.take().expect("its output");
    let said = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::new(said).read_line(&mut line).map(|_| line)
    });
    let said = said.await.expect("a line").expect("a line");
    let page = said.split("http://").nth(1).and_then(|rest| rest.split('/').next()).expect(&said);
    assert!(page.starts_with("127.0.0.1:"), "{said}");
    let page = page.parse().expect(&said);
    let headers = [("Origin", "https://app.example.org")];
    let answer = http::request(page, "GET", "/runner-jobs", &headers, b"").await;
    assert_eq!((answer.status, answer.header("Access-Control-Allow-Origin")), (200, Some("https://app.example.org")));
    assert!(http::request(page, "GET", "/", &[], b"").await.text().contains("name=\"jobcast-demo\" content=\"yes\""));
}
