//! The ledger alone: entering, settling out of order and advancing, a row.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walpost::Ledger;

/// Rows that are on their way at once, and how many of them one confirm settles.
const ROWS: u64 = 16_000;
const BATCH: usize = 500;

/// Enters rows and settles them in batches, every second batch before the one that came first.
fn pass(ledger: &mut Ledger<u64>, rows_per_transaction: u64) {
    let mut tickets = Vec::with_capacity(ROWS as usize);
    for row in 0..ROWS {
        tickets.push(ledger.enter());
        if (row + 1) % rows_per_transaction == 0 {
            ledger.boundary(row);
        }
    }
    let mut batches = Vec::with_capacity(ROWS as usize / BATCH);
    while !tickets.is_empty() {
        batches.push(tickets.split_off(tickets.len() - BATCH));
    }
    batches.reverse();
    for pair in batches.chunks_mut(2) {
        for batch in pair.iter_mut().rev() {
            for ticket in batch.drain(..) {
                ledger.settle(ticket);
            }
            black_box(ledger.advance());
        }
    }
    assert!(ledger.is_empty(), "each row was settled");
}

fn ledger(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ledger");
    group.throughput(Throughput::Elements(ROWS));
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    for rows_per_transaction in [1, 100] {
        let mut ledger = Ledger::new(ROWS as usize);
        group.bench_function(format!("{rows_per_transaction} rows a transaction"), |bencher| {
            bencher.iter(|| pass(&mut ledger, rows_per_transaction));
        });
    }
    group.finish();
}

criterion_group!(benches, ledger);
criterion_main!(benches);
