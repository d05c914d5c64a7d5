//! NATS JetStream: one publish a message, confirmed by its publish ack.
//!
//! Owns how the server's answers become verdicts. Subject = topic; headers = `Nats-Msg-Id` and
//! `walpost-identity` (both the row's identity), `walpost-key`, then the message's own.
//! A connection is given up whole: see `nats/generation.rs` for why and how.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Limits, OpenError, Ordering, Sink, SinkConfig, Verdict, Verdicts};
use crate::failure::{Failure, FailureKind};
use crate::message::Message;

mod acks;
mod api;
mod envelope;
mod events;
mod examine;
mod generation;
mod judge;
mod probe;
mod settings;
mod streams;

use acks::{Answer, Ticket};
use generation::{Generation, Live};
use judge::Judge;
use settings::Settings;
use streams::Streams;

const BATCH_MESSAGES_MAX: usize = 256;
const BATCH_BYTES_MAX: usize = 4 << 20;
const LANES_MAX: usize = 32;
/// A batch that waits longer gives the confirms that it has; its lane may send another one beside.
const STUCK_AFTER: Duration = Duration::from_millis(500);
/// For the server to send back what is published to ourselves, after acks stayed away.
const ECHO_TIMEOUT: Duration = Duration::from_secs(1);

/// Error codes of JetStream that no retry heals (nats-server, `server/errors.json`).
mod code {
    pub(super) const MESSAGE_EXCEEDS_MAXIMUM: u64 = 10054;
    pub(super) const HEADER_EXCEEDS_MAXIMUM: u64 = 10097;
    pub(super) const TIME_TO_LIVE_INVALID: u64 = 10165;
    pub(super) const TIME_TO_LIVE_DISABLED: u64 = 10166;
    pub(super) const SEALED: u64 = 10109;
    /// What a stream of counters says to a message without an increment, and its like.
    pub(super) const COUNTER_FIRST: u64 = 10168;
    pub(super) const COUNTER_LAST: u64 = 10172;
}

/// Sink for NATS JetStream.
pub struct NatsSink {
    settings: Arc<Settings>,
    generation: Mutex<Option<Arc<Generation>>>,
    judge: Judge,
    streams: Streams,
}

impl NatsSink {
    /// Makes the sink from its `[sink]` table.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(config: &SinkConfig) -> Result<Self, OpenError> {
        let settings = Arc::new(Settings::parse(config)?);
        Ok(Self {
            settings,
            generation: Mutex::new(None),
            judge: Judge::default(),
            streams: Streams::default(),
        })
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

    async fn deliver_batch(&self, batch: &[Message], told: &Verdicts) -> Result<(), Failure> {
        if batch.is_empty() {
            return Ok(());
        }
        let (generation, live) = self.live().await?;
        self.judge.begins(std::time::Instant::now());
        let outgoing: Vec<Outgoing<'_>> = batch.iter().map(Outgoing::new).collect();
        let mut early = Early { told, given: vec![false; batch.len()] };
        let mut round = self.attempt(&generation, &live, &outgoing, Some(&mut early)).await?;
        self.examine(&generation, &live, batch, &mut round).await?;
        let verdicts = verdicts(batch, round.answers, &round.missing);
        let rows = |wanted: fn(&Verdict) -> bool| {
            let pairs = batch.iter().zip(&verdicts);
            pairs.filter(move |(_, verdict)| wanted(verdict)).map(|(message, _)| message.identity)
        };
        self.judge.unknown(rows(|verdict| matches!(verdict, Verdict::Unknown(_))));
        self.judge.confirmed(rows(|verdict| matches!(verdict, Verdict::Confirmed)));
        let given = early.given;
        told.give_each(verdicts.into_iter().enumerate().filter(|(index, _)| !given[*index]));
        Ok(())
    }

