//! Questions to JetStream's API, and what its silence is worth.
//!
//! Owns the requests and the part of the answers that is read (ADR-1, `server/jetstream_api.go`).
//! A request that this user may not make gets no answer but an error of the connection, which
//! names the subject: it ends the wait at once. Knows no verdicts.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::client::RequestErrorKind;
use async_nats::jetstream::{self, message::StreamMessage, stream::RawMessageErrorKind};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::acks::Acks;

/// JetStream is switched off for the account: an answer of its configuration, not of an outage.
const NOT_ENABLED_FOR_ACCOUNT: u64 = 10039;
/// The stream has no message of that sequence number (any more).
const NO_MESSAGE_FOUND: u64 = 10037;
/// There is no such stream.
const STREAM_NOT_FOUND: u64 = 10059;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Silence {
    /// This user may not ask.
    Denied,
    /// Nobody with JetStream is there, or not in time: an outage, or an election.
    Away(String),
    /// An error of the API: no leader, a busy server.
    Error { code: u64, text: String },
}

/// The part of an answer that is common to all.
#[derive(Deserialize)]
struct Answered<T> {
    error: Option<ApiError>,
    #[serde(flatten)]
    answer: Option<T>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Names {
    streams: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct List {
    #[serde(default)]
    total: usize,
    streams: Option<Vec<StreamInfo>>,
}

/// A stream as the API describes it.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct StreamInfo {
    pub(super) config: StreamConfig,
    pub(super) state: StreamState,
}

/// What decides whether a row that the stream takes is kept. Fields of newer servers included,
/// whichever version the client library knows.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamConfig {
    pub(super) name: String,
    pub(super) subjects: Option<Vec<String>>,
    /// `limits`, `interest`, `workqueue`.
    pub(super) retention: String,
    pub(super) storage: String,
    /// `old`, `new`.
    pub(super) discard: String,
    pub(super) num_replicas: usize,
    pub(super) max_msgs: i64,
    pub(super) max_msgs_per_subject: i64,
    pub(super) max_bytes: i64,
    pub(super) max_msg_size: i64,
    /// Nanoseconds.
    pub(super) max_age: u64,
    /// Nanoseconds.
    pub(super) duplicate_window: u64,
    pub(super) no_ack: bool,
    pub(super) sealed: bool,
    pub(super) allow_msg_counter: bool,
    pub(super) persist_mode: Option<String>,
    pub(super) subject_transform: Option<serde_json::Value>,
}

impl StreamConfig {
    pub(super) fn duplicate_window(&self) -> Duration {
        Duration::from_nanos(self.duplicate_window)
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct StreamState {
    pub(super) consumer_count: usize,
}

/// Whether a stream takes a subject.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Taker {
    /// An able JetStream said that none does.
    Nobody,
    /// This one does.
    Stream(String),
    /// The account has no JetStream.
    NoJetStream,
}

/// The API of one connection.
pub(super) struct Api<'a> {
    client: &'a Client,
    acks: &'a Arc<Acks>,
}

impl<'a> Api<'a> {
    pub(super) fn new(client: &'a Client, acks: &'a Arc<Acks>) -> Self {
        Self { client, acks }
    }

    /// Which stream takes a subject. Only a JetStream with a quorum answers this: in a cluster it
    /// is the leader's to say.
    pub(super) async fn taker(&self, subject: &str) -> Result<Taker, Silence> {
        let asked = self.ask::<Names>("STREAM.NAMES", json!({ "subject": subject })).await;
        match asked {
            Ok(names) => {
                let first = names.streams.into_iter().flatten().next();
                Ok(first.map_or(Taker::Nobody, Taker::Stream))
            }
            Err(Silence::Error { code: NOT_ENABLED_FOR_ACCOUNT, .. }) => Ok(Taker::NoJetStream),
            Err(silence) => Err(silence),
        }
    }

    /// One stream; `None` where there is none of that name.
    pub(super) async fn stream(&self, name: &str) -> Result<Option<StreamInfo>, Silence> {
        match self.ask(&format!("STREAM.INFO.{name}"), json!({})).await {
            Ok(info) => Ok(Some(info)),
            Err(Silence::Error { code: STREAM_NOT_FOUND, .. }) => Ok(None),
            Err(silence) => Err(silence),
        }
    }

    /// Streams from `offset` on, and how many there are.
    pub(super) async fn streams(&self, offset: usize) -> Result<(Vec<StreamInfo>, usize), Silence> {
        let list: List = self.ask("STREAM.LIST", json!({ "offset": offset })).await?;
        Ok((list.streams.unwrap_or_default(), list.total))
    }

    /// A message of a stream; `None` where it is gone.
    pub(super) async fn message(
        &self,
        stream: &str,
        sequence: u64,
    ) -> Result<Option<StreamMessage>, Silence> {
        let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
        let context = jetstream::new(self.client.clone());
        let Ok(handle) = context.get_stream_no_info(stream).await else {
            return Err(Silence::Away(format!("\"{stream}\" is not a stream's name")));
        };
        let asked = tokio::select! {
            biased;
            asked = handle.get_raw_message(sequence) => asked,
            () = self.acks.denied(&subject) => return Err(Silence::Denied),
        };
        match asked {
            Ok(message) => Ok(Some(message)),
            Err(error) => match error.kind() {
                RawMessageErrorKind::NoMessageFound => Ok(None),
                RawMessageErrorKind::JetStream(error) => {
                    let code = error.error_code().0;
                    match code {
                        NO_MESSAGE_FOUND => Ok(None),
                        _ => Err(Silence::Error { code, text: error.to_string() }),
                    }
                }
                _ => Err(Silence::Away(error.to_string())),
            },
        }
    }

    /// Bounded by the client's request timeout.
    async fn ask<T: DeserializeOwned>(
        &self,
        name: &str,
        question: serde_json::Value,
    ) -> Result<T, Silence> {
        let subject = format!("$JS.API.{name}");
        let question = Bytes::from(question.to_string());
        let asked = tokio::select! {
            biased;
            asked = self.client.request(subject.clone(), question) => asked,
            () = self.acks.denied(&subject) => return Err(Silence::Denied),
        };
        let reply = asked.map_err(|error| match error.kind() {
            RequestErrorKind::NoResponders => {
                Silence::Away("no server with JetStream is there".to_owned())
            }
            RequestErrorKind::TimedOut => Silence::Away("JetStream does not answer".to_owned()),
            _ => Silence::Away(error.to_string()),
        })?;
        let unreadable = || Silence::Away("JetStream's answer could not be read".to_owned());
        let answered: Answered<T> =
            serde_json::from_slice(&reply.payload).map_err(|_| unreadable())?;
        match (answered.error, answered.answer) {
            (Some(error), _) => {
                Err(Silence::Error { code: error.err_code, text: error.description })
            }
            (None, Some(answer)) => Ok(answer),
            (None, None) => Err(unreadable()),
        }
    }
}
