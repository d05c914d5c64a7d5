//! NATS JetStream: one publish a message, confirmed by its publish ack.
//!
//! Owns how the server's answers become verdicts. Subject = topic; headers = `Nats-Msg-Id` and
//! `walpost-identity` (both the row's identity), `walpost-key`, then the message's own.
//! A connection is given up whole: see `nats/generation.rs` for why and how.

use std::sync::{Arc, Mutex};

use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout_at};

use super::{Limits, OpenError, Ordering, Sink, SinkConfig, Verdict, Verdicts};
use crate::failure::{Failure, FailureKind};
use crate::message::Message;

mod acks;
mod envelope;
mod events;
mod generation;
mod probe;
mod settings;

use acks::{Answer, Ticket};
use generation::{Generation, Live};
use settings::Settings;

const BATCH_MESSAGES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 4 << 20;
const LANES_MAX: usize = 32;

/// Error codes of JetStream that no retry heals (nats-server, `server/errors.json`).
mod code {
    pub(super) const MESSAGE_EXCEEDS_MAXIMUM: u64 = 10054;
    pub(super) const HEADER_EXCEEDS_MAXIMUM: u64 = 10097;
    pub(super) const TIME_TO_LIVE_INVALID: u64 = 10165;
    pub(super) const TIME_TO_LIVE_DISABLED: u64 = 10166;
}

/// Sink for NATS JetStream.
pub struct NatsSink {
    settings: Arc<Settings>,
    generation: Mutex<Option<Arc<Generation>>>,
}

impl NatsSink {
    /// Makes the sink from its `[sink]` table.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &SinkConfig) -> Result<Self, OpenError> {
        let settings = Arc::new(Settings::parse(config)?);
        Ok(Self { settings, generation: Mutex::new(None) })
    }

    /// The connection of now, or a new attempt where the last one is gone.
    fn generation(&self) -> Result<Arc<Generation>, Failure> {
        let mut place = self.generation.lock().expect("nothing panics while it holds this");
        if let Some(generation) = place.as_ref().filter(|generation| !generation.is_gone()) {
            return Ok(Arc::clone(generation));
        }
        let generation = Arc::new(Generation::start(Arc::clone(&self.settings))?);
        *place = Some(Arc::clone(&generation));
        Ok(generation)
    }

    async fn live(&self) -> Result<(Arc<Generation>, Arc<Live>), Failure> {
        let mut generation = self.generation()?;
        if generation.breached().is_some() {
            generation.gone().await;
            generation = self.generation()?;
        }
        let live = generation.live().await?;
        Ok((generation, live))
    }

    async fn deliver_batch(&self, batch: &[Message]) -> Result<Vec<Verdict>, Failure> {
        if batch.is_empty() {
            return Ok(Vec::new());
        }
        let (generation, live) = self.live().await?;
        // One deadline for the whole batch: counted a message, a lost connection would cost as
        // many timeouts as there are messages.
        let deadline = Instant::now() + self.settings.ack_timeout;
        let subjects = batch.iter().map(|message| Arc::clone(&message.topic)).collect();
        let mut ticket = live.acks.register(subjects);
        tokio::select! {
            // Answers first: what is confirmed counts, whatever happened to the connection.
            biased;
            published = timeout_at(deadline, self.publish(&live, &mut ticket, batch)) => {
                match published {
                    Ok(Ok(())) => {}
                    Ok(Err(reason)) => generation.breach(FailureKind::Transient, &reason),
                    Err(_) => {
                        let waited = self.settings.ack_timeout;
                        let reason = format!("no publish ack of NATS within {waited:?}");
                        generation.breach(FailureKind::Transient, &reason);
                    }
                }
            }
            () = generation.gone() => {}
        }
        if let Some(breach) = generation.breached() {
            // No `Unknown` before this: see `nats/generation.rs`.
            generation.gone().await;
            let answers = ticket.take();
            if breach.kind != FailureKind::Transient && answers.iter().all(Option::is_none) {
                return Err(Failure::new(breach.kind, breach.reason.to_string()));
            }
            return Ok(verdicts(batch, answers, &breach.reason));
        }
        let answers = self.name_limits(&live, batch, ticket.take()).await;
        Ok(verdicts(batch, answers, "no publish ack of NATS"))
    }

    /// Publishes what NATS can carry and waits for every answer. An error gives the connection
    /// up.
    async fn publish(
        &self,
        live: &Live,
        ticket: &mut Ticket,
        batch: &[Message],
    ) -> Result<(), String> {
        let payload_bytes_max = live.client.max_payload();
        for (index, message) in batch.iter().enumerate() {
            let prepared = envelope::check_subject(&message.topic)
                .and_then(|()| envelope::headers(message, self.settings.key_header.as_ref()));
            let headers = match prepared {
                Ok(headers) => headers,
                Err(reason) => {
                    ticket.reject(index, reason);
                    continue;
                }
            };
            let payload = message.value.clone().unwrap_or_default();
            let size = envelope::size_bytes(&headers, &payload);
            if size > payload_bytes_max {
                ticket.reject(
                    index,
                    format!(
                        "message on subject \"{}\" is {size} bytes with its headers; the \
                         server's max_payload is {payload_bytes_max}: raise it there",
                        message.topic
                    ),
                );
                continue;
            }
            let (client, subject) = (&live.client, message.topic.to_string());
            client
                .publish_with_reply_and_headers(subject, ticket.reply(index), headers, payload)
                .await
                .map_err(|error| format!("could not publish to NATS: {error}"))?;
        }
        ticket.answered().await;
        Ok(())
    }

    /// Turns "too large for the stream" into a reason with size, limit and remedy.
    async fn name_limits(
        &self,
        live: &Live,
        batch: &[Message],
        mut answers: Vec<Option<Answer>>,
    ) -> Vec<Option<Answer>> {
        for (message, place) in batch.iter().zip(&mut answers) {
            let Some(Answer::Refused { code: code::MESSAGE_EXCEEDS_MAXIMUM, stream, .. }) = place
            else {
                continue;
            };
            let payload: Bytes = message.value.clone().unwrap_or_default();
            let headers = envelope::headers(message, self.settings.key_header.as_ref());
            let size = headers.map_or(0, |headers| envelope::size_bytes(&headers, &payload));
            // Bounded by the client's request timeout; without permission the limit stays unnamed.
            let limit = match stream_config(live, stream).await {
                Some(config) => format!("max_msg_size is {}", config.max_message_size),
                None => "max_msg_size is less".to_owned(),
            };
            *place = Some(Answer::Rejected(format!(
                "message on subject \"{}\" is {size} bytes with its headers; {limit} in stream \
                 \"{stream}\": raise it with `nats stream edit {stream} --max-msg-size`",
                message.topic
            )));
        }
        answers
    }
}

