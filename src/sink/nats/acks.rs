//! Publish acks back to the messages that they answer.
//!
//! Every publish names a reply subject of its own below one inbox; one subscription of the
//! connection hears them all. Owns the batches in flight; knows no sockets and no verdicts.
//!
//! ```text
//!  lane                     connection's thread
//!  register ─▶ id 7         inbox.7.0 ◀── ack
//!  publish, reply inbox.7.0 inbox.7.1 ◀── ack ── last one ─▶ wakes the lane once
//! ```
//!
//! An id is never used twice, so an ack that comes late can only hit a batch that is gone.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_nats::{Message as Reply, StatusCode};
use serde::Deserialize;
use tokio::sync::{oneshot, watch};

/// Last part of an echo's subject.
const ECHO: &str = "echo";
/// Denied subjects that are remembered: a few of each stream.
const API_DENIED_MAX: usize = 1_000;

/// What became of one publish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    /// In the stream, now or, for a duplicate, since an earlier publish of the same message id.
    Stored { stream: String, sequence: u64, duplicate: bool },
    /// Nobody hears the subject now: no stream, no leader for it, or no JetStream at all.
    NoStream,
    /// There is no stream for the subject, as JetStream itself says.
    Absent(String),
    /// Not stored, for now: the reason for the operator.
    Away(String),
    /// The stream judged it and did not store it.
    Refused { code: u64, text: String, stream: String },
    /// The server let this user not publish to the subject.
    Denied,
    /// Never sent: the reason for the operator.
    Rejected(String),
}

/// JetStream's answer to a publish; either `error`, or `stream` with `seq` (ADR-1).
#[derive(Deserialize)]
struct PublishReply {
    #[serde(default)]
    stream: String,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    error: Option<ReplyError>,
}

#[derive(Deserialize)]
struct ReplyError {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

impl Answer {
    /// `None` for what JetStream never says: somebody else subscribes to the subject and answers.
    fn read(reply: &Reply) -> Option<Self> {
        if reply.status == Some(StatusCode::NO_RESPONDERS) {
            return Some(Self::NoStream);
        }
        let ack: PublishReply = serde_json::from_slice(&reply.payload).ok()?;
        match ack.error {
            Some(ReplyError { err_code, description }) => {
                Some(Self::Refused { code: err_code, text: description, stream: ack.stream })
            }
            None if ack.stream.is_empty() || ack.seq == 0 => None,
            None => Some(Self::Stored {
                stream: ack.stream,
                sequence: ack.seq,
                duplicate: ack.duplicate,
            }),
        }
    }
}

struct Batch {
    subjects: Vec<Arc<str>>,
    answers: Vec<Option<Answer>>,
    missing: usize,
    done: Option<oneshot::Sender<()>>,
    echo: Option<oneshot::Sender<()>>,
}

impl Batch {
    /// The first answer counts.
    fn settle(&mut self, index: usize, answer: Answer) {
        let Some(place @ None) = self.answers.get_mut(index) else { return };
        *place = Some(answer);
        self.missing -= 1;
        if self.missing == 0
            && let Some(done) = self.done.take()
        {
            // A lane that has gone away needs no wake-up.
            done.send(()).ok();
        }
    }
}

/// All batches in flight on one connection.
pub(super) struct Acks {
    inbox: String,
    next: AtomicU64,
    batches: Mutex<HashMap<u64, Batch>>,
    /// Subjects of JetStream's API that this user may not publish to.
    api_denied: watch::Sender<HashSet<String>>,
}

impl Acks {
    pub(super) fn new(inbox: String) -> Self {
        let (api_denied, _) = watch::channel(HashSet::new());
        Self { inbox, next: AtomicU64::new(0), batches: Mutex::new(HashMap::new()), api_denied }
    }

    /// What the connection subscribes to.
    pub(super) fn subscription(&self) -> String {
        format!("{}.*.*", self.inbox)
    }

    /// Opens a place for each message, before the first is published.
    pub(super) fn register(self: &Arc<Self>, subjects: Vec<Arc<str>>) -> Ticket {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (sender, done) = oneshot::channel();
        let missing = subjects.len();
        let answers = vec![None; missing];
        self.lock()
            .insert(id, Batch { subjects, answers, missing, done: Some(sender), echo: None });
        Ticket { acks: Arc::clone(self), id, done }
    }

    /// Takes a reply from the inbox.
    pub(super) fn hear(&self, reply: &Reply) {
        let Some(place) = reply.subject.strip_prefix(self.inbox.as_str()) else { return };
        let Some((id, index)) = place.trim_start_matches('.').split_once('.') else { return };
        let Ok(id) = id.parse() else { return };
        if index == ECHO {
            let echo = self.lock().get_mut(&id).and_then(|batch| batch.echo.take());
            // A lane that has gone away needs none.
            echo.map(|echo| echo.send(()).ok());
            return;
        }
        let Ok(index) = index.parse::<u64>() else { return };
        if let Some(answer) = Answer::read(reply) {
            self.settle(id, usize::try_from(index).unwrap_or(usize::MAX), answer);
        }
    }

    /// The server denied a publish to `subject`, which it says without naming the message.
    pub(super) fn deny(&self, subject: &str) {
        if subject.starts_with("$JS.API.") {
            self.api_denied.send_modify(|denied| {
                if denied.len() < API_DENIED_MAX {
                    denied.insert(subject.to_owned());
                }
            });
            return;
        }
        for batch in self.lock().values_mut() {
            for index in 0..batch.subjects.len() {
                if *batch.subjects[index] == *subject {
                    batch.settle(index, Answer::Denied);
                }
            }
        }
    }

