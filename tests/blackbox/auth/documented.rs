//! The guide for operators, tried as it is written.

use super::{ask_with, with_tokens};
use crate::support::daemon::finish;
use crate::support::tls::keep;
use std::process::{Command, Stdio};

const GUIDE: &str = include_str!("../../../docs/auth.md");

#[tokio::test]
async fn the_guides_python_makes_tokens_that_count() {
    let (_, rest) = GUIDE.split_once("```python\n").expect("an example");
    let (program, _) = rest.split_once("```").expect("its end");
    let folder = tempfile::tempdir().expect("a directory");
    let program = keep(&folder, "token.py", program);
    let secret = keep(&folder, "secret", "c2VjcmV0IG9mIHRoZSBndWlkZSwgMzIgYnl0ZXMgbG9uZw==\n");
    let mut python = Command::new("python3");
    python.args([&program, &secret]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = finish(&mut python).await;
    assert!(output.status.success(), "{output:?}");
    let token = String::from_utf8(output.stdout).expect("a token");
    let daemon = with_tokens(&[("auth.jwt.secret_file", &secret)]).await;
    for (job, status) in [("build-7", 200), ("team-1%2Fx", 200), ("build-8", 403)] {
        if status == 200 {
            daemon.write(job, 0..1).await;
        }
        assert_eq!(ask_with(&daemon, &format!("/runner-jobs/{job}"), token.trim()).await.status, status, "{job}");
    }
}
