//! Rows that wait in a lane, chained by order domain. Pure: knows neither time nor the sink.
//!
//! ```text
//!   ready ▶ [k7] [k3] [k9]          domains with a row that may go, in the order of their arrival
//!             │    │    └ r5
//!             │    └ r2 ─ r4 ─ r6    a chain: the rows of one domain, in commit order
//!             └ r1
//!   in the air: k2, k8               taken; their later rows wait behind them
//!   held: k5                         failed; back to ready at the next `release`
//! ```
//!
//! A hot key is one long chain and costs the other keys nothing: they are found without passing it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use slab::Slab;

/// What decides which rows keep their order among themselves: a hash of the key, the topic, or
/// nothing at all. Two domains of one hash merely wait for each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Domain(pub(crate) u64);

/// What a batch may hold.
#[derive(Debug, Clone, Copy)]
pub(crate) struct BatchBounds {
    pub(crate) items_max: usize,
    pub(crate) bytes_max: usize,
}

#[derive(Debug)]
struct Node<T> {
    item: T,
    next: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
struct Chain {
    /// First and last node; `None` while all its rows are in the air.
    ends: Option<(usize, usize)>,
}

/// A domain is already a hash: hashing it again would be work done twice.
#[derive(Debug, Default)]
struct DomainHasher(u64);

impl Hasher for DomainHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("a domain hashes as one u64")
    }
    fn write_u64(&mut self, domain: u64) {
        self.0 = domain;
    }
}

/// The rows of one lane that are not in the air.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    nodes: Slab<Node<T>>,
    chains: HashMap<Domain, Chain, BuildHasherDefault<DomainHasher>>,
    ready: VecDeque<Domain>,
    held: Vec<Domain>,
}

impl<T> Queue<T> {
    pub(crate) fn new() -> Self {
        Self {
            nodes: Slab::new(),
            chains: HashMap::default(),
            ready: VecDeque::new(),
            held: Vec::new(),
        }
    }

    /// Rows that wait, ready or not.
    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether nothing waits and nothing is in the air.
    pub(crate) fn is_idle(&self) -> bool {
        self.chains.is_empty()
    }

    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    pub(crate) fn has_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Appends a row to its domain's chain.
    pub(crate) fn push(&mut self, domain: Domain, item: T) {
        let node = self.nodes.insert(Node { item, next: None });
        let Some(chain) = self.chains.get_mut(&domain) else {
            self.chains.insert(domain, Chain { ends: Some((node, node)) });
            self.ready.push_back(domain);
            return;
        };
        chain.ends = match chain.ends {
            None => Some((node, node)),
            Some((first, last)) => {
                self.nodes[last].next = Some(node);
                Some((first, node))
            }
        };
    }

    /// Takes a batch into the air: from each ready domain in turn its first row, and as many more as
    /// fit and as `joins` the one before them: the broker keeps the two in order. A row larger than
    /// `bytes_max` goes alone. Rows of one domain stand together in the batch. Each domain taken
    /// must come back by [`Queue::finish`].
    pub(crate) fn take(
        &mut self,
        bounds: BatchBounds,
        size: impl Fn(&T) -> usize,
        joins: impl Fn(&T, &T) -> bool,
        mut give: impl FnMut(Domain, T),
    ) {
        let (mut items, mut bytes) = (0, 0);
        while let Some(domain) = self.ready.pop_front() {
            let mut taken = 0;
            let chain = self.chains.get_mut(&domain).expect("a ready domain has a chain");
            while let Some((first, last)) = chain.ends {
                let row_bytes = size(&self.nodes[first].item);
                let fits = items < bounds.items_max && bytes + row_bytes <= bounds.bytes_max;
                if items > 0 && !fits {
                    break;
                }
                let node = self.nodes.remove(first);
                chain.ends = node.next.map(|next| (next, last));
                let next = chain.ends.map(|(next, _)| &self.nodes[next].item);
                let goes_on = next.is_some_and(|next| joins(&node.item, next));
                give(domain, node.item);
                (items, bytes, taken) = (items + 1, bytes + row_bytes, taken + 1);
                if !goes_on {
                    break;
                }
            }
            if taken == 0 {
                self.ready.push_front(domain);
                return;
            }
        }
    }

    /// Brings a domain back from the air. `unsent` are the rows that go again, in their order:
    /// they go before all others of the domain, and with `held` the domain waits for
    /// [`Queue::release`].
    pub(crate) fn finish(
        &mut self,
        domain: Domain,
        unsent: impl DoubleEndedIterator<Item = T>,
        held: bool,
    ) {
        let chain = self.chains.get_mut(&domain).expect("a domain in the air has a chain");
        let mut failed = false;
        for item in unsent.rev() {
            failed = true;
            let next = chain.ends.map(|(first, _)| first);
            let node = self.nodes.insert(Node { item, next });
            chain.ends = Some((node, chain.ends.map_or(node, |(_, last)| last)));
        }
        if failed && held {
            self.held.push(domain);
        } else if chain.ends.is_some() {
            self.ready.push_back(domain);
        } else {
            self.chains.remove(&domain);
        }
    }

