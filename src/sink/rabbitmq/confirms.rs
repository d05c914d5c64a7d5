//! From confirms and returns to verdicts. Pure: no channel, no clock.
//!
//! The broker sends a message's `basic.return` before its `basic.ack`, and the ack of an
//! unroutable message is a positive one. The client library does not tell whose return it was:
//! it keeps returns in a queue, and each confirm that it resolves takes the oldest along.
//!
//! ```text
//! broker   return(7)  ack(5)            ack(7)
//! library             5 + return of 7   7 + nothing        <- 7 would pass for delivered
//! ```
//!
//! So returns are told apart by `message_id`, and a verdict waits for everything that the library
//! resolved before it:
//!
//! - A confirm *without* a return: the queue was empty, so the message's own return, if there was
//!   one, went to a confirm resolved earlier. The futures of a `FuturesUnordered` are woken into
//!   one first-in-first-out queue, and a publish is woken (written) before its confirm can be
//!   resolved. Hence a marker that is pushed after the confirm was seen comes out after all that
//!   was resolved before it has been seen too.
//! - A confirm *with* another message's return: its own may still be queued. Each queued return
//!   belongs to a message that is still unconfirmed, and each confirm takes one off; when all
//!   that were in flight are seen, a marker later, so is the return.

use std::collections::{HashMap, VecDeque};

use crate::identity::RowIdentity;
use crate::sink::Verdict;

/// Number of a publish on its channel, from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Sequence(pub(super) u64);

/// Where a verdict belongs: a batch, and a message in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) job: usize,
    pub(super) index: usize,
}

/// A message that came back.
#[derive(Debug)]
pub(super) struct Returned {
    pub(super) message_id: String,
    /// Names exchange and routing key.
    pub(super) reason: String,
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    place: Place,
    identity: RowIdentity,
    acked: bool,
}

/// What is in flight on one channel, and what of it is known.
#[derive(Debug, Default)]
pub(super) struct Confirms {
    /// Unseen messages by sequence, from `first` on; `None` where the confirm was seen.
    in_flight: VecDeque<Option<(Place, RowIdentity)>>,
    first: u64,
    unseen: usize,
    /// Returns by message id, with their number: a message may be in flight twice.
    returned: HashMap<String, (u32, String)>,
    /// Seen since the marker was pushed.
    fresh: Vec<Waiting>,
    /// Seen before it was.
    ripe: Vec<Waiting>,
    /// Took another's return along; wait until everything below the sequence is seen.
    crossed: Vec<(Sequence, Waiting)>,
    marker_out: bool,
}

impl Confirms {
    /// Notes a message that is about to be published.
    pub(super) fn enter(&mut self, place: Place, identity: RowIdentity) -> Sequence {
        let sequence = self.next();
        self.in_flight.push_back(Some((place, identity)));
        self.unseen += 1;
        sequence
    }

    fn next(&self) -> Sequence {
        Sequence(self.first + self.in_flight.len() as u64)
    }

    /// Messages whose confirm has not been seen.
    pub(super) fn unseen(&self) -> usize {
        self.unseen
    }

    /// Whether nothing is in flight and nothing waits for its verdict.
    pub(super) fn is_empty(&self) -> bool {
        let waiting = self.fresh.len() + self.ripe.len() + self.crossed.len();
        self.unseen == 0 && waiting == 0
    }

    /// Identities of what has no verdict yet.
    pub(super) fn unsettled(&self) -> impl Iterator<Item = RowIdentity> {
        let unseen = self.in_flight.iter().flatten().map(|(_, identity)| *identity);
        let crossed = self.crossed.iter().map(|(_, waiting)| waiting);
        let seen = self.fresh.iter().chain(&self.ripe).chain(crossed);
        unseen.chain(seen.map(|waiting| waiting.identity))
    }

