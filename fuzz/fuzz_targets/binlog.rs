//! Any bytes as a capture (u32 length, event, …, as in tests/fixtures/binlog/events), of either kind
//! of server: no panic, no endless loop, no row but before the end of its transaction. Those
//! captures are the corpus to start with; the first byte chooses the server, and a checksum that
//! does not fit is made to, so that what is behind it is met.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use walpost::bench_mysql::{Decoded, Decoder, DecoderSettings};
use walpost::source::mysql::Flavor;
use walpost::{Budget, Columns};

/// Bounds that a small machine has, too.
const BYTES_MAX: usize = 1 << 20;

fuzz_target!(|capture: &[u8]| {
    let Some((first, capture)) = capture.split_first() else { return };
    let budget = Budget::new(usize::MAX);
    let mut decoder = Decoder::new(DecoderSettings {
        flavor: if first % 2 == 0 { Flavor::MySql } else { Flavor::MariaDb },
        schema: "app".into(),
        table: "outbox".into(),
        columns: Columns::debezium(),
        server_uuid: 7,
        event_bytes_max: BYTES_MAX,
        payload_bytes_max: BYTES_MAX,
        held_bytes_max: BYTES_MAX,
        skipped: Vec::new(),
    types: Vec::new(),
        budget: budget.clone(),
    });
    decoder.reset("binlog.000001", 4);
    let mut rest = capture;
    let mut out = Vec::new();
    let mut rows = 0;
    while let Some((length, events)) = rest.split_first_chunk::<4>() {
        let length = events.len().min(u32::from_le_bytes(*length) as usize);
        let (event, events) = events.split_at(length);
        rest = events;
        let mut result = decoder.event(&sealed(event), &mut out);
        loop {
            for decoded in out.drain(..) {
                match decoded {
                    Decoded::Row(_) => rows += 1,
                    Decoded::End(end) => {
                        assert_eq!(end.rows, rows, "an end counts the rows before it");
                        rows = 0;
                    }
                }
            }
            assert!(budget.held_bytes() < 64 * BYTES_MAX);
            if result.is_err() || !decoder.has_more() {
                break;
            }
            result = decoder.step(&mut out);
        }
        if result.is_err() {
            decoder.reset("binlog.000001", 4);
            rows = 0;
        }
    }
});

/// Header's length and checksum as they should be, where there is room for them.
fn sealed(event: &[u8]) -> Bytes {
    let mut bytes = event.to_vec();
    if let (Ok(length), Some(stated)) = (u32::try_from(bytes.len()), bytes.get_mut(9..13)) {
        stated.copy_from_slice(&length.to_le_bytes());
    }
    if let Some(covered) = bytes.len().checked_sub(4).filter(|covered| *covered >= 19) {
        let sum = crc32fast::hash(&bytes[..covered]);
        bytes[covered..].copy_from_slice(&sum.to_le_bytes());
    }
    bytes.into()
}
