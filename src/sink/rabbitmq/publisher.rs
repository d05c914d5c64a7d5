//! The one task that publishes: batches in, verdicts out, a new link after each loss.
//!
//! A lost link ends before its messages are `Unknown`. The broker closes a channel, and with it
//! all that is in flight, over a single message (too large, no right to write): the next attempt
//! of those goes alone, and only who fails alone is `Rejected`.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::envelope::Envelope;
use super::exchanges::ACCESS_REFUSED;
use super::link::Link;
use super::session::{Rules, Session, WINDOW_MESSAGES};
use super::target::Target;
use crate::failure::Failure;
use crate::identity::RowIdentity;
use crate::sink::Verdict;

/// Messages remembered to go alone; there are more only when they never came back.
const SUSPECTS_MAX: usize = 10 * WINDOW_MESSAGES;

/// Where the verdicts of a batch go.
pub(super) struct Reply {
    /// Those that are known while others of the batch are not, with their numbers in it. They come
    /// at the end once more.
    pub(super) early: mpsc::Sender<Vec<(usize, Verdict)>>,
    /// All of them.
    pub(super) all: oneshot::Sender<Result<Vec<Verdict>, Failure>>,
}

/// A batch of a lane and where its verdicts go.
pub(super) struct Job {
    pub(super) envelopes: Vec<Envelope>,
    pub(super) reply: Reply,
}

/// Owns link and channel, one after the other, as long as there are senders of jobs.
pub(super) struct Publisher {
    target: Arc<Target>,
    rules: Arc<Rules>,
    jobs: mpsc::Receiver<Job>,
    suspects: Suspects,
}

/// Who may have closed a channel, and so goes alone.
#[derive(Default)]
pub(super) struct Suspects {
    messages: HashSet<RowIdentity>,
    /// Writing was refused: nobody else shall suffer for the next message to it.
    exchanges: HashSet<String>,
}

impl Suspects {
    pub(super) fn includes(&self, envelope: &Envelope) -> bool {
        self.messages.contains(&envelope.identity)
            || self.exchanges.contains(envelope.exchange.as_str())
    }

    /// All that were in flight when a channel was closed.
    pub(super) fn extend(&mut self, messages: impl Iterator<Item = RowIdentity>) {
        if self.messages.len() > SUSPECTS_MAX {
            self.messages.clear();
        }
        self.messages.extend(messages);
    }

    /// It went alone, and the channel stayed open.
    pub(super) fn acquit(&mut self, message: RowIdentity, exchange: &str) {
        self.messages.remove(&message);
        self.exchanges.remove(exchange);
    }

    /// It went alone, and the channel was closed.
    pub(super) fn convict(&mut self, message: RowIdentity, exchange: &str, code: u16) {
        self.messages.remove(&message);
        if code == ACCESS_REFUSED {
            self.exchanges.insert(exchange.to_owned());
        }
    }
}

impl Publisher {
    pub(super) fn new(target: Arc<Target>, rules: Arc<Rules>, jobs: mpsc::Receiver<Job>) -> Self {
        Self { target, rules, jobs, suspects: Suspects::default() }
    }

    /// Runs until all senders are gone and all is settled. To be stopped by dropping the senders;
    /// aborted, it leaves what is in flight unknown.
    pub(super) async fn run(mut self) {
        while let Some(job) = self.jobs.recv().await {
            match Link::connect(&self.target).await {
                Ok(link) => {
                    tracing::info!("connected to RabbitMQ");
                    let session = Session::new(&link, self.rules.clone(), &mut self.suspects);
                    session.run(link, job, &mut self.jobs).await;
                }
                Err(failure) => self.refuse(job, &failure),
            }
        }
    }

    /// Answers everybody who waits by now; each would have to wait for a timeout of its own.
    fn refuse(&mut self, job: Job, failure: &Failure) {
        let mut next = Some(job);
        while let Some(job) = next {
            let copy = Failure::new(failure.kind(), failure.to_string());
            // A lane that is gone needs no answer.
            drop(job.reply.all.send(Err(copy)));
            next = self.jobs.try_recv().ok();
        }
    }
}
