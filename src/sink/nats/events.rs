//! What async-nats reports of a connection, and which of it gives the connection up.
//!
//! Owns the options that take reconnecting away from the library, and the server's error texts.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{ConnectError, ConnectErrorKind, ConnectOptions, Event, ServerAddr, ServerError};

use super::acks::Acks;
use super::{BATCH_MESSAGES_MAX, LANES_MAX};
use crate::failure::{Failure, FailureKind};

/// Longer than a generation lives after its breach, by far.
const RECONNECT_NEVER: Duration = Duration::from_secs(3600);
/// An idle connection that answers no two of these is over.
const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Takes reconnecting away from the library, and listens to what ends a connection.
pub(super) fn guard(
    options: ConnectOptions,
    acks: Arc<Acks>,
    give_up: impl Fn(FailureKind, &str) + Send + Sync + 'static,
) -> ConnectOptions {
    let connected_before = AtomicBool::new(false);
    options
        .ignore_discovered_servers()
        .ping_interval(PING_INTERVAL)
        // An ack for everything that may be in flight; beyond it the library drops replies.
        .subscription_capacity(LANES_MAX * BATCH_MESSAGES_MAX * 2)
        .reconnect_delay_callback(move |_| match connected_before.swap(true, Ordering::Relaxed) {
            false => Duration::ZERO,
            true => RECONNECT_NEVER,
        })
        .event_callback(move |event| {
            if let Some((kind, reason)) = heed(&event, &acks) {
                give_up(kind, &reason);
            }
            std::future::ready(())
        })
}

/// Why the connection is to be given up, if it is.
fn heed(event: &Event, acks: &Acks) -> Option<(FailureKind, String)> {
    Some(match event {
        Event::ServerError(ServerError::Other(text)) => match publish_denied(text) {
            Some(subject) => {
                acks.deny(subject);
                return None;
            }
            // Without its inbox the sink hears no ack at all.
            None if text.starts_with("Permissions Violation for Subscription") => {
                (FailureKind::Denied, format!("NATS: {text}; allow the user to subscribe there"))
            }
            None if text.starts_with("Permissions Violation")
                || text.contains("Authentication") =>
            {
                (FailureKind::Denied, format!("NATS: {text}"))
            }
            // Whatever it was about, some message may wait for an ack in vain.
            None => (FailureKind::Transient, format!("NATS: {text}")),
        },
        Event::ServerError(error @ ServerError::AuthorizationViolation) => {
            (FailureKind::Denied, error.to_string())
        }
        Event::ServerError(error @ ServerError::SlowConsumer(_)) => {
            (FailureKind::Transient, error.to_string())
        }
        Event::SlowConsumer(_) => (FailureKind::Transient, "acks of NATS were dropped".to_owned()),
        Event::Disconnected | Event::Closed => {
            (FailureKind::Transient, "the connection to NATS was lost".to_owned())
        }
        Event::ClientError(error) => (FailureKind::Transient, error.to_string()),
        // The server closes a lame duck's connections by and by; that is a disconnect then.
        Event::Connected | Event::LameDuckMode | Event::Draining => return None,
    })
}

/// `Permissions Violation for Publish to "subject"` (nats-server, `client.go`).
fn publish_denied(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("Permissions Violation for Publish to \"")?;
    rest.split_once('"').map(|(subject, _)| subject)
}

pub(super) fn connect_failure(error: &ConnectError, server: &ServerAddr) -> Failure {
    let (host, port) = (server.host(), server.port());
    let error_text = error.to_string();
    // The client says it twice: "authorization violation: nats: authorization violation".
    let reason = error_text.rsplit(": nats: ").next().unwrap_or(&error_text);
    let mut text = format!("could not connect to NATS server {host}:{port}: {reason}");
    match error.kind() {
        ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
            text.push_str("; check user and password, token, or the credentials file");
            Failure::denied(text)
        }
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Tls
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => Failure::transient(text),
    }
}
