//! One connection from its first byte to its last, on a thread of its own.
//!
//! async-nats runs detached tasks: they reconnect for ever and flush what was queued meanwhile
//! into the new connection (`ConnectionHandler::process` and `handle_disconnect`), so a publish
//! that was given up may land after its successor. Dropping the client stops them only after
//! the queue was worked off, and `max_reconnects` allows one at least. So each connection gets a
//! single-threaded runtime of its own, and this file owns it:
//!
//! ```text
//!  Connecting ──▶ Up ──▶ (breach: disconnected, ack timeout, close) ──▶ runtime dropped ──▶ Gone
//!      └───────▶ Failed
//! ```
//!
//! - The library's first reconnect waits an hour (`nats/events.rs`); its `Disconnected` event
//!   is a breach, and a breach ends the generation at once.
//! - Dropping a single-threaded runtime drops every task on it before it returns: the queue with
//!   its publishes, and the socket. `Gone` is said after that, on the same thread, and nobody
//!   returns `Unknown` before `Gone`.
//! - What the kernel had already taken may still reach the server after the close. The stream
//!   drops it by its `Nats-Msg-Id` once the retry is stored, within `duplicate_window`.

use std::sync::Arc;

use async_nats::{Client, ServerAddr, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::watch;

use super::acks::Acks;
use super::events::{connect_failure, guard};
use super::settings::Settings;
use crate::failure::{Failure, FailureKind};

/// Why a connection was given up.
#[derive(Debug, Clone)]
pub(super) struct Breach {
    pub(super) kind: FailureKind,
    pub(super) reason: Arc<str>,
}

#[derive(Clone)]
enum Phase {
    Connecting,
    Up(Arc<Live>),
    Failed(Breach),
    Gone,
}

/// What lanes need of a connection that is up.
pub(super) struct Live {
    pub(super) client: Client,
    pub(super) acks: Arc<Acks>,
}

/// One connection; never comes back once it is gone.
pub(super) struct Generation {
    phase: watch::Receiver<Phase>,
    breach: watch::Sender<Option<Breach>>,
}

impl Generation {
    /// Starts to connect.
    pub(super) fn start(settings: Arc<Settings>) -> Result<Self, Failure> {
        let (phase_sender, phase) = watch::channel(Phase::Connecting);
        let (breach, _) = watch::channel(None);
        let thread_breach = breach.clone();
        let run = move || {
            let last = live_and_die(&settings, &phase_sender, &thread_breach);
            phase_sender.send_replace(last);
        };
        std::thread::Builder::new()
            .name("walpost-nats".to_owned())
            .spawn(run)
            .map_err(|error| Failure::transient(format!("could not start a thread: {error}")))?;
        Ok(Self { phase, breach })
    }

    /// Gives the connection up; the first reason counts.
    pub(super) fn breach(&self, kind: FailureKind, reason: &str) {
        breach(&self.breach, kind, reason);
    }

    /// Why it was given up, once it was.
    pub(super) fn breached(&self) -> Option<Breach> {
        self.breach.borrow().clone()
    }

    /// Whether its tasks and socket no longer exist.
    pub(super) fn is_gone(&self) -> bool {
        is_over(&self.phase.borrow())
    }

    /// Waits until its tasks and its socket no longer exist.
    ///
    /// # Cancel safety
    /// Cancel safe.
    pub(super) async fn gone(&self) {
        // An error means that the thread itself ended, and with it everything that it owned.
        drop(self.phase.clone().wait_for(is_over).await);
    }

    /// Waits for the connection, at most the connect timeouts of all servers.
    ///
    /// # Cancel safety
    /// Cancel safe: the attempt goes on.
    pub(super) async fn live(&self) -> Result<Arc<Live>, Failure> {
        let mut phase = self.phase.clone();
        let settled = phase.wait_for(|phase| !matches!(phase, Phase::Connecting)).await;
        match settled.as_deref() {
            Ok(Phase::Up(live)) => Ok(Arc::clone(live)),
            Ok(Phase::Failed(failed)) => Err(Failure::new(failed.kind, failed.reason.to_string())),
            // A server may refuse us right after the handshake, faster than anybody looks.
            Ok(Phase::Connecting | Phase::Gone) | Err(_) => Err(match self.breached() {
                Some(breach) => Failure::new(breach.kind, breach.reason.to_string()),
                None => Failure::transient("the connection to NATS was closed"),
            }),
        }
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.breach(FailureKind::Transient, "the sink was closed");
    }
}

fn is_over(phase: &Phase) -> bool {
    match phase {
        Phase::Connecting | Phase::Up(_) => false,
        Phase::Failed(_) | Phase::Gone => true,
    }
}

fn breach(place: &watch::Sender<Option<Breach>>, kind: FailureKind, reason: &str) {
    place.send_if_modified(|breach| {
        let first = breach.is_none();
        if first {
            *breach = Some(Breach { kind, reason: reason.into() });
        }
        first
    });
}

/// The thread's whole life: returns after every task and socket of the connection is dropped.
fn live_and_die(
    settings: &Settings,
    phase: &watch::Sender<Phase>,
    breach: &watch::Sender<Option<Breach>>,
) -> Phase {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            let reason = format!("could not start a runtime: {error}").into();
            return Phase::Failed(Breach { kind: FailureKind::Transient, reason });
        }
    };
    let outcome = runtime.block_on(hold(settings, phase, breach));
    // Drops all tasks here and now; only waits for no name lookup that may still hang.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => Phase::Gone,
        Err(failure) => {
            Phase::Failed(Breach { kind: failure.kind(), reason: failure.to_string().into() })
        }
    }
}

