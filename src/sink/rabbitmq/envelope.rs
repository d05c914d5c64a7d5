//! A message as AMQP takes it: exchange, routing key, properties. Pure.
//!
//! Owns the templates and the limits of the protocol itself, so that nothing reaches the client
//! library that would end the connection for everybody: it panics on a short string of more than
//! 255 bytes, and the broker closes the connection on a header frame above `frame_max`.

use std::sync::Arc;

use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldArray, FieldTable, LongString, ShortString};
use serde::Deserialize;

use crate::identity::RowIdentity;
use crate::message::{HEADER_IDENTITY, Message};
use crate::sink::OpenError;

/// AMQP 0-9-1 § 4.2.5.3: a short string's length is one byte.
const SHORT_STRING_BYTES_MAX: usize = 255;
/// Delivery mode of a message that survives a restart of the broker.
const PERSISTENT: u8 = 2;
/// Bytes of a header frame beside headers and short strings: frame, class, flags, numbers.
const HEADER_FRAME_REST: usize = 64;

/// A small template: literals, `{topic}` and `{key}`.
#[derive(Debug, Clone)]
pub(super) struct Template {
    option: &'static str,
    parts: Vec<Part>,
}

/// What becomes of a row's header `CC` or `BCC`, which RabbitMQ reads as further routing keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CopyHeaders {
    /// The row is rejected, since as text such a header closes the channel.
    Reject,
    /// Sent as the list of routing keys that RabbitMQ takes.
    Array,
}

/// Headers that RabbitMQ routes by.
const COPY_HEADERS: [&str; 2] = ["CC", "BCC"];

#[derive(Debug, Clone)]
enum Part {
    Literal(String),
    Topic,
    Key,
}

impl Template {
    /// Reads a template; `option` is the key it stands under.
    ///
    /// # Errors
    /// An unknown name in braces, or a brace without its other.
    pub(super) fn parse(option: &'static str, text: &str) -> Result<Self, OpenError> {
        let refused = |what: String| OpenError::Option {
            problem: format!("{option}: {what}; it takes {{topic}}, {{key}} and plain text"),
        };
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((literal, braced)) = rest.split_once('{') {
            let Some((name, after)) = braced.split_once('}') else {
                return Err(refused("a { without its }".to_owned()));
            };
            parts.push(Part::Literal(literal.to_owned()));
            parts.push(match name {
                "topic" => Part::Topic,
                "key" => Part::Key,
                other => return Err(refused(format!("there is no {{{other}}}"))),
            });
            rest = after;
        }
        parts.push(Part::Literal(rest.to_owned()));
        parts.retain(|part| !matches!(part, Part::Literal(text) if text.is_empty()));
        if parts.iter().any(|part| matches!(part, Part::Literal(text) if text.contains('}'))) {
            return Err(refused("a } without its {".to_owned()));
        }
        Ok(Self { option, parts })
    }

    /// The text, where it is the same for every message.
    pub(super) fn fixed(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// As written, where the key is part of it.
    pub(super) fn keyed(&self) -> Option<Arc<str>> {
        if !self.parts.iter().any(|part| matches!(part, Part::Key)) {
            return None;
        }
        let parts = self.parts.iter().map(|part| match part {
            Part::Literal(text) => text.as_str(),
            Part::Topic => "{topic}",
            Part::Key => "{key}",
        });
        Some(parts.collect::<String>().into())
    }

    fn fill(&self, message: &Message) -> Result<ShortString, String> {
        let mut text = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Topic => text.push_str(&message.topic),
                Part::Key => {
                    let key = message.key.as_deref().unwrap_or_default();
                    let Ok(key) = std::str::from_utf8(key) else {
                        let option = self.option;
                        return Err(format!("the key is no UTF-8, so it cannot be in {option}"));
                    };
                    text.push_str(key);
                }
            }
        }
        let length = text.len();
        ShortString::try_new(text).map_err(|_| {
            format!(
                "{} of {length} bytes: AMQP takes {SHORT_STRING_BYTES_MAX} at most; use a \
                 shorter topic or key, or set the sink's option {} to a template without it",
                self.option, self.option
            )
        })
    }
}

/// One message, ready to be published.
#[derive(Debug)]
pub(super) struct Envelope {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) properties: BasicProperties,
    pub(super) payload: Bytes,
    /// Also the property `message_id`: what a return is known by.
    pub(super) identity: RowIdentity,
    /// Upper bound of its header frame, which unlike a body is never split.
    pub(super) header_frame_bytes: usize,
}

