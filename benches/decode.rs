//! Decoding alone: from messages of a log in memory to rows.
//!
//! Transactions of 100 rows with a JSON payload of 200 bytes: pgoutput in binary format, built as
//! PostgreSQL sends it, and the binlog as MySQL and MariaDB sent it. Prints allocations a row
//! first; criterion then says time and rows a second.

#![allow(missing_docs, reason = "criterion's macros make undocumented functions")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::hint::black_box;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walpost::bench::Decoder;
use walpost::bench_mysql::{self, Decoded};
use walpost::source::mysql::Flavor;
use walpost::{Budget, Columns, LogId};

const ROWS: u32 = 100;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

struct Counting;

#[expect(unsafe_code, reason = "the only way to count allocations; passes all on to the system")]
// SAFETY: every call goes unchanged to `System`, which keeps the contract.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn relation() -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_u8(b'R');
    bytes.put_u32(1);
    bytes.put_slice(b"public\0outbox\0d");
    let columns: [(&[u8], u32); 6] = [
        (b"id", 2950),
        (b"aggregatetype", 25),
        (b"aggregateid", 25),
        (b"type", 25),
        (b"payload", 3802),
        (b"created_at", 1184),
    ];
    bytes.put_u16(columns.len() as u16);
    for (name, type_oid) in columns {
        bytes.put_u8(0);
        bytes.put_slice(name);
        bytes.put_u8(0);
        bytes.put_u32(type_oid);
        bytes.put_i32(-1);
    }
    bytes.freeze()
}

fn insert(row: u32) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_slice(b"I\0\0\0\x01N\0\x06");
    let mut payload = vec![1];
    payload.extend(format!("{{\"row\": {row:05}, \"text\": \"{}\"}}", "x".repeat(174)).bytes());
    let key = format!("order-{row:05}");
    let id = uuid::Uuid::from_u128(u128::from(row)).into_bytes();
    let created_at = 700_000_000_000_000_i64.to_be_bytes();
    for value in [&id[..], b"order", key.as_bytes(), b"OrderPlaced", &payload, &created_at] {
        bytes.put_u8(b'b');
        bytes.put_u32(value.len() as u32);
        bytes.put_slice(value);
    }
    bytes.freeze()
}

/// Begin, the rows and Commit, all slices of one buffer, as a socket's are.
fn transaction() -> Vec<Bytes> {
    let mut begin = BytesMut::new();
    begin.put_u8(b'B');
    begin.put_u64(100);
    begin.put_i64(0);
    begin.put_u32(7);
    let mut commit = BytesMut::new();
    commit.put_u8(b'C');
    commit.put_u8(0);
    commit.put_u64(100);
    commit.put_u64(108);
    commit.put_i64(0);
    let mut messages = vec![begin.freeze()];
    messages.extend((0..ROWS).map(insert));
    messages.push(commit.freeze());
    let buffer = Bytes::from(messages.concat());
    let mut start = 0;
    let mut slices = Vec::new();
    for message in &messages {
        slices.push(buffer.slice(start..start + message.len()));
        start += message.len();
    }
    slices
}

fn decode(criterion: &mut Criterion) {
    let log = LogId::postgres(1);
    let mut decoder = Decoder::new("public".into(), "outbox".into(), Columns::debezium(), log);
    let messages = transaction();
    let (begin, rest) = messages.split_first().expect("a transaction has a Begin");
    let mut changes = Vec::with_capacity(messages.len());
    // The relation is announced in the first transaction only.
    for message in [begin, &relation()].into_iter().chain(rest) {
        decoder.decode(message, &mut changes).expect("a valid stream");
    }
    let run = || {
        changes.clear();
        for message in &messages {
            decoder.decode(black_box(message), &mut changes).expect("a valid stream");
        }
        assert_eq!(black_box(&changes).len(), messages.len() - 1);
    };
    measure(criterion, "100 rows of 200 B jsonb, binary pgoutput", run);
}

/// The events of a capture, all slices of one buffer, as a socket's are.
fn capture(name: &str) -> Vec<Bytes> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/binlog/events");
    let read = std::fs::read(folder.join(format!("{name}-hundred.events")));
    let mut rest = Bytes::from(read.expect("the capture is there"));
    let mut events = Vec::new();
    while !rest.is_empty() {
        let length = rest.get_u32_le() as usize;
        events.push(rest.split_to(length));
    }
    events
}

fn decode_binlog(criterion: &mut Criterion) {
    for (name, flavor, title, gtid_event) in [
        ("mysql97", Flavor::MySql, "100 rows of 200 B JSON, binlog of MySQL", 33),
        ("mariadb1011", Flavor::MariaDb, "100 rows of 200 B JSON, binlog of MariaDB", 162),
    ] {
        let mut decoder = bench_mysql::Decoder::new(bench_mysql::DecoderSettings {
            flavor,
            schema: "app".into(),
            table: "outbox".into(),
            columns: Columns::debezium(),
            server_uuid: 7,
            event_bytes_max: 1 << 20,
            payload_bytes_max: 1 << 20,
            held_bytes_max: 1 << 20,
            skipped: Vec::new(),
            types: Vec::new(),
            budget: Budget::new(1 << 30),
        });
        let events = capture(name);
        let begin = events.iter().position(|event| event.get(4) == Some(&gtid_event));
        let (head, transaction) = events.split_at(begin.expect("a transaction has a GTID"));
        let mut decoded = Vec::with_capacity(ROWS as usize + 1);
        // The file's own description comes once.
        for event in head {
            decoder.event(event, &mut decoded).expect("a valid stream");
        }
        let run = || {
            decoded.clear();
            for event in transaction {
                decoder.event(black_box(event), &mut decoded).expect("a valid stream");
            }
            let end = black_box(&decoded).last();
            assert!(matches!(end, Some(Decoded::End(end)) if end.rows == ROWS));
        };
        measure(criterion, title, run);
    }
}

/// Allocations a row, then time.
fn measure(criterion: &mut Criterion, title: &str, mut run: impl FnMut()) {
    // What is made once a table is not counted.
    run();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    (0..1000).for_each(|_| run());
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    println!("{title}: allocations a row: {:.4}", allocations as f64 / (1000.0 * f64::from(ROWS)));
    let mut group = criterion.benchmark_group("decode");
    group.throughput(Throughput::Elements(u64::from(ROWS)));
    group.bench_function(title, |bencher| bencher.iter(&mut run));
    group.finish();
}

criterion_group!(benches, decode, decode_binlog);
criterion_main!(benches);