    /// Notes a confirm, with whichever return came along.
    pub(super) fn see(&mut self, sequence: Sequence, acked: bool, returned: Option<Returned>) {
        let slot = usize::try_from(sequence.0 - self.first).expect("the window fits a usize");
        let seen = self.in_flight.get_mut(slot).and_then(Option::take);
        let (place, identity) = seen.expect("a publish is confirmed once");
        self.unseen -= 1;
        while let Some(None) = self.in_flight.front() {
            self.in_flight.pop_front();
            self.first += 1;
        }
        let waiting = Waiting { place, identity, acked };
        let Some(Returned { message_id, reason }) = returned else {
            self.fresh.push(waiting);
            return;
        };
        if message_id == identity.text().as_str() {
            self.fresh.push(waiting);
        } else {
            self.crossed.push((self.next(), waiting));
        }
        self.returned.entry(message_id).or_insert((0, reason)).0 += 1;
    }

    /// Whether a marker is to be pushed now; notes that it was.
    pub(super) fn push_marker(&mut self) -> bool {
        if self.marker_out {
            return false;
        }
        let (first, returned_below) = (self.first, std::mem::take(&mut self.crossed));
        for (horizon, waiting) in returned_below {
            if horizon.0 <= first {
                self.fresh.push(waiting);
            } else {
                self.crossed.push((horizon, waiting));
            }
        }
        if self.fresh.is_empty() {
            return false;
        }
        self.ripe = std::mem::take(&mut self.fresh);
        self.marker_out = true;
        true
    }

    /// The marker came out: verdicts of all that was seen before it was pushed.
    pub(super) fn marker(&mut self) -> Vec<(Place, Verdict)> {
        assert!(self.marker_out, "a marker comes out once");
        self.marker_out = false;
        let ripe = std::mem::take(&mut self.ripe);
        let verdicts: Vec<_> =
            ripe.into_iter().map(|waiting| (waiting.place, self.decide(waiting))).collect();
        if self.is_empty() {
            // Returns of what nobody waits for any more.
            self.returned.clear();
        }
        verdicts
    }