/// What all envelopes of a sink have in common.
#[derive(Debug)]
pub(super) struct Envelopes {
    exchange: Template,
    routing_key: Template,
    content_type: Option<ShortString>,
    app_id: Option<ShortString>,
    copy_headers: CopyHeaders,
}

impl Envelopes {
    /// # Errors
    /// A content type of more than 255 bytes.
    pub(super) fn new(
        exchange: Template,
        routing_key: Template,
        content_type: &str,
        client_name: &str,
        copy_headers: CopyHeaders,
    ) -> Result<Self, OpenError> {
        let content_type = match content_type {
            "" => None,
            text => Some(ShortString::try_new(text).map_err(|error| OpenError::Option {
                problem: format!("content_type: {error}"),
            })?),
        };
        let app_id = ShortString::try_new(client_name).ok();
        Ok(Self { exchange, routing_key, content_type, app_id, copy_headers })
    }

    /// Makes the envelope.
    ///
    /// # Errors
    /// Why AMQP can never take this message.
    pub(super) fn wrap(&self, message: &Message) -> Result<Envelope, String> {
        let exchange = self.exchange.fill(message)?;
        let routing_key = self.routing_key.fill(message)?;
        let identity = message.identity.text();
        let identity = identity.as_str();
        let mut header_frame_bytes = HEADER_FRAME_REST + 2 * identity.len();
        let mut headers = FieldTable::default();
        for (name, value) in message.headers() {
            let Ok(name) = ShortString::try_new(name) else {
                return Err(format!(
                    "a header's name of {} bytes: AMQP takes {SHORT_STRING_BYTES_MAX} at most",
                    name.len()
                ));
            };
            header_frame_bytes += name.as_str().len() + value.len() + 6;
            let value = if COPY_HEADERS.contains(&name.as_str()) {
                // A list's entries have two bytes more in AMQP than in JSON, of three at least.
                header_frame_bytes += value.len();
                self.copies(name.as_str(), value)?
            } else {
                AMQPValue::LongString(LongString::from(value.to_vec()))
            };
            headers.insert(name, value);
        }
        let identity_value = AMQPValue::LongString(LongString::from(identity));
        headers.insert(HEADER_IDENTITY.into(), identity_value);
        header_frame_bytes += HEADER_IDENTITY.len() + 6;
        // AMQP's timestamp is in whole seconds; a time before 1970 has no form in it.
        let seconds = u64::try_from(message.timestamp_micros / 1_000_000).unwrap_or(0);
        let mut properties = BasicProperties::default()
            .with_delivery_mode(PERSISTENT)
            .with_message_id(identity.into())
            .with_timestamp(seconds)
            .with_headers(headers);
        // Longer types are in the header `type` all the same.
        let event_type = message.event_type.as_deref().and_then(|text| str::from_utf8(text).ok());
        if let Some(event_type) = event_type.and_then(|text| ShortString::try_new(text).ok()) {
            properties = properties.with_type(event_type);
        }
        for short in [&self.content_type, &self.app_id].into_iter().flatten() {
            header_frame_bytes += short.as_str().len() + 1;
        }
        header_frame_bytes += SHORT_STRING_BYTES_MAX;
        if let Some(content_type) = &self.content_type {
            properties = properties.with_content_type(content_type.clone());
        }
        if let Some(app_id) = &self.app_id {
            properties = properties.with_app_id(app_id.clone());
        }
        let payload = message.value.clone().unwrap_or_default();
        let identity = message.identity;
        Ok(Envelope { exchange, routing_key, properties, payload, identity, header_frame_bytes })
    }

