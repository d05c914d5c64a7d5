use super::*;
use crate::failure::FailureKind;
use crate::identity::{Fingerprint, LogId, RowIdentity};
use crate::message::Header;
use crate::sink::Verdict;

fn message(value: Option<&'static [u8]>) -> Message {
    Message {
        topic: "orders".into(),
        key: Some(Bytes::from_static(b"4\"2")),
        value: value.map(Bytes::from_static),
        id: Some(Bytes::from_static(b"7")),
        event_type: None,
        headers: ["a", "a"]
            .iter()
            .map(|name| Header { name: (*name).into(), value: Bytes::from_static(b"\xff\x00") })
            .collect(),
        timestamp_micros: 1_709_210_096_000_001,
        partition: None,
        identity: RowIdentity {
            log: LogId(1),
            transaction: 2,
            ordinal: 3,
            fingerprint: Fingerprint(4),
        },
    }
}

/// Keeps what was written; fails as often as told, after taking half of it.
#[derive(Clone, Default)]
struct Shared {
    bytes: Arc<Mutex<Vec<u8>>>,
    failures: Arc<Mutex<Vec<ErrorKind>>>,
}

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.bytes.lock().unwrap();
        if let Some(kind) = self.failures.lock().unwrap().pop() {
            kept.extend_from_slice(&bytes[..bytes.len() / 2]);
            return Err(kind.into());
        }
        kept.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Shared {
    fn text(&self) -> String {
        String::from_utf8(self.bytes.lock().unwrap().clone()).unwrap()
    }
}

#[tokio::test]
async fn a_line_parses_back_to_its_message() {
    let shared = Shared::default();
    let sink = StdoutSink::writing_to(Box::new(shared.clone()));

    let verdicts =
        sink.deliver_all(&[message(Some(br#"{"a":1.50}"#)), message(None)]).await.unwrap();

    assert_eq!(verdicts, [Verdict::Confirmed, Verdict::Confirmed]);
    let text = shared.text();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].ends_with(r#","value":{"a":1.50}}"#), "the payload is untouched: {text}");
    let line: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
    let expected = serde_json::json!({
        "topic": "orders", "key": "4\"2", "id": "7", "type": null,
        "headers": [["a", {"base64": "/wA="}], ["a", {"base64": "/wA="}]],
        "timestamp": "2024-02-29T12:34:56.000001Z", "identity": "2:1:2:3:0000000000000004", "value": null,
    });
    assert_eq!(line, expected);
}

#[test]
fn a_payload_is_json_else_text_else_base64() {
    for (payload, expected) in [
        (&b"{\n  \"a\": \"b\\n\"\r\n}"[..], r#"{   "a": "b\n"  }"#),
        (b"12345678901234567890123", "12345678901234567890123"),
        (b"plain\ntext", r#""plain\ntext""#),
        (b"", r#""""#),
        (b"\xff\xfe\xfd\xfc", r#"{"base64":"//79/A=="}"#),
    ] {
        assert_eq!(serde_json::to_string(&Value(payload)).unwrap(), expected);
    }
}

#[test]
fn base64_pads_as_the_rfc_says() {
    // RFC 4648, section 10.
    for (bytes, text) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
        assert_eq!(base64(bytes.as_bytes()), text);
    }
}

#[test]
fn a_timestamp_is_right_at_leap_days_and_before_1970() {
    for (micros, text) in [
        (0, "1970-01-01T00:00:00.000000Z"),
        (-1, "1969-12-31T23:59:59.999999Z"),
        (951_782_400_000_000, "2000-02-29T00:00:00.000000Z"),
        (4_107_542_400_000_000, "2100-03-01T00:00:00.000000Z"),
        (1_735_689_599_000_000, "2024-12-31T23:59:59.000000Z"),
    ] {
        assert_eq!(rfc3339(micros), text);
    }
}

#[tokio::test]
async fn a_closed_stdout_is_definite_and_a_full_disk_is_not() {
    let shared = Shared::default();
    let sink = StdoutSink::writing_to(Box::new(shared.clone()));
    *shared.failures.lock().unwrap() = vec![ErrorKind::StorageFull, ErrorKind::BrokenPipe];

    let closed = sink.deliver_all(&[message(None)]).await.unwrap_err();
    assert_eq!(closed.kind(), FailureKind::Definite);
    assert!(closed.to_string().contains("stdout was closed"));

    let full = sink.deliver_all(&[message(None)]).await.unwrap_err();
    assert_eq!(full.kind(), FailureKind::Transient);

    sink.deliver_all(&[message(None)]).await.unwrap();
    let text = shared.text();
    let last = text.lines().last().unwrap();
    assert!(serde_json::from_str::<serde_json::Value>(last).is_ok(), "no half line before it");
}