    fn decide(&mut self, waiting: Waiting) -> Verdict {
        if !self.returned.is_empty() {
            let text = waiting.identity.text();
            if let Some((count, reason)) = self.returned.get_mut(text.as_str()) {
                let reason = reason.clone();
                *count -= 1;
                if *count == 0 {
                    self.returned.remove(text.as_str());
                }
                return Verdict::Absent(reason);
            }
        }
        if waiting.acked {
            Verdict::Confirmed
        } else {
            let reason = "the broker refused the row (nack: a queue is full or has no leader)";
            Verdict::Unknown(reason.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::identity::{Fingerprint, LogId};

    fn identity(number: u64) -> RowIdentity {
        RowIdentity { log: LogId(1), transaction: number, ordinal: 0, fingerprint: Fingerprint(0) }
    }

    fn enter(confirms: &mut Confirms, number: usize) -> Sequence {
        confirms.enter(Place { job: 0, index: number }, identity(number as u64))
    }

    fn returned(number: u64) -> Option<Returned> {
        let message_id = identity(number).to_string();
        Some(Returned { message_id, reason: format!("no queue for {number}") })
    }

    fn settle(confirms: &mut Confirms) -> Vec<(usize, Verdict)> {
        let mut settled = Vec::new();
        while confirms.push_marker() {
            settled.extend(confirms.marker().into_iter().map(|(place, v)| (place.index, v)));
        }
        settled.sort_by_key(|(index, _)| *index);
        settled
    }

    #[test]
    fn a_return_that_came_with_another_confirm_meets_its_own_message() {
        // given: 1 is unroutable, and its return is attached to the confirm of 0
        let mut confirms = Confirms::default();
        let sequences = [0, 1].map(|number| enter(&mut confirms, number));
        // when
        confirms.see(sequences[0], true, returned(1));
        let early = settle(&mut confirms);
        confirms.see(sequences[1], true, None);
        // then
        assert_eq!(early, [], "0's own return could still be queued");
        let absent = Verdict::Absent("no queue for 1".into());
        assert_eq!(settle(&mut confirms), [(0, Verdict::Confirmed), (1, absent)]);
        assert!(confirms.is_empty());
    }

    #[test]
    fn a_return_seen_between_confirm_and_marker_still_counts() {
        // given: the confirm of 1 is seen first, though 0 was resolved before it
        let mut confirms = Confirms::default();
        let sequences = [0, 1].map(|number| enter(&mut confirms, number));
        confirms.see(sequences[1], true, None);
        assert!(confirms.push_marker());
        // when
        confirms.see(sequences[0], true, returned(1));
        let settled = confirms.marker();
        // then
        let absent = Verdict::Absent("no queue for 1".into());
        assert_eq!(settled, [(Place { job: 0, index: 1 }, absent)]);
    }

    #[test]
    fn a_refused_message_is_unknown_and_a_returned_one_absent_whatever_its_confirm_says() {
        let mut confirms = Confirms::default();
        let sequences = [0, 1].map(|number| enter(&mut confirms, number));
        confirms.see(sequences[0], false, None);
        confirms.see(sequences[1], false, returned(1));
        let settled = settle(&mut confirms);
        assert!(matches!(settled[0], (0, Verdict::Unknown(_))), "{settled:?}");
        assert!(matches!(settled[1], (1, Verdict::Absent(_))), "{settled:?}");
    }

    #[test]
    fn each_copy_of_a_message_takes_one_return() {
        let mut confirms = Confirms::default();
        let sequences = [7, 7].map(|number| enter(&mut confirms, number));
        confirms.see(sequences[0], true, returned(7));
        confirms.see(sequences[1], true, returned(7));
        let settled = settle(&mut confirms);
        assert!(settled.iter().all(|(_, v)| matches!(v, Verdict::Absent(_))), "{settled:?}");
        // A later routable attempt is not taken for the returned one.
        let again = enter(&mut confirms, 7);
        confirms.see(again, true, None);
        assert_eq!(settle(&mut confirms), [(7, Verdict::Confirmed)]);
    }

    /// The library and the broker as the header of this file describes them, with confirms in any
    /// order, and what was resolved seen in any order between two markers.
    #[test]
    fn only_the_unroutable_are_absent_in_any_order_of_events() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut confirms = Confirms::default();
            let total = 40;
            let unroutable: Vec<bool> = (0..total).map(|_| random.u8(..4) == 0).collect();
            let mut sequences = Vec::new();
            let (mut at_broker, mut acks) = (Vec::new(), Vec::new());
            let (mut queue, mut resolved) = (VecDeque::new(), Vec::new());
            let mut verdicts = vec![None; total];
            let mut seen = 0;
            while verdicts.iter().any(Option::is_none) {
                match random.u8(..4) {
                    0 if sequences.len() < total => {
                        at_broker.push(sequences.len());
                        sequences.push(enter(&mut confirms, sequences.len()));
                    }
                    // The broker routes one: a return, if any, and only later the ack.
                    1 if !at_broker.is_empty() => {
                        let number = at_broker.remove(0);
                        if unroutable[number] {
                            queue.push_back(number);
                        }
                        acks.push(number);
                    }
                    2 if !acks.is_empty() => {
                        let number = acks.swap_remove(random.usize(..acks.len()));
                        resolved.push((number, queue.pop_front()));
                    }
                    _ => {
                        // All resolved before the marker is pushed are seen before it is out.
                        let some = random.usize(..=resolved.len());
                        let pushed = confirms.push_marker();
                        random.shuffle(&mut resolved);
                        let take = if pushed { resolved.len() } else { some };
                        for (number, carried) in resolved.drain(..take) {
                            let carried = carried.and_then(|other| returned(other as u64));
                            confirms.see(sequences[number], true, carried);
                            seen += 1;
                        }
                        if pushed {
                            for (place, verdict) in confirms.marker() {
                                assert!(verdicts[place.index].replace(verdict).is_none());
                            }
                        }
                    }
                }
            }
            assert_eq!(seen, total);
            for (number, verdict) in verdicts.into_iter().enumerate() {
                let absent = matches!(verdict, Some(Verdict::Absent(_)));
                assert_eq!(absent, unroutable[number], "seed {seed}, message {number}");
            }
        }
    }
}
