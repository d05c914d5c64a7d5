//! Schedules of a keeper against a row in memory, whose clock is the paused one: no test sleeps.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::*;
use crate::source::mysql::gtid::Flavor;

const SECOND: Duration = Duration::from_secs(1);
const LEASE: Duration = Duration::from_secs(10);
const ACK_INTERVAL: Duration = Duration::from_millis(100);

/// What happens to one statement on its way.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// It takes so long to get there, and its answer so long to get back.
    Slow(Duration, Duration),
    /// The connection is lost before it arrives, or before its answer does.
    Lost,
    AnswerLost,
    /// Nobody waits for it any more when it is executed at last.
    Late(Duration),
    Denied,
    Panic,
}

/// The log, and the row of `walpost_position` in it.
#[derive(Default)]
struct Server {
    epoch: u64,
    holder: String,
    lease_until: Option<Instant>,
    position: Option<StoredPosition>,
    /// How often the position was written.
    saves: u32,
    /// Statements that changed the row: each is a transaction of the log.
    writes: u32,
    /// Transactions of the application.
    foreign: u64,
    /// Those of them that have rows of the outbox.
    rows: u64,
    faults: VecDeque<Fault>,
    /// Looked at when a lease is given back: whoever gives it must not deliver any more.
    fence: Option<Fence>,
}

type Shared = Arc<Mutex<Server>>;

impl Server {
    fn is_free(&self) -> bool {
        self.lease_until.is_none_or(|until| until <= Instant::now())
    }

    /// As the table's statement does it.
    fn extend(&mut self, lease: Duration) {
        let now = Instant::now();
        let until = self.lease_until.unwrap_or(now).max(now + lease).min(now + 2 * lease);
        self.lease_until = Some(until);
        self.writes += 1;
    }
}

struct Memory {
    server: Shared,
    /// Unique.
    name: String,
    lease: Duration,
    epoch: Option<u64>,
}

impl Memory {
    fn new(server: &Shared, name: &str) -> Self {
        Self { server: Arc::clone(server), name: name.into(), lease: LEASE, epoch: None }
    }

    async fn run<T: Send + 'static>(
        &self,
        statement: impl FnOnce(&mut Server) -> T + Send + 'static,
    ) -> Result<T, StoreError> {
        let server = Arc::clone(&self.server);
        let fault = server.lock().unwrap().faults.pop_front();
        let silent = || StoreError::Silent { table: "memory".into(), after: 3 * SECOND };
        match fault {
            None => Ok(statement(&mut server.lock().unwrap())),
            Some(Fault::Slow(there, back)) => {
                tokio::time::sleep(there).await;
                let answer = statement(&mut server.lock().unwrap());
                tokio::time::sleep(back).await;
                Ok(answer)
            }
            Some(Fault::Lost) => Err(silent()),
            Some(Fault::AnswerLost) => {
                statement(&mut server.lock().unwrap());
                Err(silent())
            }
            Some(Fault::Late(after)) => {
                tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    statement(&mut server.lock().unwrap());
                });
                tokio::time::sleep(3 * SECOND).await;
                Err(silent())
            }
            Some(Fault::Denied) => {
                Err(StoreError::Denied { table: "memory".into(), message: "no".into() })
            }
            Some(Fault::Panic) => panic!("planted"),
        }
    }

    /// A write by the holder.
    async fn write(
        &self,
        change: impl FnOnce(&mut Server) + Send + 'static,
    ) -> Result<(), StoreError> {
        let (place, name) = ("memory".to_owned(), self.name.clone());
        let Some(epoch) = self.epoch else { return Err(StoreError::NotHeld { name, place }) };
        let ours = move |server: &Server, name: &str| {
            (server.epoch, server.holder.as_str()) == (epoch, name)
        };
        let by = name.clone();
        let taken = self.run(move |server| {
            let is_ours = ours(server, &by);
            if is_ours {
                change(server);
            }
            (!is_ours).then(|| (server.holder.clone(), server.epoch))
        });
        match taken.await? {
            None => Ok(()),
            Some((taker, found)) => Err(StoreError::Lost { name, place, taker, epoch, found }),
        }
    }
}

