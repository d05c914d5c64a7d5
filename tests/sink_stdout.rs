//! stdout sink through a real pipe: this test binary runs itself as the child that writes.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use walpost::FailureKind;
use walpost::sink::{SinkConfig, Verdict, open};

use crate::support::sample;

const CHILD: &str = "WALPOST_TEST_STDOUT_CHILD";

/// Not a test by itself: what the child does. It ends the process, so that the harness writes
/// nothing after it; exit code 7 says that stdout was closed.
#[tokio::test]
#[ignore = "run by the other tests of this file, as a child"]
async fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let options = toml::Table::new();
    let config = SinkConfig { url: "stdout:".into(), options, client_name: "walpost".into() };
    let sink = open(&config).unwrap();
    for start in (0..100_000).step_by(500) {
        let batch: Vec<_> = (start..start + 500)
            .map(|n| sample::message("orders", "k", format!("{{\"n\": {n}}}"), n))
            .collect();
        match sink.deliver_all(&batch).await {
            Ok(verdicts) => assert_eq!(verdicts, vec![Verdict::Confirmed; 500]),
            Err(failure) => {
                assert_eq!(failure.kind(), FailureKind::Definite);
                std::process::exit(7);
            }
        }
        if start >= 4_500 && std::env::var(CHILD).unwrap() == "5000" {
            break;
        }
    }
    std::process::exit(0);
}

fn child_writing(count: &str) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sink_stdout::child", "--ignored", "--nocapture"])
        .env(CHILD, count)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn every_confirmed_message_is_a_line_in_order() {
    let mut child = child_writing("5000");
    let reader = BufReader::new(child.stdout.take().unwrap());
    let mut numbers = Vec::new();
    // The harness's own "running 1 test" stands before.
    for line in reader.lines().map(Result::unwrap).filter(|line| line.starts_with('{')) {
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&line["topic"], &line["key"]), (&"orders".into(), &"k".into()));
        numbers.push(line["value"]["n"].as_u64().unwrap());
    }
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert_eq!(numbers, (0..5000).collect::<Vec<_>>());
}

#[test]
fn a_reader_that_goes_away_ends_the_sink_definitely() {
    let mut child = child_writing("all");
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while !line.starts_with('{') {
        line.clear();
        assert_ne!(reader.read_line(&mut line).unwrap(), 0);
    }
    drop(reader);
    assert_eq!(child.wait().unwrap().code(), Some(7));
}