/// Connects, and hears acks until the breach.
async fn hold(
    settings: &Settings,
    phase: &watch::Sender<Phase>,
    breach: &watch::Sender<Option<Breach>>,
) -> Result<(), Failure> {
    let mut breaches = breach.subscribe();
    let (live, mut inbox) = tokio::select! {
        // A close must not wait for a connect.
        biased;
        _ = breaches.wait_for(Option::is_some) => return Ok(()),
        connected = connect(settings, breach) => connected?,
    };
    let acks = Arc::clone(&live.acks);
    phase.send_replace(Phase::Up(Arc::new(live)));
    tokio::select! {
        // The breach first: acks that came before it are heard below.
        biased;
        _ = breaches.wait_for(Option::is_some) => {}
        () = hear(&mut inbox, &acks) => {}
    }
    while let Some(Some(reply)) = inbox.next().now_or_never() {
        acks.hear(&reply);
    }
    Ok(())
}

async fn hear(inbox: &mut Subscriber, acks: &Acks) {
    while let Some(reply) = inbox.next().await {
        acks.hear(&reply);
    }
}

/// Tries each server once, from a random one on.
async fn connect(
    settings: &Settings,
    breach: &watch::Sender<Option<Breach>>,
) -> Result<(Live, Subscriber), Failure> {
    let count = settings.servers.len();
    let first = fastrand::usize(..count);
    let mut failure = Failure::transient("no NATS server is configured");
    for step in 0..count {
        let server = &settings.servers[(first + step) % count];
        let attempt = connect_to(server, settings, breach);
        failure = match tokio::time::timeout(settings.connect_timeout, attempt).await {
            Ok(Ok(connected)) => return Ok(connected),
            // Another server of the cluster has the same users.
            Ok(Err(failure)) if failure.kind() != FailureKind::Transient => return Err(failure),
            Ok(Err(failure)) => failure,
            Err(_) => Failure::transient(format!(
                "NATS server {} did not answer within {:?}",
                address(server),
                settings.connect_timeout
            )),
        };
    }
    Err(failure)
}

fn address(server: &ServerAddr) -> String {
    format!("{}:{}", server.host(), server.port())
}

async fn connect_to(
    server: &ServerAddr,
    settings: &Settings,
    breach: &watch::Sender<Option<Breach>>,
) -> Result<(Live, Subscriber), Failure> {
    let inbox = format!("_INBOX.{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
    let acks = Arc::new(Acks::new(inbox));
    let place = breach.clone();
    let give_up = move |kind, reason: &str| self::breach(&place, kind, reason);
    let options = guard(settings.connect_options()?, Arc::clone(&acks), give_up);
    let client =
        options.connect(server.clone()).await.map_err(|error| connect_failure(&error, server))?;
    let subscription = client.subscribe(acks.subscription()).await;
    let inbox = subscription
        .map_err(|error| Failure::transient(format!("could not subscribe to acks: {error}")))?;
    Ok((Live { client, acks }, inbox))
}