    /// Makes the held domains ready again, before all others.
    pub(crate) fn release(&mut self) {
        for domain in self.held.drain(..).rev() {
            self.ready.push_front(domain);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: BatchBounds = BatchBounds { items_max: 3, bytes_max: 100 };
    const ONE_OF_EACH: fn(&u32, &u32) -> bool = |_, _| false;
    const CHAINS: fn(&u32, &u32) -> bool = |_, _| true;

    fn take(queue: &mut Queue<u32>, joins: fn(&u32, &u32) -> bool) -> Vec<(u64, u32)> {
        let mut batch = Vec::new();
        queue.take(
            BOUNDS,
            |item| *item as usize,
            joins,
            |domain, item| {
                batch.push((domain.0, item));
            },
        );
        batch
    }

    #[test]
    fn a_hot_key_gives_one_row_a_batch_and_holds_nobody_up() {
        // given three rows of key 1 before those of keys 2 and 3
        let mut queue = Queue::new();
        for (domain, item) in [(1, 1), (1, 2), (1, 3), (2, 4), (3, 5)] {
            queue.push(Domain(domain), item);
        }
        // then each key gives its first, and key 1's second only after its first came back
        assert_eq!(take(&mut queue, ONE_OF_EACH), [(1, 1), (2, 4), (3, 5)]);
        assert_eq!(take(&mut queue, ONE_OF_EACH), []);
        queue.finish(Domain(1), [].into_iter(), true);
        assert_eq!(take(&mut queue, ONE_OF_EACH), [(1, 2)]);
    }

    #[test]
    fn chains_go_whole_where_the_broker_keeps_their_order() {
        let mut queue = Queue::new();
        for (domain, item) in [(1, 1), (2, 2), (1, 3), (1, 4)] {
            queue.push(Domain(domain), item);
        }
        assert_eq!(take(&mut queue, CHAINS), [(1, 1), (1, 3), (1, 4)]);
        assert_eq!(take(&mut queue, CHAINS), [(2, 2)]);
    }

    #[test]
    fn a_chain_ends_where_the_broker_keeps_no_order() {
        // given rows of one key in two topics, told apart by their tens
        let mut queue = Queue::new();
        for item in [1, 2, 11, 12, 3] {
            queue.push(Domain(1), item);
        }
        let same_topic: fn(&u32, &u32) -> bool = |earlier, later| earlier / 10 == later / 10;
        // then each goes after those before it are back
        for expected in [&[1, 2][..], &[11, 12], &[3]] {
            let taken: Vec<u32> =
                take(&mut queue, same_topic).into_iter().map(|(_, row)| row).collect();
            assert_eq!(taken, expected);
            assert_eq!(take(&mut queue, same_topic), []);
            queue.finish(Domain(1), [].into_iter(), true);
        }
    }

    #[test]
    fn rows_that_go_again_without_being_held_are_ready_at_once() {
        let mut queue = Queue::new();
        for item in [1, 2] {
            queue.push(Domain(1), item);
        }
        assert_eq!(take(&mut queue, CHAINS), [(1, 1), (1, 2)]);
        queue.finish(Domain(1), [1, 2].into_iter(), false);
        assert!(!queue.has_held());
        assert_eq!(take(&mut queue, CHAINS), [(1, 1), (1, 2)]);
    }

    #[test]
    fn rows_that_go_again_go_before_later_ones_of_their_key_and_wait_for_release() {
        let mut queue = Queue::new();
        for item in 1..5 {
            queue.push(Domain(1), item);
        }
        assert_eq!(take(&mut queue, CHAINS), [(1, 1), (1, 2), (1, 3)]);
        queue.push(Domain(2), 9);
        queue.finish(Domain(1), [2, 3].into_iter(), true);
        assert_eq!(take(&mut queue, CHAINS), [(2, 9)]);
        assert!(queue.has_held());
        queue.release();
        assert_eq!(take(&mut queue, CHAINS), [(1, 2), (1, 3), (1, 4)]);
    }

    #[test]
    fn a_row_waits_for_the_one_of_its_key_that_is_in_the_air() {
        let mut queue = Queue::new();
        queue.push(Domain(1), 1);
        assert_eq!(take(&mut queue, ONE_OF_EACH), [(1, 1)]);
        for (domain, item) in [(1, 2), (2, 9)] {
            queue.push(Domain(domain), item);
        }
        assert_eq!(take(&mut queue, ONE_OF_EACH), [(2, 9)]);
        queue.finish(Domain(1), [].into_iter(), true);
        assert_eq!(take(&mut queue, ONE_OF_EACH), [(1, 2)]);
    }

    #[test]
    fn a_row_larger_than_the_batch_goes_alone() {
        let mut queue = Queue::new();
        for (domain, item) in [(1, 60), (2, 300), (3, 30), (4, 30)] {
            queue.push(Domain(domain), item);
        }
        assert_eq!(take(&mut queue, ONE_OF_EACH), [(1, 60)]);
        assert_eq!(take(&mut queue, ONE_OF_EACH), [(2, 300)]);
        assert_eq!(take(&mut queue, ONE_OF_EACH), [(3, 30), (4, 30)]);
    }

    #[test]
    fn a_drained_queue_holds_nothing() {
        let mut queue = Queue::new();
        queue.push(Domain(1), 1);
        assert_eq!(take(&mut queue, ONE_OF_EACH).len(), 1);
        assert!(!queue.is_idle());
        queue.finish(Domain(1), [].into_iter(), true);
        assert!(queue.is_idle() && queue.len() == 0);
    }
}
