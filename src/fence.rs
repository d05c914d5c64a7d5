//! The fence: whether a relay may deliver at this moment.
//!
//! A position in a database is fenced by an epoch, but a broker knows no epochs: a relay whose
//! lease ran out must stop by itself, before another one begins. So the source says until when it
//! surely holds its lease, on this machine's own clock, and lanes look before each delivery.
//!
//! ```text
//!  down ──extend_until──▶ up ──its time passes──▶ down ──extend_until──▶ up ─ … ─lower─▶ lowered
//! ```
//!
//! What it cannot do: stop a delivery that has begun. The deadline must therefore lie before the
//! end of the lease by as long as a delivery may take to land. Nor does it see a machine that
//! slept with all its clocks; then the epoch still keeps the position, and rows may come twice.
//! Knows no lease, no database and no broker.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::time::Instant;

/// Whether a relay may deliver; cheap to ask and to clone. See the module.
#[derive(Debug, Clone)]
pub struct Fence(Arc<State>);

#[derive(Debug)]
struct State {
    /// Up before this tick; one word, so that a lane asks with one load.
    deadline: AtomicU64,
    /// Where ticks begin.
    origin: Instant,
    /// Wakes those that wait for either of its ends: up, or lowered.
    changed: Notify,
}

/// Never up again.
const LOWERED: u64 = 0;
/// Not up yet. Ticks of real moments begin after it.
const DOWN: u64 = 1;
/// Up for ever.
const OPEN: u64 = u64::MAX;

impl Fence {
    /// A fence that is always up, for a source whose server lets only one read: a replication
    /// slot is its own lock.
    pub fn open() -> Self {
        Self::with_deadline(OPEN)
    }

    /// A fence that is down until it is extended for the first time.
    pub fn down() -> Self {
        Self::with_deadline(DOWN)
    }

    fn with_deadline(deadline: u64) -> Self {
        let deadline = AtomicU64::new(deadline);
        Self(Arc::new(State { deadline, origin: Instant::now(), changed: Notify::new() }))
    }

    /// Up until `deadline`, or for as long as it is up already. Does nothing once it is lowered.
    pub fn extend_until(&self, deadline: Instant) {
        let until = self.ticks(deadline);
        let extend = |now| (now != LOWERED).then(|| until.max(now));
        if self.0.deadline.fetch_update(Ordering::AcqRel, Ordering::Acquire, extend).is_ok() {
            self.0.changed.notify_waiters();
        }
    }

    /// Down at once and for good: the lease is lost, or about to be given back.
    pub fn lower(&self) {
        self.0.deadline.store(LOWERED, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    /// Whether a delivery may begin now.
    pub fn is_up(&self) -> bool {
        match self.0.deadline.load(Ordering::Acquire) {
            OPEN => true,
            deadline => self.ticks(Instant::now()) < deadline,
        }
    }

    /// Whether it never comes up again.
    pub fn is_lowered(&self) -> bool {
        self.0.deadline.load(Ordering::Acquire) == LOWERED
    }

    /// Waits until it is up; for ever once it is lowered.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn raised(&self) {
        self.when(Self::is_up).await;
    }

    /// Waits until it is lowered; for ever where nobody does that.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub async fn lowered(&self) {
        self.when(Self::is_lowered).await;
    }

    /// Neither condition comes true by time alone, so each is asked again only when one is told.
    async fn when(&self, holds: impl Fn(&Self) -> bool) {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            // Before the look: a change between the two would else be missed.
            changed.as_mut().enable();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }

    /// Nanoseconds since the origin, counted from [`DOWN`] + 1: enough for 584 years. A moment
    /// before the origin counts as the origin, since no fence was up then.
    fn ticks(&self, at: Instant) -> u64 {
        let nanoseconds = at.saturating_duration_since(self.0.origin).as_nanos();
        u64::try_from(nanoseconds).unwrap_or(OPEN).saturating_add(DOWN + 1).min(OPEN - 1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn an_open_fence_stays_up() {
        let fence = Fence::open();
        fence.extend_until(Instant::now());
        tokio::time::sleep(1_000_000 * SECOND).await;
        assert!(fence.is_up() && !fence.is_lowered());
    }

    #[tokio::test(start_paused = true)]
    async fn an_extended_fence_is_up_until_its_deadline_and_not_at_it() {
        let fence = Fence::down();
        assert!(!fence.is_up());
        fence.extend_until(Instant::now() + SECOND);
        assert!(fence.is_up());
        tokio::time::advance(SECOND - Duration::from_nanos(1)).await;
        assert!(fence.is_up());
        tokio::time::advance(Duration::from_nanos(1)).await;
        assert!(!fence.is_up());
    }

    #[tokio::test(start_paused = true)]
    async fn an_earlier_deadline_takes_nothing_back() {
        let fence = Fence::down();
        fence.extend_until(Instant::now() + 2 * SECOND);
        fence.extend_until(Instant::now() + SECOND);
        tokio::time::advance(3 * SECOND / 2).await;
        assert!(fence.is_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_has_passed_raises_nothing() {
        let fence = Fence::down();
        fence.extend_until(Instant::now());
        assert!(!fence.is_up());
        tokio::time::advance(SECOND).await;
        fence.extend_until(Instant::now() - SECOND);
        assert!(!fence.is_up());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lowered_fence_never_comes_up_again() {
        let fence = Fence::down();
        fence.extend_until(Instant::now() + SECOND);
        fence.lower();
        fence.extend_until(Instant::now() + SECOND);
        assert!(!fence.is_up() && fence.is_lowered());
        assert!(tokio::time::timeout(SECOND, fence.raised()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_wait_are_woken_by_either_end() {
        // given one that waits for it to come up, and one that waits for its end
        let fence = Fence::down();
        let (raised, lowered) = (fence.clone(), fence.clone());
        let raised = tokio::spawn(async move { raised.raised().await });
        let lowered = tokio::spawn(async move { lowered.lowered().await });
        tokio::time::sleep(SECOND).await;
        assert!(!raised.is_finished());
        // when it comes up
        fence.extend_until(Instant::now() + SECOND);
        raised.await.unwrap();
        assert!(!lowered.is_finished());
        // and goes down for good
        fence.lower();
        lowered.await.unwrap();
    }
}