    /// The routing keys of a header `CC` or `BCC`: a JSON array of texts, or one text.
    fn copies(&self, name: &str, value: &Bytes) -> Result<AMQPValue, String> {
        if self.copy_headers == CopyHeaders::Reject {
            return Err(format!(
                "header \"{name}\" would steer RabbitMQ, which sends copies to the routing keys in \
                 it: rename it in the row, or set sink.copy_headers = \"array\" to have it sent as \
                 a list of routing keys"
            ));
        }
        let keys: Vec<String> = match serde_json::from_slice(value) {
            Ok(keys) => keys,
            Err(_) if value.starts_with(b"[") => {
                return Err(format!("header \"{name}\" is not a list of texts: correct the row"));
            }
            Err(_) => vec![
                String::from_utf8(value.to_vec())
                    .map_err(|_| format!("header \"{name}\" is not UTF-8: correct the row"))?,
            ],
        };
        if keys.iter().any(|key| key.len() > SHORT_STRING_BYTES_MAX) {
            return Err(format!(
                "header \"{name}\" has a routing key of more than {SHORT_STRING_BYTES_MAX} bytes: \
                 correct the row"
            ));
        }
        let keys = keys.into_iter().map(|key| AMQPValue::LongString(LongString::from(key)));
        Ok(AMQPValue::FieldArray(FieldArray::from(keys.collect::<Vec<_>>())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Fingerprint, LogId};
    use crate::message::Header;

    fn message(topic: &str, key: Option<&str>) -> Message {
        Message {
            topic: topic.into(),
            key: key.map(|key| Bytes::copy_from_slice(key.as_bytes())),
            value: None,
            id: None,
            event_type: None,
            headers: Vec::new(),
            timestamp_micros: -1,
            partition: None,
            identity: RowIdentity {
                log: LogId(1),
                transaction: 2,
                ordinal: 3,
                fingerprint: Fingerprint(4),
            },
        }
    }

    fn fill(template: &str, message: &Message) -> Result<String, String> {
        let template = Template::parse("routing_key", template).unwrap();
        template.fill(message).map(|text| text.as_str().to_owned())
    }

    #[test]
    fn a_template_puts_topic_and_key_among_literals() {
        let order = message("orders", Some("7"));
        assert_eq!(fill("{topic}", &order).unwrap(), "orders");
        assert_eq!(fill("a.{key}.{topic}z", &order).unwrap(), "a.7.ordersz");
        assert_eq!(fill("", &order).unwrap(), "");
        assert_eq!(fill("{key}", &message("orders", None)).unwrap(), "");
    }

    #[test]
    fn a_wrong_template_says_what_may_be_in_it() {
        for text in ["{colour}", "{topic", "topic}", "{}"] {
            let error = Template::parse("exchange", text).unwrap_err().to_string();
            assert!(error.contains("it takes {topic}, {key} and plain text"), "{error}");
        }
    }

    #[test]
    fn a_routing_key_of_256_bytes_is_refused_and_one_of_255_is_not() {
        let longest = "k".repeat(255);
        assert_eq!(fill("{key}", &message("orders", Some(&longest))).unwrap(), longest);
        let error = fill("{key}x", &message("orders", Some(&longest))).unwrap_err();
        assert!(error.starts_with("routing_key of 256 bytes: AMQP takes 255 at most"), "{error}");
    }

    fn wrap(
        copy_headers: CopyHeaders,
        name: &str,
        value: &'static str,
    ) -> Result<Envelope, String> {
        let template = |text| Template::parse("exchange", text).unwrap();
        let envelopes =
            Envelopes::new(template("{topic}"), template("{key}"), "", "w", copy_headers).unwrap();
        let mut order = message("orders", Some("7"));
        order.headers =
            vec![Header { name: name.into(), value: Bytes::from_static(value.as_bytes()) }];
        envelopes.wrap(&order)
    }

    #[test]
    fn a_header_that_rabbitmq_routes_by_is_refused_by_its_name_with_a_remedy() {
        for name in ["CC", "BCC"] {
            let reason = wrap(CopyHeaders::Reject, name, "ann@example.com").unwrap_err();
            assert!(reason.contains(name) && reason.contains("sink.copy_headers"), "{reason}");
            assert!(!reason.contains("ann@"), "{reason}");
        }
        // RabbitMQ reads no other spelling.
        assert!(wrap(CopyHeaders::Reject, "Cc", "x").is_ok());
    }

    #[test]
    fn a_header_that_rabbitmq_routes_by_is_sent_as_a_list_where_that_is_asked_for() {
        let keys = |value| {
            let envelope = wrap(CopyHeaders::Array, "CC", value)?;
            let headers = envelope.properties.headers().clone().unwrap();
            match headers.inner().get("CC") {
                Some(AMQPValue::FieldArray(keys)) => Ok(keys.as_slice().to_vec()),
                other => panic!("{other:?}"),
            }
        };
        let text = |text: &str| AMQPValue::LongString(text.into());
        assert_eq!(keys("[\"a\",\"b\"]"), Ok(vec![text("a"), text("b")]));
        assert_eq!(keys("a.b"), Ok(vec![text("a.b")]));
        assert_eq!(keys("[]"), Ok(vec![]));
        for wrong in ["[1]", "[\"a\",", "[null]"] {
            assert!(keys(wrong).is_err_and(|reason: String| reason.contains("\"CC\"")), "{wrong}");
        }
    }

    #[test]
    fn a_key_that_is_no_text_is_refused_where_it_is_used() {
        let mut order = message("orders", None);
        order.key = Some(Bytes::from_static(&[0xFF]));
        assert!(fill("{key}", &order).unwrap_err().contains("no UTF-8"));
        assert_eq!(fill("{topic}", &order).unwrap(), "orders");
    }
}
