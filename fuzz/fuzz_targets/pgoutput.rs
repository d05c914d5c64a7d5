//! Any bytes as a capture (u32 length, frame, …, as in tests/fixtures/pgoutput): no panic, and
//! no row without a Begin before it. Those captures are the corpus to start with.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use walpost::bench::{Decoder, Frame};
use walpost::source::Change;
use walpost::{Columns, LogId};

fuzz_target!(|capture: &[u8]| {
    let mut rest = Bytes::copy_from_slice(capture);
    let mut decoder =
        Decoder::new("app".into(), "outbox".into(), Columns::debezium(), LogId::postgres(1));
    let mut changes = Vec::new();
    while let Some(length) = rest.first_chunk::<4>().copied().map(u32::from_be_bytes) {
        drop(rest.split_to(4));
        let frame = rest.split_to(rest.len().min(length as usize));
        let Ok(Frame::XLogData(data)) = Frame::parse(&frame) else { continue };
        changes.clear();
        let failed = decoder.decode(&data.data, &mut changes).is_err();
        assert!(!failed || changes.is_empty(), "an error appends nothing");
        for change in &changes {
            assert!(matches!(change, Change::Commit(_)) || decoder.in_transaction());
        }
    }
});
