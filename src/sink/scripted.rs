//! A sink that does what a test says, for lanes and relay. Real brokers have tests of their own.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use super::{Limits, Ordering, Sink, Verdict, Verdicts};
use crate::failure::Failure;
use crate::identity::{Fingerprint, LogId, RowIdentity};
use crate::message::Message;

type Answer = Box<dyn FnMut(&[Message]) -> Result<Vec<Verdict>, Failure> + Send>;

/// Of [`Limits::stuck_after`].
pub(crate) const STUCK_AFTER: Duration = Duration::from_millis(100);

/// Confirms everything, unless an answer is scripted or its gate is shut.
pub(crate) struct ScriptedSink {
    pub(crate) limits: Limits,
    answers: Mutex<VecDeque<Answer>>,
    /// What was delivered, batch by batch: keys with their row numbers.
    batches: Mutex<Vec<Vec<(String, u64)>>>,
    probes: Mutex<VecDeque<Failure>>,
    /// Keys whose batches wait until the gate opens.
    shut: watch::Sender<Option<&'static str>>,
    /// Keys whose messages get no verdict until then; others of their batches do.
    stalled: watch::Sender<Option<&'static str>>,
    /// What a test does when the sink is closed.
    on_close: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl ScriptedSink {
    /// One that orders what Kafka does, or nothing.
    pub(crate) fn new(orders: bool) -> Self {
        let limits = Limits {
            batch_messages_max: 100,
            batch_bytes_max: 1 << 20,
            lanes_max: 8,
            ordering: if orders { Ordering::KeyAndTopic } else { Ordering::Nothing },
            stuck_after: Some(STUCK_AFTER),
        };
        Self {
            limits,
            answers: Mutex::default(),
            batches: Mutex::default(),
            probes: Mutex::default(),
            shut: watch::Sender::new(None),
            stalled: watch::Sender::new(None),
            on_close: Mutex::default(),
        }
    }

    /// The next batch that has no scripted answer yet gets this one.
    pub(crate) fn answer(
        &self,
        answer: impl FnMut(&[Message]) -> Result<Vec<Verdict>, Failure> + Send + 'static,
    ) {
        self.answers.lock().unwrap().push_back(Box::new(answer));
    }

    pub(crate) fn answer_probe(&self, failure: Failure) {
        self.probes.lock().unwrap().push_back(failure);
    }

    /// Batches with this key hang until `open`.
    pub(crate) fn shut(&self, key: &'static str) {
        self.shut.send_replace(Some(key));
    }

    pub(crate) fn on_close(&self, callback: impl FnOnce() + Send + 'static) {
        *self.on_close.lock().unwrap() = Some(Box::new(callback));
    }

    /// Messages with this key get no verdict until `open`.
    pub(crate) fn stall(&self, key: &'static str) {
        self.stalled.send_replace(Some(key));
    }

    pub(crate) fn open(&self) {
        self.shut.send_replace(None);
        self.stalled.send_replace(None);
    }

    pub(crate) fn batches(&self) -> Vec<Vec<(String, u64)>> {
        self.batches.lock().unwrap().clone()
    }

    /// Row numbers that were delivered for one key, repeats included.
    pub(crate) fn rows_of(&self, key: &str) -> Vec<u64> {
        let batches = self.batches();
        batches.into_iter().flatten().filter(|(of, _)| of == key).map(|(_, row)| row).collect()
    }
}

impl Sink for ScriptedSink {
    fn limits(&self) -> Limits {
        self.limits
    }

    fn probe(&self) -> BoxFuture<'_, Result<Vec<String>, Failure>> {
        let answer = self.probes.lock().unwrap().pop_front();
        Box::pin(async move { answer.map_or(Ok(Vec::new()), Err) })
    }

    fn deliver<'a>(
        &'a self,
        batch: &'a [Message],
        verdicts: &'a Verdicts,
    ) -> BoxFuture<'a, Result<(), Failure>> {
        let keys: Vec<_> = batch.iter().map(|message| (key(message), row(message))).collect();
        Box::pin(async move {
            let blocked = |shut: &Option<&str>| {
                shut.is_some_and(|shut| keys.iter().any(|(key, _)| key == shut))
            };
            let mut gate = self.shut.subscribe();
            drop(gate.wait_for(|shut| !blocked(shut)).await.map(drop));
            self.batches.lock().unwrap().push(keys.clone());
            let answer = self.answers.lock().unwrap().pop_front();
            let known = match answer {
                Some(mut answer) => answer(batch)?,
                None => vec![Verdict::Confirmed; batch.len()],
            };
            let mut stall = self.stalled.subscribe();
            let stalled = *stall.borrow();
            let (late, early): (Vec<_>, Vec<_>) = known
                .into_iter()
                .enumerate()
                .partition(|(number, _)| stalled.is_some_and(|key| key == keys[*number].0));
            verdicts.give_each(early);
            if !late.is_empty() {
                drop(stall.wait_for(Option::is_none).await.map(drop));
                verdicts.give_each(late);
            }
            Ok(())
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<(), Failure>> {
        let callback = self.on_close.lock().unwrap().take();
        Box::pin(async move {
            if let Some(callback) = callback {
                callback();
            }
            Ok(())
        })
    }
}

fn key(message: &Message) -> String {
    String::from_utf8(message.key.as_ref().map_or(Vec::new(), |key| key.to_vec())).unwrap()
}

fn row(message: &Message) -> u64 {
    message.identity.transaction
}

/// A message whose key and row number a test can tell apart.
pub(crate) fn message(key: &str, row: u64) -> Message {
    Message {
        topic: "orders".into(),
        key: Some(Bytes::copy_from_slice(key.as_bytes())),
        value: Some(Bytes::from_static(b"{}")),
        id: None,
        event_type: None,
        headers: Vec::new(),
        timestamp_micros: 0,
        partition: None,
        identity: RowIdentity {
            log: LogId(1),
            transaction: row,
            ordinal: 0,
            fingerprint: Fingerprint(0),
        },
    }
}
