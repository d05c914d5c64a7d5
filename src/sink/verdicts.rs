//! Where a sink puts its verdicts, and how they reach the lane before the delivery is over.
//!
//! A lane reads them after each poll of the delivery that writes them, on the same task: nothing
//! here wakes anybody, and its lock is never waited for.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Verdict;

/// The verdicts of one batch, given one by one or many at once, in any order: one a message.
///
/// To be written from within [`Sink::deliver`](super::Sink::deliver) only. A message whose verdict
/// is known need not wait for the others of its batch: its row settles, and the rows behind it go.
#[derive(Debug)]
pub struct Verdicts {
    news: News,
}

/// What was written since the lane last read it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Told {
    /// Numbers of confirmed messages: nearly all of them, so without the size of a verdict each.
    pub(crate) confirmed: Vec<u32>,
    pub(crate) others: Vec<(u32, Verdict)>,
    /// Why the rest has no verdict yet.
    pub(crate) waiting: Option<String>,
}

/// The lane's end of [`Verdicts`].
#[derive(Debug, Clone, Default)]
pub(crate) struct News(Arc<Mutex<Told>>);

impl News {
    /// Takes what is there; `None` where nothing is.
    pub(crate) fn take(&self) -> Option<Told> {
        let mut told = self.lock();
        let is_empty =
            told.confirmed.is_empty() && told.others.is_empty() && told.waiting.is_none();
        (!is_empty).then(|| std::mem::take(&mut *told))
    }

    /// Where a sink writes.
    pub(crate) fn verdicts(&self) -> Verdicts {
        Verdicts { news: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        // Each change under the lock is complete in itself, so a panicked holder left no half.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Verdicts {
    /// The broker has these messages, given by their numbers in the batch.
    pub fn confirm(&self, numbers: impl IntoIterator<Item = usize>) {
        self.news.lock().confirmed.extend(numbers.into_iter().map(number));
    }

    /// The verdict of one message.
    pub fn give(&self, message: usize, verdict: Verdict) {
        self.give_each([(message, verdict)]);
    }

    /// Verdicts with the numbers of their messages.
    pub fn give_each(&self, verdicts: impl IntoIterator<Item = (usize, Verdict)>) {
        let mut told = self.news.lock();
        for (message, verdict) in verdicts {
            match verdict {
                Verdict::Confirmed => told.confirmed.push(number(message)),
                verdict => told.others.push((number(message), verdict)),
            }
        }
    }

    /// Why messages still have no verdict, for the operator: names the object and the cause. To be
    /// repeated every few seconds for as long as it is so.
    pub fn waiting(&self, reason: String) {
        self.news.lock().waiting = Some(reason);
    }
}

/// A batch has far fewer messages.
fn number(message: usize) -> u32 {
    u32::try_from(message).expect("a batch has fewer than 2^32 messages")
}

/// All verdicts of a batch of so many messages, in its order.
pub(crate) fn in_order(news: &News, messages: usize) -> Vec<Verdict> {
    let mut verdicts = vec![None; messages];
    let told = news.take().unwrap_or_default();
    let confirmed = told.confirmed.into_iter().map(|number| (number, Verdict::Confirmed));
    for (number, verdict) in confirmed.chain(told.others) {
        let before = verdicts[number as usize].replace(verdict);
        assert!(before.is_none(), "a second verdict on one message");
    }
    let verdicts = verdicts.into_iter();
    verdicts.map(|verdict| verdict.expect("a sink gives one verdict a message")).collect()
}