impl Backend for Memory {
    async fn acquire(&mut self, holder: &str, lease: Duration) -> Result<Attempt, StoreError> {
        assert_eq!(holder, self.name);
        self.lease = lease;
        let name = self.name.clone();
        let attempt = self.run(move |server| {
            if server.holder == name {
                server.extend(lease);
            } else if server.is_free() {
                server.epoch += 1;
                server.holder = name;
                server.lease_until = None;
                server.extend(lease);
            } else {
                let left = server.lease_until.map(|until| until - Instant::now());
                return Attempt::Busy(Busy { holder: server.holder.clone(), left });
            }
            Attempt::Held { epoch: server.epoch }
        });
        let attempt = attempt.await?;
        if let Attempt::Held { epoch } = attempt {
            self.epoch = Some(epoch);
        }
        Ok(attempt)
    }

    async fn load(&mut self) -> Result<Option<StoredPosition>, StoreError> {
        self.run(|server| server.position.clone()).await
    }

    async fn save(&mut self, position: &StoredPosition) -> Result<(), StoreError> {
        let (position, lease) = (position.clone(), self.lease);
        let save = move |server: &mut Server| {
            server.position = Some(position);
            server.saves += 1;
            server.extend(lease);
        };
        self.write(save).await
    }

    async fn renew(&mut self) -> Result<(), StoreError> {
        let lease = self.lease;
        self.write(move |server| server.extend(lease)).await
    }

    async fn release(&mut self) -> Result<(), StoreError> {
        let release = |server: &mut Server| {
            assert!(server.fence.as_ref().is_none_or(|fence| !fence.is_up()), "it still delivers");
            server.holder = String::new();
            server.lease_until = None;
            server.writes += 1;
        };
        self.write(release).await?;
        self.epoch = None;
        Ok(())
    }
}

/// Acknowledges the log at once, as a relay does that has nothing in flight: its own writes come
/// back as transactions like any other.
struct Echo(Shared);

impl Progress for Echo {
    fn steps(&self) -> Steps {
        let server = self.0.lock().unwrap();
        let Server { foreign, writes, rows, .. } = &*server;
        Steps { all: foreign + u64::from(*writes), foreign: *foreign, rows: *rows }
    }

    fn position(&self) -> Option<StoredPosition> {
        Some(position(self.steps().all))
    }
}

fn position(position: u64) -> StoredPosition {
    StoredPosition {
        flavor: Flavor::MySql,
        server_uuid: "u".into(),
        gtids: format!("u:1-{position}"),
        file: "binlog.1".into(),
        position,
        initial_pending: false,
        initial_after: None,
    }
}

/// A relay whose keeper is at work.
struct Relay {
    server: Shared,
    fence: Fence,
    keeping: Keeping,
}

fn keeper(server: &Shared, name: &str) -> (Keeper<Memory>, Fence) {
    let fence = Fence::down();
    let memory = Memory::new(server, name);
    (Keeper::new(memory, name.into(), LEASE, ACK_INTERVAL, fence.clone()), fence)
}

impl Relay {
    async fn start(server: &Shared, name: &str) -> Self {
        let (mut keeper, fence) = keeper(server, name);
        keeper.take().await.unwrap();
        let keeping = Keeping::start(keeper, Echo(Arc::clone(server)));
        Self { server: Arc::clone(server), fence, keeping }
    }

