//! A row to a message. Pure: knows neither the source's kind nor async.
//!
//! The default path parses nothing and copies nothing: key, value, id and type are the slices that
//! the source cut out of what it read.

use std::fmt;

use bytes::Bytes;
use serde::de::{Deserializer as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::config::OutboxSettings;
use crate::identity::RowIdentity;
use crate::message::{HEADER_ID, HEADER_IDENTITY, HEADER_TYPE, Header, Message};
use crate::outbox::OutboxRow;
use crate::route::{RouteError, Router, Template, TemplateError};

/// A row that cannot become a message. Not a matter of time: the row is what it is.
#[derive(Debug, thiserror::Error)]
#[error("row {identity} cannot become a message: {problem}")]
pub struct EncodeError {
    /// Where the row stands in the log.
    pub identity: RowIdentity,
    /// What is wrong with it; never holds a value of the row.
    #[source]
    pub problem: EncodeProblem,
}

/// What is wrong with a row.
#[derive(Debug, thiserror::Error)]
pub enum EncodeProblem {
    /// It has no topic.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The headers column does not hold a JSON object.
    #[error(
        "its headers column is not a JSON object (line {line}, column {column}); let the writer \
         write one, or leave the column out with outbox.columns.headers = \"\""
    )]
    Headers {
        /// Of the JSON text, from 1.
        line: usize,
        /// Of the JSON text, from 1.
        column: usize,
    },
    /// The partition column does not hold a partition.
    #[error("its partition column is not a whole number from 0 to 2147483647")]
    Partition,
}

/// Headers that rows brought along under a name that walpost writes itself.
#[derive(Debug)]
pub(crate) struct LeftOut {
    pub(crate) name: Box<str>,
    pub(crate) count: u64,
}

impl LeftOut {
    /// How the row's own header can be sent.
    pub(crate) fn remedy(&self) -> String {
        match &*self.name {
            HEADER_IDENTITY => "no setting changes that: it is the row's identity".to_owned(),
            name @ (HEADER_ID | HEADER_TYPE) => {
                format!("outbox.columns.{name} = \"\" sends theirs instead of the column")
            }
            name => format!("the column of outbox.extra_headers.{name} is sent"),
        }
    }
}

/// Makes messages of rows.
#[derive(Debug)]
pub struct Encoder {
    router: Router,
    /// Headers from further columns: name, and index into [`OutboxRow::extra`].
    placed: Vec<(Box<str>, usize)>,
    partition: Option<usize>,
    /// By name, in the order of their first row.
    left_out: Vec<LeftOut>,
}

impl Encoder {
    /// An encoder for the `[outbox]` table of a configuration.
    ///
    /// # Errors
    /// The topic template cannot be read.
    pub fn new(outbox: &OutboxSettings) -> Result<Self, TemplateError> {
        // The settings have mapped the further columns of the template already.
        let topic = Template::parse(&outbox.topic, &mut outbox.columns.clone())?;
        let placed = outbox.extra_headers.iter();
        let placed = placed.map(|header| (header.name.as_str().into(), header.extra)).collect();
        let router = Router::new(topic);
        Ok(Self { router, placed, partition: outbox.partition, left_out: Vec::new() })
    }

    /// Whether walpost writes a header of this name for this row, which leaves out the row's own.
    /// An `id` or `type` that is not mapped, or NULL, is not written, and the row's own stays.
    fn is_taken(&mut self, row: &OutboxRow, name: &str) -> bool {
        let placed = |placed: &(Box<str>, usize)| {
            *placed.0 == *name && matches!(row.extra.get(placed.1), Some(Some(_)))
        };
        let is_taken = match name {
            HEADER_ID => row.id.is_some(),
            HEADER_TYPE => row.event_type.is_some(),
            HEADER_IDENTITY => true,
            _ => false,
        };
        if !is_taken && !self.placed.iter().any(placed) {
            return false;
        }
        match self.left_out.iter_mut().find(|of| *of.name == *name) {
            Some(of) => of.count += 1,
            None => self.left_out.push(LeftOut { name: name.into(), count: 1 }),
        }
        true
    }

    /// The message of a row.
    ///
    /// # Errors
    /// The row cannot become a message; never heals.
    pub fn message(&mut self, row: OutboxRow) -> Result<Message, EncodeError> {
        let identity = row.identity;
        self.try_message(row).map_err(|problem| EncodeError { identity, problem })
    }