    /// Publishes once and waits for the answers. Afterwards nothing of it is left in this process.
    async fn attempt(
        &self,
        generation: &Generation,
        live: &Live,
        outgoing: &[Outgoing<'_>],
        mut early: Option<&mut Early<'_>>,
    ) -> Result<Round, Failure> {
        // One deadline for the whole batch: counted a message, a lost connection would cost as
        // many timeouts as there are messages.
        let waited = self.settings.ack_timeout;
        let deadline = Instant::now() + waited;
        let subjects = outgoing.iter().map(|one| Arc::clone(&one.message.topic)).collect();
        let mut ticket = live.acks.register(subjects);
        let mut missing = String::new();
        let published = {
            let id = ticket.id();
            let publishing = timeout_at(deadline, self.publish(live, &mut ticket, outgoing));
            let mut publishing = std::pin::pin!(publishing);
            loop {
                tokio::select! {
                    // Answers first: what is confirmed counts, whatever happened to the
                    // connection. The pause last: it is for what is confirmed meanwhile.
                    biased;
                    published = &mut publishing => break Some(published),
                    () = generation.gone() => break None,
                    () = tokio::time::sleep(STUCK_AFTER) => if let Some(early) = &mut early {
                        early.confirm(live.acks.stored(id));
                    },
                }
            }
        };
        match published {
            None | Some(Ok(Ok(()))) => {}
            Some(Ok(Err(reason))) => generation.breach(FailureKind::Transient, &reason),
            Some(Err(_)) if echoes(live, &ticket).await => {
                missing = format!(
                    "no publish ack of NATS within {waited:?}, though the server answers: the \
                     stream has no leader or no quorum, or is busy"
                );
            }
            Some(Err(_)) => {
                let reason = format!("no publish ack of NATS within {waited:?}");
                generation.breach(FailureKind::Transient, &reason);
            }
        }
        let Some(breach) = generation.breached() else {
            return Ok(Round { answers: ticket.take(), missing, usable: true });
        };
        // No `Unknown` before this: see `nats/generation.rs`.
        generation.gone().await;
        let answers = ticket.take();
        if breach.kind != FailureKind::Transient && answers.iter().all(Option::is_none) {
            return Err(Failure::new(breach.kind, breach.reason.to_string()));
        }
        Ok(Round { answers, missing: breach.reason.to_string(), usable: false })
    }

    /// Publishes what NATS can carry and waits for every answer. An error gives the connection
    /// up.
    async fn publish(
        &self,
        live: &Live,
        ticket: &mut Ticket,
        outgoing: &[Outgoing<'_>],
    ) -> Result<(), String> {
        let payload_bytes_max = live.client.max_payload();
        for (index, one) in outgoing.iter().enumerate() {
            let message = one.message;
            let prepared = envelope::check_subject(&message.topic, &message.topic_shown())
                .and_then(|()| envelope::headers(message, self.settings.key_header.as_ref()));
            let mut headers = match prepared {
                Ok(headers) => headers,
                Err(reason) => {
                    ticket.reject(index, reason);
                    continue;
                }
            };
            if let Some(id) = &one.id {
                headers.insert(envelope::MESSAGE_ID, id.as_str());
            }
            let payload = message.value.clone().unwrap_or_default();
            let size = envelope::size_bytes(&headers, &payload);
            if size > payload_bytes_max {
                ticket.reject(
                    index,
                    format!(
                        "message on subject \"{}\" is {size} bytes with its headers; the \
                         server's max_payload is {payload_bytes_max}: raise it there",
                        message.topic_shown()
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
}

/// A message on its way, under its identity or, where that is taken, under another message id.
struct Outgoing<'a> {
    message: &'a Message,
    id: Option<String>,
}

impl<'a> Outgoing<'a> {
    fn new(message: &'a Message) -> Self {
        Self { message, id: None }
    }
}

/// Confirms that are given while others of the batch have no answer yet.
struct Early<'a> {
    told: &'a Verdicts,
    given: Vec<bool>,
}

impl Early<'_> {
    fn confirm(&mut self, stored: Vec<usize>) {
        let fresh =
            stored.into_iter().filter(|index| !std::mem::replace(&mut self.given[*index], true));
        self.told.confirm(fresh);
    }
}

/// What became of one attempt at a batch.
struct Round {
    answers: Vec<Option<Answer>>,
    /// Why the others have none.
    missing: String,
    /// Whether the connection still stands.
    usable: bool,
}

/// Whether the server sends back what is published to ourselves. Then it has read all that was
/// published before, and a missing ack is its stream's affair and no other's.
async fn echoes(live: &Live, ticket: &Ticket) -> bool {
    let (subject, heard) = ticket.echo();
    let echo = async {
        live.client.publish(subject, Bytes::new()).await.ok()?;
        heard.await.ok()
    };
    matches!(timeout(ECHO_TIMEOUT, echo).await, Ok(Some(())))
}

fn verdicts(batch: &[Message], answers: Vec<Option<Answer>>, missing: &str) -> Vec<Verdict> {
    let mut verdicts = Vec::with_capacity(batch.len());
    for (message, answer) in batch.iter().zip(answers) {
        verdicts.push(match answer {
            Some(answer) => verdict(&message.topic_shown(), answer),
            None => Verdict::Unknown(missing.to_owned().into()),
        });
    }
    verdicts
}

fn verdict(subject: &str, answer: Answer) -> Verdict {
    match answer {
        Answer::Stored { .. } => Verdict::Confirmed,
        // Whether there is a stream at all is asked for before this.
        Answer::NoStream => Verdict::Unknown(
            format!("nobody takes subject \"{subject}\" now, which proves no missing stream")
                .into(),
        ),
        Answer::Absent(reason) => Verdict::Absent(reason),
        Answer::Away(reason) => Verdict::Unknown(reason.into()),
        Answer::Denied => Verdict::Rejected(format!(
            "NATS denies this user to publish to subject \"{subject}\": allow it there"
        )),
        Answer::Rejected(reason) => Verdict::Rejected(reason),
        Answer::Refused { code, text, stream } => {
            let reason = format!("stream \"{stream}\" refused it: {text} ({code})");
            match code {
                code::MESSAGE_EXCEEDS_MAXIMUM
                | code::HEADER_EXCEEDS_MAXIMUM
                | code::TIME_TO_LIVE_INVALID
                | code::TIME_TO_LIVE_DISABLED => Verdict::Rejected(reason),
                // As good as no stream at all: somebody must give the subject another one.
                code::SEALED => Verdict::Absent(format!(
                    "{reason}: a sealed stream takes nothing ever again; give subject \"{subject}\" \
                     to another stream"
                )),
                code::COUNTER_FIRST..=code::COUNTER_LAST => Verdict::Absent(format!(
                    "{reason}: a stream of counters takes no rows; give subject \"{subject}\" to \
                     another stream"
                )),
                // Full, out of storage, no leader: time or a person may heal it. The stream has
                // judged this attempt, so it cannot land later.
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
            stuck_after: Some(STUCK_AFTER),
        }
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        Box::pin(async move {
            let (_, live) = self.live().await?;
            probe::durability(&live).await
        })
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        Box::pin(self.deliver_batch(batch, verdicts))
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        Box::pin(async move {
            self.judge.close();
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

    fn stored() -> Answer {
        Answer::Stored { stream: "S".into(), sequence: 1, duplicate: false }
    }

    #[test]
    fn no_answer_is_unknown_and_never_confirmed() {
        let batch = [message("a", 1), message("b", 2)];
        let verdicts = verdicts(&batch, vec![Some(stored()), None], "connection lost");
        assert_eq!(verdicts, [Verdict::Confirmed, Verdict::Unknown("connection lost".into())]);
    }

    #[test]
    fn only_a_proved_absence_is_absent_and_a_full_stream_is_unknown() {
        assert!(matches!(verdict("orders", Answer::NoStream), Verdict::Unknown(_)));
        assert!(matches!(verdict("orders", Answer::Away("no".into())), Verdict::Unknown(_)));
        assert!(matches!(verdict("orders", Answer::Absent("no".into())), Verdict::Absent(_)));
        assert!(matches!(verdict("orders", Answer::Denied), Verdict::Rejected(_)));
        let refused = |code| Answer::Refused { code, text: "no".into(), stream: "S".into() };
        // 10077: maximum messages exceeded. 10008: no leader.
        assert!(matches!(verdict("orders", refused(10_077)), Verdict::Unknown(_)));
        assert!(matches!(verdict("orders", refused(10_008)), Verdict::Unknown(_)));
        let too_large = verdict("orders", refused(code::MESSAGE_EXCEEDS_MAXIMUM));
        assert!(matches!(too_large, Verdict::Rejected(_)));
    }

    #[test]
    fn a_stream_that_takes_no_rows_ever_is_as_good_as_none() {
        for code in [code::SEALED, 10_169] {
            let refused = Answer::Refused { code, text: "no".into(), stream: "S".into() };
            let Verdict::Absent(reason) = verdict("orders", refused) else { panic!("{code}") };
            assert!(reason.contains("\"S\"") && reason.contains("another stream"), "{reason}");
        }
    }
}