    /// Waits until the server has denied a request to this subject of JetStream's API, which may
    /// be never.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn denied(&self, subject: &str) {
        let mut denied = self.api_denied.subscribe();
        // The sender lives as long as this does.
        drop(denied.wait_for(|denied| denied.contains(subject)).await);
    }

    /// The messages of a batch that are stored for sure by now.
    pub(super) fn stored(&self, id: u64) -> Vec<usize> {
        let batches = self.lock();
        let answers = batches.get(&id).map(|batch| batch.answers.iter().enumerate());
        let stored = answers
            .into_iter()
            .flatten()
            .filter(|(_, answer)| matches!(answer, Some(Answer::Stored { duplicate: false, .. })));
        stored.map(|(index, _)| index).collect()
    }

    fn settle(&self, id: u64, index: usize, answer: Answer) {
        if let Some(batch) = self.lock().get_mut(&id) {
            batch.settle(index, answer);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Batch>> {
        self.batches.lock().expect("nothing panics while it holds the batches")
    }
}

/// A batch in flight; dropping it forgets the batch.
pub(super) struct Ticket {
    acks: Arc<Acks>,
    id: u64,
    done: oneshot::Receiver<()>,
}

impl Ticket {
    /// Of its batch, for [`Acks::stored`].
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// Reply subject of the message at `index`.
    pub(super) fn reply(&self, index: usize) -> String {
        let mut digits = (itoa::Buffer::new(), itoa::Buffer::new());
        let (id, index) = (digits.0.format(self.id), digits.1.format(index));
        [self.acks.inbox.as_str(), id, index].join(".")
    }

    /// A subject that the server sends back to this batch, and the wait for it. What was published
    /// before it has then left this process for good.
    pub(super) fn echo(&self) -> (String, oneshot::Receiver<()>) {
        let (sender, heard) = oneshot::channel();
        if let Some(batch) = self.acks.lock().get_mut(&self.id) {
            batch.echo = Some(sender);
        }
        (format!("{}.{}.{ECHO}", self.acks.inbox, self.id), heard)
    }

    /// Settles a message that is not published.
    pub(super) fn reject(&self, index: usize, reason: String) {
        self.acks.settle(self.id, index, Answer::Rejected(reason));
    }

    /// Waits until every message has an answer.
    ///
    /// # Cancel safety
    /// Cancel safe; answers stay where they are.
    pub(super) async fn answered(&mut self) {
        // The sender lives in the batch, and the batch as long as this ticket.
        drop((&mut self.done).await);
    }

    /// The answers so far; later ones are ignored.
    pub(super) fn take(self) -> Vec<Option<Answer>> {
        let batch = self.acks.lock().remove(&self.id);
        batch.expect("only the ticket removes its batch").answers
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.acks.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(subject: String, payload: &'static str) -> Reply {
        Reply {
            subject: subject.into(),
            reply: None,
            payload: payload.into(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[tokio::test]
    async fn each_ack_reaches_its_own_message() {
        let acks = Arc::new(Acks::new("_INBOX.x".into()));
        let mut ticket = acks.register(vec!["a".into(), "b".into(), "c".into()]);
        acks.hear(&reply(ticket.reply(2), r#"{"stream":"S","seq":9,"duplicate":true}"#));
        acks.hear(&reply(
            ticket.reply(0),
            r#"{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"S","seq":0}"#,
        ));
        acks.deny("b");
        ticket.answered().await;
        let answers = ticket.take();
        assert!(
            matches!(&answers[0], Some(Answer::Refused { code: 10077, stream, .. }) if stream == "S")
        );
        assert_eq!(answers[1], Some(Answer::Denied));
        let stored = Answer::Stored { stream: "S".into(), sequence: 9, duplicate: true };
        assert_eq!(answers[2], Some(stored));
    }

    #[test]
    fn what_jetstream_never_says_is_no_answer() {
        let acks = Arc::new(Acks::new("_INBOX.x".into()));
        let ticket = acks.register(vec!["a".into()]);
        for payload in ["", "+OK", "{}", r#"{"stream":"","seq":1}"#, r#"{"stream":"S"}"#] {
            acks.hear(&reply(ticket.reply(0), payload));
        }
        for subject in ["_INBOX.x.0", "_INBOX.x.0.1", "_INBOX.x.1.0", "_INBOX.y.0.0", "other"] {
            acks.hear(&reply(subject.into(), r#"{"stream":"S","seq":1}"#));
        }
        assert_eq!(ticket.take(), [None]);
    }

    #[tokio::test]
    async fn an_echo_is_heard_by_its_own_batch_and_settles_nothing() {
        let acks = Arc::new(Acks::new("_INBOX.x".into()));
        let (ticket, other) = (acks.register(vec!["a".into()]), acks.register(vec!["a".into()]));
        let ((subject, heard), (_, mut unheard)) = (ticket.echo(), other.echo());
        acks.hear(&reply(subject, ""));
        heard.await.unwrap();
        assert!(unheard.try_recv().is_err());
        assert_eq!(ticket.take(), [None]);
    }

    #[tokio::test]
    async fn a_denied_request_to_the_api_ends_its_wait_and_no_other() {
        let acks = Acks::new("_INBOX.x".into());
        acks.deny("$JS.API.STREAM.NAMES");
        acks.denied("$JS.API.STREAM.NAMES").await;
        let other = acks.denied("$JS.API.STREAM.LIST");
        assert!(futures_util::FutureExt::now_or_never(other).is_none());
    }

    #[test]
    fn an_ack_for_a_forgotten_batch_hits_no_later_one() {
        let acks = Arc::new(Acks::new("_INBOX.x".into()));
        let late = acks.register(vec!["a".into()]).reply(0);
        let ticket = acks.register(vec!["a".into()]);
        acks.hear(&reply(late, r#"{"stream":"S","seq":1}"#));
        assert_eq!(ticket.take(), [None]);
    }
}
