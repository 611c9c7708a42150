//! The demo, which strangers see first.

use crate::support::daemon::{BINARY, finish};
use std::path::Path;
use std::process::{Command, Stdio};

#[tokio::test]
async fn the_demo_shows_a_page_that_is_alive_and_asks_no_other_host_for_anything() {
    let browser = Path::new(env!("CARGO_MANIFEST_DIR")).join("client/test");
    let mut node = Command::new("node");
    node.arg("page.mjs").arg(BINARY).current_dir(browser);
    let output = finish(node.stdout(Stdio::piped()).stderr(Stdio::piped())).await;
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{said}");
}
