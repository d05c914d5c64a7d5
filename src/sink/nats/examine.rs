//! What is asked of JetStream before its answers count: whether a stream is really missing, whose
//! duplicate a row is, how large a message may be.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;

use super::acks::Answer;
use super::api::{Api, Silence, Taker};
use super::generation::{Generation, Live};
use super::judge::Content;
use super::settings::OnForeignDuplicate;
use super::{NatsSink, Outgoing, Round, code, envelope};
use crate::failure::Failure;
use crate::message::Message;

/// What a look at a duplicate brings.
#[derive(Debug, PartialEq, Eq)]
enum Finding {
    Repeat,
    Foreign,
    /// The connection was lost meanwhile; the row goes again.
    Unclear,
}

impl NatsSink {
    /// Looks behind the answers of a round, and stores what a stream took for another's repeat.
    pub(super) async fn examine(
        &self,
        generation: &Generation,
        live: &Live,
        batch: &[Message],
        round: &mut Round,
    ) -> Result<(), Failure> {
        let api = Api::new(&live.client, &live.acks);
        if round.usable {
            self.name_limits(&api, batch, &mut round.answers).await;
            name_absence(&api, batch, &mut round.answers).await;
        }
        let foreign = self.find_foreign(&api, batch, round).await;
        if !foreign.is_empty() {
            self.store_foreign(generation, live, batch, round, foreign).await?;
        }
        if round.usable {
            let now = std::time::Instant::now();
            let mut last = "";
            for answer in &round.answers {
                if let Some(Answer::Stored { stream, .. }) = answer
                    && stream != last
                {
                    last = stream;
                    self.streams.look(&api, stream, now).await;
                }
            }
        }
        Ok(())
    }

    /// Turns "too large for the stream" into a reason with size, limit and remedy.
    async fn name_limits(&self, api: &Api<'_>, batch: &[Message], answers: &mut [Option<Answer>]) {
        for (message, place) in batch.iter().zip(answers) {
            let Some(Answer::Refused { code: code::MESSAGE_EXCEEDS_MAXIMUM, stream, .. }) = place
            else {
                continue;
            };
            let payload: Bytes = message.value.clone().unwrap_or_default();
            let headers = envelope::headers(message, self.settings.key_header.as_ref());
            let size = headers.map_or(0, |headers| envelope::size_bytes(&headers, &payload));
            // Without permission the limit stays unnamed.
            let limit = match api.stream(stream).await {
                Ok(Some(info)) => format!("max_msg_size is {}", info.config.max_msg_size),
                Ok(None) | Err(_) => "max_msg_size is less".to_owned(),
            };
            *place = Some(Answer::Rejected(format!(
                "message on subject \"{}\" is {size} bytes with its headers; {limit} in stream \
                 \"{stream}\": raise it with `nats stream edit {stream} --max-msg-size`",
                message.topic_shown()
            )));
        }
    }

    /// Judges each duplicate of a round; gives the places of those that are other rows.
    async fn find_foreign(
        &self,
        api: &Api<'_>,
        batch: &[Message],
        round: &mut Round,
    ) -> Vec<(usize, String)> {
        let usable = round.usable;
        let duplicates = round.answers.iter().enumerate().filter_map(|(index, answer)| {
            let Some(Answer::Stored { stream, sequence, duplicate: true }) = answer else {
                return None;
            };
            let (message, stream, sequence) = (&batch[index], stream.clone(), *sequence);
            Some(async move {
                let finding = self.find(api, message, &stream, sequence, usable).await;
                (index, stream, finding)
            })
        });
        let mut foreign = Vec::new();
        for (index, stream, finding) in join_all(duplicates).await {
            match finding {
                Finding::Repeat => {}
                Finding::Foreign => foreign.push((index, stream)),
                Finding::Unclear => {
                    round.answers[index] = Some(Answer::Away(format!(
                        "stream \"{stream}\" calls it a duplicate, and the connection was lost \
                         before it could be compared"
                    )));
                }
            }
        }
        foreign
    }

    async fn find(
        &self,
        api: &Api<'_>,
        message: &Message,
        stream: &str,
        sequence: u64,
        usable: bool,
    ) -> Finding {
        let (window, transformed) = self.streams.traits(stream);
        let may_repeat = self.judge.may_repeat(message.identity, window, std::time::Instant::now());
        if !usable {
            return if may_repeat { Finding::Repeat } else { Finding::Unclear };
        }
        let Ok(headers) = envelope::headers(message, self.settings.key_header.as_ref()) else {
            // It was published, so it has headers.
            return Finding::Repeat;
        };
        let payload = message.value.clone().unwrap_or_default();
        let row = Content { subject: &message.topic, headers: &headers, payload: &payload };
        match api.message(stream, sequence).await {
            Ok(Some(stored)) => {
                let subject = stored.subject.as_str();
                let stored =
                    Content { subject, headers: &stored.headers, payload: &stored.payload };
                if row.is_same(&stored, transformed) { Finding::Repeat } else { Finding::Foreign }
            }
            // Gone, or not for this user to read: only time and our own attempts tell.
            Ok(None) | Err(Silence::Denied | Silence::Error { .. }) if may_repeat => {
                Finding::Repeat
            }
            Ok(None) | Err(Silence::Denied | Silence::Error { .. }) => Finding::Foreign,
            Err(Silence::Away(_)) if may_repeat => Finding::Repeat,
            Err(Silence::Away(_)) => Finding::Unclear,
        }
    }

