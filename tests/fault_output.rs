//! What walpost writes to is full, closed, or read by nobody: log lines may be lost, and nothing
//! else; and no reader keeps a process alive that was told to end.

use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};

use nix::sys::signal::Signal;

use crate::support::ledger::Ledger;
use crate::support::postgres::{Client, Postgres};
use crate::support::process::{Process, eventually, scratch};
use crate::support::relay::program;
use crate::support::slot::{end_of_log, slot_state};
use crate::support::stage::{PATIENCE, bulk, empty_outbox};

fn run(name: &str, sink: &str, settings: &[&str]) -> Command {
    let mut command = program();
    command.args(["run", "--source", &Postgres::shared().url_for(name), "--sink", sink]);
    command.args(["--slot", name, "--publication", name]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    command
}

fn confirmed(client: &Client, name: &str) -> u64 {
    slot_state(client, name).expect("the slot stays").confirmed_flush_lsn
}

/// A relay into a pipe that nobody reads, with more rows than the pipe takes.
fn stuck(prefix: &str, settings: &[&str]) -> Process {
    let server = Postgres::shared();
    let name = empty_outbox(server, prefix);
    let client = server.client_for(&name);
    let log = scratch("output").join("log");
    let settings = [&["relay.stall_warning=1s"], settings].concat();
    let errors = File::create(&log).unwrap();
    let command = run(&name, "stdout:", &settings);
    let process = Process::spawn_with(command, None, &log, Stdio::piped(), Stdio::from(errors));
    bulk(&client, &Ledger::new(), 2_000);
    let waits = || process.log().contains("rows wait without a confirm");
    assert!(eventually(PATIENCE, waits), "{}", process.log());
    process
}

#[test]
fn a_stop_does_not_wait_for_a_reader_that_does_not_read() {
    let mut process = stuck("unread", &["relay.drain_seconds_max=1"]);
    process.signal(Signal::SIGTERM);
    let status = process.wait(PATIENCE);
    assert!(status.is_some_and(|status| status.success()), "{status:?}\n{}", process.log());
    assert!(process.log().contains("the time to drain"), "{}", process.log());
}

#[test]
fn a_second_signal_ends_a_relay_that_still_drains() {
    let mut process = stuck("second", &["relay.drain_seconds_max=3600"]);
    process.signal(Signal::SIGTERM);
    let drains = || process.log().contains("draining what was read");
    assert!(eventually(PATIENCE, drains), "{}", process.log());
    process.signal(Signal::SIGTERM);
    let status = process.wait(PATIENCE);
    assert_eq!(status.and_then(|status| status.code()), Some(1), "{}", process.log());
}

/// Rows go on although the log goes nowhere, and a stop is clean.
fn relays_without_a_log(prefix: &str, stderr: Stdio) {
    let server = Postgres::shared();
    let name = empty_outbox(server, prefix);
    let client = server.client_for(&name);
    // One line for everything that happens fills a pipe within a moment.
    let command = run(&name, "null://", &["log.level=walpost=trace"]);
    let log = scratch("output").join("log");
    let mut process = Process::spawn_with(command, None, &log, Stdio::null(), stderr);
    for _ in 0..3 {
        bulk(&client, &Ledger::new(), 1_000);
        let end = end_of_log(&client);
        assert!(eventually(PATIENCE, || confirmed(&client, &name) >= end), "{prefix}");
    }
    process.signal(Signal::SIGTERM);
    let status = process.wait(PATIENCE);
    assert!(status.is_some_and(|status| status.success()), "{prefix}: {status:?}");
}

#[test]
fn a_log_that_nobody_can_take_costs_lines_and_nothing_else() {
    relays_without_a_log("log_full", Stdio::from(File::create("/dev/full").unwrap()));
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    relays_without_a_log("log_closed", Stdio::from(writer));
    let (reader, writer) = std::io::pipe().unwrap();
    relays_without_a_log("log_unread", Stdio::from(writer));
    drop(reader);
}

#[test]
fn what_a_verb_prints_may_have_no_reader() {
    let server = Postgres::shared();
    let name = empty_outbox(server, "print");
    let url = server.url_for(&name);
    for verb in [&["config"][..], &["check"], &["check", "--json"]] {
        for closed in [true, false] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let output = match closed {
                true => Stdio::from(writer),
                false => Stdio::from(File::create("/dev/full").unwrap()),
            };
            let log = scratch("output").join("log");
            let mut command = program();
            command.args(verb).args(["--source", &url, "--sink", "null://", "--slot", &name]);
            let errors = Stdio::from(File::create(&log).unwrap());
            let mut process = Process::spawn_with(command, None, &log, output, errors);
            let code = process.wait(PATIENCE).and_then(|status| status.code());
            let log = fs::read_to_string(&log).unwrap();
            assert!(matches!(code, Some(0 | 1)), "{verb:?} {closed} {code:?}: {log}");
            assert_eq!(log.contains("could not write to stdout"), !closed, "{verb:?}: {log}");
        }
    }
    // The reason for an end without a place to be said is still an exit code.
    let mut command = program();
    command.args(["config", "--sink", "null://"]).stdout(Stdio::null());
    let full = command.stderr(File::create("/dev/full").unwrap()).status().unwrap();
    assert_eq!(full.code(), Some(2));
    let mut command = program();
    command.args(["config", "--source", &url, "--sink", "oracle://"]).stderr(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).spawn().unwrap();
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2), "{said}");
    assert!(said.starts_with("walpost: no sink has the scheme"), "{said}");
}