    /// Headers of rows that were left out until now: at most one entry a name of ours.
    pub(crate) fn left_out(&self) -> &[LeftOut] {
        &self.left_out
    }

    fn try_message(&mut self, row: OutboxRow) -> Result<Message, EncodeProblem> {
        let topic = self.router.topic(&row)?;
        let mut headers = match &row.headers {
            Some(json) => own_headers(json)?,
            None => Vec::new(),
        };
        headers.retain(|header| !self.is_taken(&row, &header.name));
        for (name, index) in &self.placed {
            if let Some(Some(value)) = row.extra.get(*index) {
                headers.push(Header { name: name.clone(), value: value.clone() });
            }
        }
        let partition = match self.partition.and_then(|index| row.extra.get(index)?.as_ref()) {
            Some(text) => Some(partition(text).ok_or(EncodeProblem::Partition)?),
            None => None,
        };
        Ok(Message {
            topic,
            key: row.aggregate_id,
            value: row.payload,
            id: row.id,
            event_type: row.event_type,
            headers,
            timestamp_micros: row.created_at_micros.unwrap_or(row.committed_at_micros),
            partition,
            identity: row.identity,
        })
    }
}

fn partition(text: &[u8]) -> Option<i32> {
    let partition: i32 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (partition >= 0).then_some(partition)
}

/// The members of a JSON object as headers: a string as its text, anything else as its JSON text,
/// null as no header.
fn own_headers(json: &Bytes) -> Result<Vec<Header>, EncodeProblem> {
    struct Members;
    impl<'de> Visitor<'de> for Members {
        type Value = Vec<Header>;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a JSON object")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<Header>, A::Error> {
            let mut headers = Vec::new();
            while let Some((name, value)) = map.next_entry::<Box<str>, &RawValue>()? {
                let text = value.get();
                if text == "null" {
                    continue;
                }
                let value = if text.starts_with('"') {
                    let unescaped: String =
                        serde_json::from_str(text).map_err(serde::de::Error::custom)?;
                    Bytes::from(unescaped)
                } else {
                    Bytes::copy_from_slice(text.as_bytes())
                };
                headers.push(Header { name, value });
            }
            Ok(headers)
        }
    }
    let problem = |error: serde_json::Error| EncodeProblem::Headers {
        line: error.line(),
        column: error.column(),
    };
    if is_none(json) {
        return Ok(Vec::new());
    }
    let mut reader = serde_json::Deserializer::from_slice(json);
    let headers = reader.deserialize_map(Members).map_err(problem)?;
    reader.end().map_err(problem)?;
    Ok(headers)
}