    /// Publishes rows again under ids of their own, or rejects them, as configured.
    async fn store_foreign(
        &self,
        generation: &Generation,
        live: &Live,
        batch: &[Message],
        round: &mut Round,
        foreign: Vec<(usize, String)>,
    ) -> Result<(), Failure> {
        let now = std::time::Instant::now();
        let mut outgoing = Vec::with_capacity(foreign.len());
        for (index, stream) in &foreign {
            self.judge.foreign(stream, now);
            let message = &batch[*index];
            if self.settings.on_foreign_duplicate == OnForeignDuplicate::Stop {
                round.answers[*index] = Some(Answer::Rejected(format!(
                    "stream \"{stream}\" holds another row with the same identity, and drops this \
                     one as its duplicate: two sources publish there with equal identities, such \
                     as a copied or restored database; give each a stream of its own, or set \
                     sink.on_foreign_duplicate = \"store\""
                )));
                continue;
            }
            let id = envelope::headers(message, self.settings.key_header.as_ref()).map(|headers| {
                let payload = message.value.clone().unwrap_or_default();
                let row = Content { subject: &message.topic, headers: &headers, payload: &payload };
                row.id(message.identity.text().as_str())
            });
            outgoing.push(Outgoing { message, id: id.ok() });
        }
        if outgoing.is_empty() {
            return Ok(());
        }
        let again = self.attempt(generation, live, &outgoing, None).await?;
        for ((index, _), answer) in foreign.into_iter().zip(again.answers) {
            // A duplicate of the same content is this row, stored by an earlier attempt.
            round.answers[index] = answer;
        }
        if !again.usable {
            (round.missing, round.usable) = (again.missing, false);
        }
        Ok(())
    }
}

/// Says of each subject that nobody hears whether a stream is missing, or only away.
async fn name_absence(api: &Api<'_>, batch: &[Message], answers: &mut [Option<Answer>]) {
    let mut asked: HashMap<Arc<str>, Answer> = HashMap::new();
    let subjects = batch.iter().zip(answers.iter()).filter_map(|(message, answer)| {
        matches!(answer, Some(Answer::NoStream)).then_some(message)
    });
    let mut distinct: HashMap<Arc<str>, &Message> = HashMap::new();
    for message in subjects {
        distinct.entry(Arc::clone(&message.topic)).or_insert(message);
    }
    if distinct.is_empty() {
        return;
    }
    let asking = distinct.into_iter().map(|(topic, message)| async move {
        let shown = message.topic_shown();
        let taker = api.taker(&topic).await;
        (topic, absence(&shown, taker))
    });
    asked.extend(join_all(asking).await);
    for (message, answer) in batch.iter().zip(answers) {
        if matches!(answer, Some(Answer::NoStream)) {
            *answer = asked.get(&message.topic).cloned();
        }
    }
}

fn absence(subject: &str, taker: Result<Taker, Silence>) -> Answer {
    let away = |why: String| {
        Answer::Away(format!(
            "nobody takes subject \"{subject}\" now, and {why}: retried until the stream is back"
        ))
    };
    match taker {
        Ok(Taker::Nobody) => Answer::Absent(format!(
            "no JetStream stream takes subject \"{subject}\"; make one, for example `nats stream \
             add --subjects {subject}`"
        )),
        Ok(Taker::NoJetStream) => Answer::Absent(
            "JetStream is not enabled for this account, so NATS would keep nothing; enable it"
                .to_owned(),
        ),
        Ok(Taker::Stream(stream)) => {
            away(format!("stream \"{stream}\" has no leader (an election, or no quorum)"))
        }
        Err(Silence::Denied) => away(
            "this user may not ask which stream does (publish to $JS.API.STREAM.NAMES)".to_owned(),
        ),
        Err(Silence::Away(why)) => away(why),
        Err(Silence::Error { code, text }) => away(format!("JetStream says: {text} ({code})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_able_jetstream_proves_that_a_stream_is_missing() {
        assert!(matches!(absence("orders", Ok(Taker::Nobody)), Answer::Absent(_)));
        for taker in [
            Ok(Taker::Stream("S".into())),
            Err(Silence::Denied),
            Err(Silence::Away("no answer".into())),
            Err(Silence::Error { code: 10_008, text: "temporarily unavailable".into() }),
        ] {
            let answer = absence("orders", taker);
            assert!(matches!(&answer, Answer::Away(why) if why.contains("orders")), "{answer:?}");
        }
    }
}
