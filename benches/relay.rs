//! From rows in memory to acknowledged positions: encoding, lanes and ledger, with a sink that
//! confirms at once. No socket, no decoder, no broker.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::sync::watch;
use walpost::config::OutboxSettings;
use walpost::sink::null::NullSink;
use walpost::source::{Change, Source};
use walpost::{
    Budget, Columns, Encoder, Failure, Fingerprint, LogId, OutboxRow, RelayOptions, RowIdentity,
};

const ROWS: u64 = 100_000;
const KEYS: u64 = 1000;
/// Rows that one socket read brings.
const ROWS_PER_READ: u64 = 200;

/// Yields its rows, and asks for the stop when the last position is acknowledged.
struct Memory {
    next: u64,
    rows_per_transaction: u64,
    keys: Arc<[Bytes]>,
    buffer: Bytes,
    stop: watch::Sender<bool>,
}

impl Memory {
    fn row(&self, number: u64) -> OutboxRow {
        let transaction = number / self.rows_per_transaction;
        let ordinal = (number % self.rows_per_transaction) as u32;
        let identity = RowIdentity {
            log: LogId::postgres(1),
            transaction,
            ordinal,
            fingerprint: Fingerprint(1),
        };
        let mut row = OutboxRow::new(identity, 1_790_000_000_000_000);
        row.id = Some(self.buffer.slice(..36));
        row.aggregate_type = Some(Bytes::from_static(b"Order"));
        row.aggregate_id = Some(self.keys[(number % KEYS) as usize].clone());
        row.event_type = Some(self.buffer.slice(36..47));
        row.payload = Some(self.buffer.slice(47..247));
        row
    }
}

impl Source for Memory {
    type Position = u64;

    async fn next(&mut self, changes: &mut Vec<Change<u64>>) -> Result<(), Failure> {
        if self.next == ROWS {
            return std::future::pending().await;
        }
        for number in self.next..(self.next + ROWS_PER_READ).min(ROWS) {
            changes.push(Change::Row(self.row(number)));
            if (number + 1) % self.rows_per_transaction == 0 {
                changes.push(Change::Commit(number + 1));
            }
        }
        self.next = (self.next + ROWS_PER_READ).min(ROWS);
        Ok(())
    }

    fn acknowledge(&mut self, position: u64) {
        if position == ROWS {
            self.stop.send_replace(true);
        }
    }

    fn behind_bytes(&self) -> Option<u64> {
        None
    }

    async fn close(self) -> Result<(), Failure> {
        Ok(())
    }
}

async fn pass(rows_per_transaction: u64, keys: Arc<[Bytes]>) {
    let outbox = OutboxSettings {
        columns: Columns::debezium(),
        topic: "outbox.event.{aggregatetype}".into(),
        extra_headers: Vec::new(),
        partition: None,
    };
    let (stop, stopped) = watch::channel(false);
    let buffer = Bytes::from(vec![b'x'; 300]);
    let source = Memory { next: 0, rows_per_transaction, keys, buffer, stop };
    let sink = Arc::new(NullSink);
    let encoder = Encoder::new(&outbox).expect("a template");
    let options = RelayOptions::default();
    let summary = walpost::run(source, sink, encoder, Budget::new(1 << 20), options, stopped).await;
    assert_eq!(summary.expect("nothing fails").confirmed, ROWS);
}

fn relay(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime can be made");
    let keys: Arc<[Bytes]> = (0..KEYS).map(|key| Bytes::from(format!("order-{key}"))).collect();
    let mut group = criterion.benchmark_group("relay");
    group.throughput(Throughput::Elements(ROWS)).sample_size(10);
    group.warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(3));
    for rows_per_transaction in [1, 100] {
        group.bench_function(format!("{rows_per_transaction} rows a transaction"), |bencher| {
            bencher.iter(|| runtime.block_on(pass(rows_per_transaction, Arc::clone(&keys))));
        });
    }
    group.finish();
}

criterion_group!(benches, relay);
criterion_main!(benches);