async fn stream_config(live: &Live, stream: &str) -> Option<stream::Config> {
    let context = jetstream::new(live.client.clone());
    let stream = context.get_stream(stream).await.ok()?;
    Some(stream.cached_info().config.clone())
}

fn verdicts(batch: &[Message], answers: Vec<Option<Answer>>, missing: &str) -> Vec<Verdict> {
    let mut verdicts = Vec::with_capacity(batch.len());
    for (message, answer) in batch.iter().zip(answers) {
        verdicts.push(match answer {
            Some(answer) => verdict(&message.topic, answer),
            None => Verdict::Unknown(missing.to_owned().into()),
        });
    }
    verdicts
}

fn verdict(subject: &str, answer: Answer) -> Verdict {
    match answer {
        Answer::Stored => Verdict::Confirmed,
        Answer::NoStream => Verdict::Absent(format!(
            "no JetStream stream takes subject \"{subject}\"; make one, for example `nats stream \
             add --subjects {subject}`"
        )),
        Answer::Rejected(reason) => Verdict::Rejected(reason),
        Answer::Refused { code, text, stream } => {
            let reason = format!("stream \"{stream}\" refused it: {text} ({code})");
            match code {
                code::MESSAGE_EXCEEDS_MAXIMUM
                | code::HEADER_EXCEEDS_MAXIMUM
                | code::TIME_TO_LIVE_INVALID
                | code::TIME_TO_LIVE_DISABLED => Verdict::Rejected(reason),
                // Full, out of storage, no leader, sealed: time or a person may heal it. The
                // stream has judged this attempt, so it cannot land later.
                _ => Verdict::Unknown(reason.into()),
            }
        }
    }
}

impl Sink for NatsSink {
    fn limits(&self) -> Limits {
        Limits {
            batch_messages_max: BATCH_MESSAGES_MAX,
            batch_bytes_max: BATCH_BYTES_MAX,
            lanes_max: LANES_MAX,
            // A stream that is full for one message may have room for the next.
            ordering: Ordering::Nothing,
            stuck_after: None,
        }
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async move {
            let (_, live) = self.live().await?;
            probe::durability(&live.client).await
        })
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(async move {
            let known = self.deliver_batch(batch).await?;
            verdicts.give_each(known.into_iter().enumerate());
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            let place = self.generation.lock().expect("nothing panics while it holds this").take();
            if let Some(generation) = place {
                generation.breach(FailureKind::Transient, "the sink was closed");
                generation.gone().await;
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::scripted::message;

    #[test]
    fn no_answer_is_unknown_and_never_confirmed() {
        let batch = [message("a", 1), message("b", 2)];
        let verdicts = verdicts(&batch, vec![Some(Answer::Stored), None], "connection lost");
        assert_eq!(verdicts, [Verdict::Confirmed, Verdict::Unknown("connection lost".into())]);
    }

    #[test]
    fn no_stream_is_absent_and_a_full_one_is_unknown() {
        assert!(matches!(verdict("orders", Answer::NoStream), Verdict::Absent(_)));
        let refused = |code| Answer::Refused { code, text: "no".into(), stream: "S".into() };
        // 10077: maximum messages exceeded.
        assert!(matches!(verdict("orders", refused(10_077)), Verdict::Unknown(_)));
        let too_large = verdict("orders", refused(code::MESSAGE_EXCEEDS_MAXIMUM));
        assert!(matches!(too_large, Verdict::Rejected(_)));
    }
}