/// Ways to write "no headers" beside NULL and `{}`: empty text, JSON null, and `[]`, which is how
/// PHP encodes an empty map.
fn is_none(json: &[u8]) -> bool {
    let json = json.trim_ascii();
    let inside = || json.strip_prefix(b"[")?.strip_suffix(b"]");
    json.is_empty()
        || json == b"null"
        || inside().is_some_and(|inside| inside.trim_ascii().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ExtraHeader;
    use crate::identity::{Fingerprint, LogId};
    use crate::outbox::Columns;

    fn row() -> OutboxRow {
        let identity = RowIdentity {
            log: LogId(1),
            transaction: 0xAB,
            ordinal: 3,
            fingerprint: Fingerprint(0),
        };
        let mut row = OutboxRow::new(identity, 1_000);
        row.aggregate_type = Some(Bytes::from_static(b"Order"));
        row.aggregate_id = Some(Bytes::from_static(b"o-1"));
        row.payload = Some(Bytes::from_static(b"{\"n\": 9007199254740993, \"d\": 1.10}"));
        row
    }

    fn outbox() -> OutboxSettings {
        OutboxSettings {
            columns: Columns::debezium(),
            topic: "outbox.event.{aggregatetype}".into(),
            extra_headers: Vec::new(),
            partition: None,
        }
    }

    fn encoder() -> Encoder {
        Encoder::new(&outbox()).unwrap()
    }

    #[test]
    fn payload_and_key_are_the_very_bytes_that_were_read() {
        let row = row();
        let (key, payload) = (row.aggregate_id.clone().unwrap(), row.payload.clone().unwrap());
        let message = encoder().message(row).unwrap();
        assert_eq!(message.key.unwrap().as_ptr(), key.as_ptr());
        assert_eq!(message.value.unwrap().as_ptr(), payload.as_ptr());
        assert_eq!(message.timestamp_micros, 1_000);
    }

    #[test]
    fn a_null_payload_is_a_tombstone() {
        let mut row = row();
        row.payload = None;
        assert!(encoder().message(row).unwrap().value.is_none());
    }

    #[test]
    fn members_of_the_headers_column_become_headers_in_their_order() {
        let mut row = row();
        let json = r#" {"traceparent":"00-ab\u0021","n":1.10,"o":{"a": [1]},"none":null} "#;
        row.headers = Some(Bytes::from_static(json.as_bytes()));
        let headers = encoder().message(row).unwrap().headers;
        let pairs: Vec<_> = headers.iter().map(|header| (&*header.name, &*header.value)).collect();
        let expected: [(&str, &[u8]); 3] =
            [("traceparent", b"00-ab!"), ("n", b"1.10"), ("o", b"{\"a\": [1]}")];
        assert_eq!(pairs, expected);
    }

    #[test]
    fn nothing_in_the_headers_column_is_no_headers() {
        for json in ["", " \n", "null", " null ", "[]", "[ ]", "{}"] {
            let mut row = row();
            row.headers = Some(Bytes::copy_from_slice(json.as_bytes()));
            assert_eq!(encoder().message(row).unwrap().headers, [], "{json:?}");
        }
        for json in ["\"\"", "[1]", "0", "nul", "[", "]"] {
            let mut row = row();
            row.headers = Some(Bytes::copy_from_slice(json.as_bytes()));
            assert!(encoder().message(row).is_err(), "{json:?}");
        }
    }

    #[test]
    fn a_rows_own_header_of_a_name_of_ours_is_kept_where_we_write_none_and_else_counted() {
        let json = r#"{"id":"own","type":"own","walpost-identity":"own","tenant":"own","x":1}"#;
        let names = |message: &Message| {
            message.headers().map(|(name, _)| name.to_owned()).collect::<Vec<_>>()
        };
        // given a row whose id and type columns are not mapped, or NULL
        let mut row = row();
        row.headers = Some(Bytes::from_static(json.as_bytes()));
        let mut encoder = encoder();
        let message = encoder.message(row.clone()).unwrap();
        assert_eq!(names(&message), ["id", "type", "tenant", "x"]);
        // given one with both, and a column that is placed as a header
        let mut outbox = outbox();
        let extra = outbox.columns.extra("tenant_id");
        outbox.extra_headers = vec![ExtraHeader { name: "tenant".into(), extra }];
        let mut encoder = Encoder::new(&outbox).unwrap();
        row.id = Some("1".into());
        row.event_type = Some("Created".into());
        row.extra = vec![Some("acme".into())];
        for _ in 0..2 {
            let message = encoder.message(row.clone()).unwrap();
            assert_eq!(names(&message), ["id", "type", "x", "tenant"]);
        }
        let left_out: Vec<_> = encoder.left_out().iter().map(|of| (&*of.name, of.count)).collect();
        let expected = [("id", 2), ("type", 2), ("walpost-identity", 2), ("tenant", 2)];
        assert_eq!(left_out, expected);
    }

    #[test]
    fn headers_that_are_no_object_name_the_row_and_not_the_value() {
        let mut row = row();
        row.headers = Some(Bytes::from_static(b"[\"secret\"]"));
        let error = encoder().message(row).unwrap_err().to_string();
        assert!(error.contains("2:1:ab:3:") && error.contains("headers"), "{error}");
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn further_columns_are_placed_as_header_and_partition() {
        let mut outbox = outbox();
        let extra = outbox.columns.extra("tenant_id");
        outbox.extra_headers = vec![ExtraHeader { name: "tenant".into(), extra }];
        outbox.partition = Some(outbox.columns.extra("slot"));
        let mut encoder = Encoder::new(&outbox).unwrap();
        let mut row = row();
        row.extra = vec![Some(Bytes::from_static(b"acme")), Some(Bytes::from_static(b"7"))];
        let message = encoder.message(row.clone()).unwrap();
        assert_eq!(message.headers[0], Header { name: "tenant".into(), value: "acme".into() });
        assert_eq!(message.partition, Some(7));
        row.extra[1] = Some(Bytes::from_static(b"-1"));
        assert!(encoder.message(row).is_err());
    }
}
