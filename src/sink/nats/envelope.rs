//! A `Message` as NATS carries it: subject, headers and the size that a server counts.
//!
//! Pure. Owns what NATS cannot carry; each refusal names the subject or header and the remedy.

use async_nats::HeaderMap;
use async_nats::header::{HeaderName, HeaderValue};
use bytes::Bytes;

use crate::message::{HEADER_IDENTITY, Message};

/// Subject, reply subject and two lengths share a line of 4096 bytes at most (the server's
/// `max_control_line`); beyond it the server ends the connection for everybody on it.
const SUBJECT_BYTES_MAX: usize = 3072;

/// What the server deduplicates by within a stream's `duplicate_window`.
pub(super) const MESSAGE_ID: &str = "Nats-Msg-Id";

/// The one `Nats-` header that a row may bring: a per-message time to live. Others would steer
/// the stream (roll-up, expected sequence, batches) or deduplicate by a column.
const TIME_TO_LIVE: &str = "Nats-TTL";

/// Whether a publish may go to this subject; `shown` is what a line may call it.
pub(super) fn check_subject(subject: &str, shown: &str) -> Result<(), String> {
    let problem = if subject.is_empty() {
        "is empty"
    } else if subject.len() > SUBJECT_BYTES_MAX {
        return Err(format!(
            "the subject is {} bytes long; NATS takes at most {SUBJECT_BYTES_MAX}: shorten the \
             topic",
            subject.len()
        ));
    } else if subject.contains(|c: char| c.is_whitespace() || c.is_control()) {
        "has a blank or a control character"
    } else if subject.split('.').any(str::is_empty) {
        "has an empty token (a dot at its start or end, or two in a row)"
    } else if subject.split('.').any(|token| token == "*" || token == ">") {
        "has a wildcard token, which is for subscribers only"
    } else if ["$JS", "$SYS"].contains(&subject.split('.').next().unwrap_or_default()) {
        "is the server's own: a row could delete streams there"
    } else {
        return Ok(());
    };
    Err(format!("subject {shown:?} {problem}: change the row's topic or the topic template"))
}

/// Deduplication id, identity, key and the message's own headers.
pub(super) fn headers(
    message: &Message,
    key_header: Option<&HeaderName>,
) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let identity = message.identity.text();
    headers.insert(MESSAGE_ID, identity.as_str());
    headers.insert(HEADER_IDENTITY, identity.as_str());
    if let (Some(name), Some(key)) = (key_header, &message.key) {
        headers.append(name.clone(), value("the key", key)?);
    }
    for (name, bytes) in message.headers() {
        let reserved = name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("nats-"));
        if reserved && name != TIME_TO_LIVE {
            return Err(format!(
                "header {name:?} would steer the server; of the \"Nats-\" headers a row may only \
                 bring \"{TIME_TO_LIVE}\": rename it in the row"
            ));
        }
        let parsed: HeaderName = name.parse().map_err(|_| {
            format!("header {name:?} is no NATS header name (visible ASCII without a colon)")
        })?;
        headers.append(parsed, value(&format!("header {name:?}"), bytes)?);
    }
    Ok(headers)
}

fn value(what: &str, bytes: &Bytes) -> Result<HeaderValue, String> {
    let remedy = "NATS cannot carry that in a header: put it into the payload";
    let text =
        std::str::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8 text; {remedy}"))?;
    text.parse().map_err(|_| format!("{what} has a line break; {remedy}"))
}

/// Bytes of the header block and the payload: what `max_payload` and `max_msg_size` bound.
///
/// Layout: `NATS/1.0\r\n`, `name: value\r\n` each, `\r\n`, payload (ADR-4).
pub(super) fn size_bytes(headers: &HeaderMap, payload: &Bytes) -> usize {
    let mut size = "NATS/1.0\r\n\r\n".len() + payload.len();
    for (name, values) in headers.iter() {
        let name: &str = name.as_ref();
        size += values.iter().map(|value| name.len() + value.as_str().len() + 4).sum::<usize>();
    }
    size
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::identity::{Fingerprint, LogId, RowIdentity};
    use crate::message::Header;

    fn message(name: &str, value: &'static [u8]) -> Message {
        Message {
            topic: Arc::from("orders.created"),
            key: Some(Bytes::from_static(b"42")),
            value: None,
            id: Some(Bytes::from_static(b"7")),
            event_type: None,
            headers: vec![Header { name: name.into(), value: Bytes::from_static(value) }],
            timestamp_micros: 0,
            partition: None,
            identity: RowIdentity {
                log: LogId(1),
                transaction: 2,
                ordinal: 3,
                fingerprint: Fingerprint(4),
            },
        }
    }

    #[test]
    fn a_subject_that_nats_cannot_carry_is_refused_by_its_name() {
        for subject in
            ["", "a b", "a..b", ".a", "a.", "a.*", ">", "a.>", "a\r\nb", "$JS.API.X", "$SYS.X"]
        {
            let reason = check_subject(subject, subject).unwrap_err();
            assert!(reason.contains(&format!("{subject:?}")), "{reason}");
        }
        assert!(check_subject(&"a".repeat(4000), "").unwrap_err().contains("4000"));
        for subject in ["a", "outbox.event.Order", "a*b.c", "größe.x", "$KV.b.k"] {
            assert_eq!(check_subject(subject, subject), Ok(()));
        }
    }

    #[test]
    fn a_header_that_nats_cannot_carry_is_refused_by_its_name() {
        let key_header: HeaderName = "walpost-key".parse().unwrap();
        for (name, value) in [
            ("trace", &b"a\r\nb"[..]),
            ("trace", b"a\nb"),
            ("trace", b"\xff"),
            ("tra ce", b"a"),
            ("tra:ce", b"a"),
            ("nats-msg-id", b"a"),
            ("Nats-Rollup", b"all"),
        ] {
            let reason = headers(&message(name, value), Some(&key_header)).unwrap_err();
            assert!(reason.contains(&format!("{name:?}")), "{reason}");
        }
        let kept = headers(&message("Nats-TTL", b"1h"), Some(&key_header)).unwrap();
        assert_eq!(kept.get("Nats-TTL").unwrap().as_str(), "1h");
        assert_eq!(kept.get("walpost-key").unwrap().as_str(), "42");
        assert_eq!(kept.get("Nats-Msg-Id").unwrap().as_str(), "2:1:2:3:0000000000000004");
    }

    #[test]
    fn the_size_is_that_of_the_bytes_on_the_wire() {
        let mut headers = HeaderMap::new();
        headers.insert("a", "bc");
        assert_eq!(
            size_bytes(&headers, &Bytes::from_static(b"xyz")),
            "NATS/1.0\r\na: bc\r\n\r\nxyz".len()
        );
    }
}