    fn server(&self) -> std::sync::MutexGuard<'_, Server> {
        self.server.lock().unwrap()
    }

    fn faults(&self, faults: impl IntoIterator<Item = Fault>) {
        self.server().faults.extend(faults);
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_relay_holds_its_lease_without_a_gap() {
    let relay = Relay::start(&Shared::default(), "a").await;
    for _ in 0..36_000 {
        tokio::time::sleep(SECOND / 10).await;
        assert!(relay.fence.is_up() && !relay.server().is_free());
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_acknowledged_is_written_within_the_interval_and_many_at_once() {
    let relay = Relay::start(&Shared::default(), "a").await;
    for _ in 0..10 {
        let saves = relay.server().saves;
        for _ in 0..100 {
            relay.server().foreign += 1;
            relay.server().rows += 1;
            // A timer's smallest step, give or take one.
            tokio::time::sleep(SECOND / 1000).await;
        }
        tokio::time::sleep(ACK_INTERVAL + SECOND / 1000).await;
        let server = relay.server();
        assert!(server.saves > saves && server.saves <= saves + 4, "{}", server.saves - saves);
        assert!(server.position.as_ref().unwrap().position >= server.foreign);
    }
}

#[tokio::test(start_paused = true)]
async fn its_own_writes_are_no_reason_to_write() {
    // given one transaction, and an hour in which nothing but our own writes came
    let relay = Relay::start(&Shared::default(), "a").await;
    relay.server().foreign += 1;
    tokio::time::sleep(3600 * SECOND).await;
    // then there were as many writes as renewals in that hour, and a few
    let server = relay.server();
    assert!((1000..1100).contains(&server.writes), "{}", server.writes);
    // and the own writes were taken along now and then: none of them is read again for long
    let behind = u64::from(server.writes) + 1 - server.position.as_ref().unwrap().position;
    assert!(behind <= 25, "{behind}");
}

#[tokio::test(start_paused = true)]
async fn a_busy_neighbour_moves_the_position_once_a_second() {
    let relay = Relay::start(&Shared::default(), "a").await;
    let saves = relay.server().saves;
    for _ in 0..600 {
        relay.server().foreign += 1;
        tokio::time::sleep(SECOND / 10).await;
    }
    let saves = relay.server().saves - saves;
    assert!((50..=61).contains(&saves), "{saves}");
    tokio::time::sleep(2 * SECOND).await;
    let server = relay.server();
    assert!(server.position.as_ref().unwrap().position >= 600);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_while_the_relay_was_told_to_end_is_given_back() {
    for fault in [Fault::AnswerLost, Fault::Slow(Duration::ZERO, 5 * SECOND)] {
        // given a lease that was taken on the server
        let server = Shared::default();
        server.lock().unwrap().faults.push_back(fault);
        let (mut keeper, fence) = keeper(&server, "a");
        let taking = tokio::time::timeout(SECOND, keeper.take()).await;
        assert!(!matches!(taking, Ok(Ok(_))));
        assert!(!server.lock().unwrap().is_free());
        // when the relay ends before it knows
        keeper.give_back_if_taken().await.unwrap();
        // then the next one has not to wait
        assert!(server.lock().unwrap().is_free() && fence.is_lowered());
    }
}

#[tokio::test(start_paused = true)]
async fn a_standby_that_is_told_to_end_takes_nothing() {
    let server = Shared::default();
    let first = Relay::start(&server, "a").await;
    let (mut keeper, _) = keeper(&server, "b");
    assert!(tokio::time::timeout(SECOND, keeper.take()).await.is_err());
    keeper.give_back_if_taken().await.unwrap();
    assert!(first.fence.is_up() && server.lock().unwrap().epoch == 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_is_not_used_yet_is_kept() {
    let server = Shared::default();
    let (mut keeper, fence) = keeper(&server, "a");
    keeper.take().await.unwrap();
    for _ in 0..600 {
        let waited = tokio::time::timeout(SECOND / 10, keeper.stay()).await;
        assert!(waited.is_err() && fence.is_up() && !server.lock().unwrap().is_free());
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_write_counts_from_when_it_was_sent() {
    // given an answer that comes five seconds after the server has extended the lease
    let relay = Relay::start(&Shared::default(), "a").await;
    relay.faults([Fault::Slow(Duration::ZERO, 5 * SECOND)]);
    relay.faults([Fault::Lost; 1000]);
    relay.server().foreign += 1;
    while relay.server().saves == 0 {
        tokio::time::sleep(ACK_INTERVAL).await;
    }
    let until = relay.server().lease_until.unwrap();
    tokio::time::sleep_until(until - 3 * SECOND).await;
    assert!(relay.fence.is_up());
    // then the fence falls while the lease still lasts
    tokio::time::sleep_until(until - 2 * SECOND).await;
    assert!(!relay.fence.is_up());
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_lowers_the_fence_in_time_and_a_renewal_raises_it() {
    let relay = Relay::start(&Shared::default(), "a").await;
    relay.faults([Fault::Lost; 1000]);
    tokio::time::sleep(7 * SECOND).await;
    assert!(relay.fence.is_up());
    tokio::time::sleep(SECOND).await;
    assert!(!relay.fence.is_up() && !relay.server().is_free());
    tokio::time::sleep(60 * SECOND).await;
    assert!(!relay.fence.is_up() && !relay.fence.is_lowered());
    // when the server is back, and nobody took the lease meanwhile
    relay.server().faults.clear();
    tokio::time::timeout(2 * SECOND, relay.fence.raised()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_ends_the_keeper_and_moves_no_position() {
    let mut relay = Relay::start(&Shared::default(), "a").await;
    {
        let mut server = relay.server();
        server.epoch += 1;
        server.holder = "b".into();
        server.position = Some(position(77));
        server.foreign += 1;
    }
    let error = relay.keeping.failed().await;
    assert_eq!(error.kind(), FailureKind::Definite);
    assert!(error.to_string().contains("belongs to b now"), "{error}");
    assert!(relay.fence.is_lowered());
    assert_eq!(relay.server().position, Some(position(77)));
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_was_frozen_delivers_nothing_before_it_has_renewed() {
    // given a relay that stood still for a minute, and nobody took its lease
    let relay = Relay::start(&Shared::default(), "a").await;
    tokio::time::sleep(SECOND).await;
    relay.faults([Fault::Slow(SECOND, SECOND)]);
    tokio::time::advance(60 * SECOND).await;
    assert!(!relay.fence.is_up());
    // then it goes on when a renewal is answered, and not before
    tokio::time::sleep(SECOND + ACK_INTERVAL).await;
    assert!(!relay.fence.is_up() && !relay.server().is_free());
    tokio::time::timeout(SECOND, relay.fence.raised()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_was_frozen_while_another_one_took_over_never_delivers_again() {
    let mut relay = Relay::start(&Shared::default(), "a").await;
    tokio::time::sleep(SECOND).await;
    {
        let mut server = relay.server();
        server.epoch += 1;
        server.holder = "b".into();
        server.lease_until = Some(Instant::now() + 3600 * SECOND);
    }
    tokio::time::advance(60 * SECOND).await;
    assert!(!relay.fence.is_up());
    let error = relay.keeping.failed().await;
    assert!(matches!(error, StoreError::Lost { .. }), "{error}");
    assert!(relay.fence.is_lowered());
}

#[tokio::test(start_paused = true)]
async fn a_close_writes_the_last_position_lowers_the_fence_and_then_gives_back() {
    let relay = Relay::start(&Shared::default(), "a").await;
    {
        // The server looks at the fence when the lease is given back.
        let mut server = relay.server();
        server.fence = Some(relay.fence.clone());
        server.foreign += 41;
    }
    let Relay { server, fence, keeping } = relay;
    keeping.close().await.unwrap();
    assert!(fence.is_lowered());
    let server = server.lock().unwrap();
    assert!(server.is_free());
    assert!(server.position.as_ref().unwrap().position >= 41);
}

#[tokio::test(start_paused = true)]
async fn a_close_is_tried_again_and_given_up_in_time() {
    // given a server that lost the answers to the save and to the release
    let relay = Relay::start(&Shared::default(), "a").await;
    relay.server().foreign += 1;
    relay.faults([Fault::AnswerLost, Fault::Lost]);
    relay.keeping.close().await.unwrap();
    // and one that is gone
    let relay = Relay::start(&Shared::default(), "a").await;
    relay.server().foreign += 1;
    relay.faults([Fault::Lost; 1000]);
    let closed = tokio::time::timeout(20 * SECOND, relay.keeping.close()).await;
    assert_eq!(closed.unwrap().unwrap_err().kind(), FailureKind::Transient);
    assert!(relay.fence.is_lowered());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_saved_after_the_lease_was_given_back() {
    let server = Shared::default();
    let (mut keeper, _) = keeper(&server, "a");
    keeper.take().await.unwrap();
    keeper.save(&position(5)).await.unwrap();
    keeper.backend.release().await.unwrap();
    let refused = keeper.save(&position(6)).await.unwrap_err();
    assert!(matches!(refused, StoreError::NotHeld { .. }), "{refused}");
    assert_eq!(server.lock().unwrap().position, Some(position(5)));
}

#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_within_a_second_of_the_release() {
    let server = Shared::default();
    let first = Relay::start(&server, "a").await;
    let standby = tokio::spawn({
        let server = Arc::clone(&server);
        async move { Relay::start(&server, "b").await }
    });
    tokio::time::sleep(3600 * SECOND).await;
    assert!(!standby.is_finished());
    first.keeping.close().await.unwrap();
    let second = tokio::time::timeout(SECOND, standby).await.unwrap().unwrap();
    assert!(second.fence.is_up());
    assert_eq!(server.lock().unwrap().epoch, 2);
}

#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_from_a_dead_relay_when_its_lease_is_over() {
    let server = Shared::default();
    let first = Relay::start(&server, "a").await;
    first.server().foreign += 9;
    first.server().rows += 9;
    tokio::time::sleep(SECOND).await;
    drop(first);
    let (mut keeper, fence) = keeper(&server, "b");
    let died = Instant::now();
    let stored = keeper.take().await.unwrap();
    let waited = died.elapsed();
    assert!(waited > 5 * SECOND && waited < LEASE + SECOND, "{waited:?}");
    assert!(fence.is_up() && stored.unwrap().position >= 9);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_without_an_answer_is_found_again() {
    let server = Shared::default();
    server.lock().unwrap().faults.push_back(Fault::AnswerLost);
    let (mut keeper, fence) = keeper(&server, "a");
    keeper.take().await.unwrap_err();
    assert!(!fence.is_up());
    keeper.take().await.unwrap();
    assert!(fence.is_up());
    assert_eq!(server.lock().unwrap().epoch, 1);
}

#[tokio::test(start_paused = true)]
async fn a_refusal_that_stays_ends_the_keeper_and_one_that_passes_does_not() {
    // given a refusal of ten seconds
    let mut relay = Relay::start(&Shared::default(), "a").await;
    relay.faults([Fault::Denied; 10]);
    let ended = tokio::time::timeout(60 * SECOND, relay.keeping.failed()).await;
    assert!(ended.is_err() && relay.fence.is_up());
    // and one without end
    relay.faults(std::iter::repeat_n(Fault::Denied, 10_000));
    let refused_at = Instant::now();
    let error = relay.keeping.failed().await;
    assert!(matches!(error, StoreError::Persists { .. }), "{error}");
    assert_eq!(error.kind(), FailureKind::Definite);
    assert!(refused_at.elapsed() >= DENIED_MAX && relay.fence.is_lowered());
}

#[tokio::test(start_paused = true)]
async fn a_keeper_that_panics_lowers_the_fence_and_is_told_of() {
    let mut relay = Relay::start(&Shared::default(), "a").await;
    relay.faults([Fault::Panic]);
    let error = relay.keeping.failed().await;
    assert!(matches!(error, StoreError::KeeperGone), "{error}");
    assert!(relay.fence.is_lowered());
}

/// One life after the other: takes the lease, works for a while, and closes or dies.
async fn lives(server: Shared, name: String, fences: Arc<Mutex<Vec<Fence>>>, seed: u64) {
    let mut random = fastrand::Rng::with_seed(seed);
    for life in 0.. {
        let (mut keeper, fence) = keeper(&server, &format!("{name}{life}"));
        fences.lock().unwrap().push(fence);
        while keeper.take().await.is_err() {
            tokio::time::sleep(Duration::from_millis(random.u64(1..2000))).await;
        }
        let mut keeping = Keeping::start(keeper, Echo(Arc::clone(&server)));
        let life = Duration::from_millis(random.u64(100..60_000));
        match tokio::time::timeout(life, keeping.failed()).await {
            Ok(_) => {}
            Err(_) if random.bool() => drop(keeping.close().await),
            Err(_) => drop(keeping),
        }
    }
}

fn random_fault(random: &mut fastrand::Rng) -> Option<Fault> {
    let millis = |random: &mut fastrand::Rng, max| Duration::from_millis(random.u64(0..max));
    // Any of them now and then, and longer than a lease.
    match random.u8(0..40) {
        0 => Some(Fault::Slow(millis(random, 20_000), millis(random, 20_000))),
        1 => Some(Fault::Slow(millis(random, 3000), millis(random, 3000))),
        2 => Some(Fault::Lost),
        3 => Some(Fault::AnswerLost),
        4 => Some(Fault::Late(millis(random, 20_000))),
        _ => None,
    }
}

#[tokio::test(start_paused = true)]
async fn two_relays_never_deliver_at_the_same_time_whatever_happens_to_their_statements() {
    let (mut takers, mut worked) = (0, 0);
    for seed in 0..20 {
        let mut random = fastrand::Rng::with_seed(seed);
        let server = Shared::default();
        let fences = Arc::new(Mutex::new(Vec::new()));
        let mut relays = JoinSet::new();
        for name in ["a", "b", "c"] {
            let (server, fences) = (Arc::clone(&server), Arc::clone(&fences));
            relays.spawn(lives(server, name.into(), fences, random.u64(..)));
        }
        let mut delivering = 0;
        for _ in 0..12_000 {
            tokio::time::sleep(SECOND / 20).await;
            let up = fences.lock().unwrap().iter().filter(|fence| fence.is_up()).count();
            assert!(up <= 1, "seed {seed}: {up} relays deliver");
            delivering += up;
            let mut server = server.lock().unwrap();
            server.foreign += u64::from(random.u8(0..4) == 0);
            if server.faults.is_empty() {
                server.faults.extend(random_fault(&mut random));
            }
        }
        takers += server.lock().unwrap().epoch;
        worked += delivering;
    }
    // Faults are many, and still somebody worked most of the time.
    assert!(takers > 200 && worked > 20 * 3000, "{takers} {worked}");
}
