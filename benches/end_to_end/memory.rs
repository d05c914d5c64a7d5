//! Peak memory where a relay that buffers would show it: one transaction of a million rows, and
//! a broker that is away while a backlog waits.

use std::time::Duration;

use crate::Program;
use crate::backlog::{Backlog, Drainer, start_relay};
use crate::support::process::eventually;
use crate::support::relay::peak_rss_bytes;
use crate::support::slot::{drop_slot, wait_drained};
use crate::table::Report;
use crate::target::Target;

const DRAIN_MAX: Duration = Duration::from_secs(300);

/// Both cases, each program.
pub fn measure(programs: &[Program], rows: u64, outage_seconds: u64, report: &mut Report) {
    let note = format!("Kafka; {rows} rows of 200 B jsonb. Peak resident memory (VmHWM) in MB.");
    report.table("Memory", &note, &["", "case", "MB"]);
    let mut target = Target::kafka();
    let whole = Backlog::write(rows, rows);
    for program in programs {
        let sink = target.url();
        let run = whole.drain(&Drainer::Relay { program, sink: &sink, broker: target.id() });
        assert_eq!(target.count(), Some(rows), "a run that loses or repeats is no result");
        target.empty();
        let megabytes = format!("{:.0}", run.peak_rss_bytes as f64 / 1e6);
        report.row(&[program.name(), "one transaction".to_owned(), megabytes]);
    }
    drop(whole);
    let backlog = Backlog::write(rows, 100);
    for program in programs {
        let bytes = outage(&backlog, program, &mut target, Duration::from_secs(outage_seconds));
        let case = format!("broker killed for {outage_seconds} s under the backlog");
        let megabytes = format!("{:.0}", bytes as f64 / 1e6);
        report.row(&[program.name(), case, megabytes]);
    }
}

/// Kills the broker when a tenth has arrived, and lets the relay finish after the outage.
fn outage(backlog: &Backlog, program: &Program, target: &mut Target, length: Duration) -> u64 {
    let slot = backlog.copy_slot();
    let mut relay = start_relay(program, &backlog.server.url(), &target.url(), &slot);
    let begun = eventually(DRAIN_MAX, || target.count() >= Some(backlog.rows / 10));
    assert!(begun, "nothing arrives: {}", relay.log());
    target.kill();
    // The outage itself is what is measured: there is no event to wait for.
    std::thread::sleep(length);
    target.restart();
    let drained = wait_drained(&backlog.client, &slot, backlog.end(), DRAIN_MAX);
    assert!(drained, "it does not recover: {}", relay.log());
    let peak = peak_rss_bytes(relay.id()).expect("it runs");
    relay.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(relay.wait(DRAIN_MAX).is_some(), "it does not stop");
    drop_slot(&backlog.client, &slot);
    // What was in the air when the broker died may have arrived twice, and none is missing.
    assert!(target.count() >= Some(backlog.rows), "rows are missing");
    target.empty();
    peak
}
