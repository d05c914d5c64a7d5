//! What an operator should know before trusting a NATS server: is there JetStream, and can its
//! streams lose what they acknowledged?

use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::context::AccountErrorKind;
use async_nats::jetstream::stream::{Config, StorageType};
use async_nats::jetstream::{self, ErrorCode};
use futures_util::StreamExt;

use crate::failure::Failure;

/// Streams that are named one by one; more are only counted.
const STREAMS_NAMED_MAX: usize = 5;
/// Retries come within this at the latest, so a stream that remembers less may store twice.
const DUPLICATE_WINDOW_MIN: Duration = Duration::from_secs(120);

/// Warnings about what is stored where.
///
/// # Errors
/// Definite: no JetStream. Transient: no answer.
pub(super) async fn durability(client: &Client) -> Result<Vec<String>, Failure> {
    let context = jetstream::new(client.clone());
    let mut warnings = Vec::new();
    match context.query_account().await {
        Ok(_) => {}
        Err(error) => match error.kind() {
            AccountErrorKind::JetStreamUnavailable => return Err(no_jetstream("on the server")),
            AccountErrorKind::JetStream(error)
                if error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED
                    || error.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT =>
            {
                return Err(no_jetstream("for this account"));
            }
            // A user that may only publish is a good one: it need not see the API.
            AccountErrorKind::TimedOut => {
                warnings.push("NATS did not answer about JetStream: this user may not ask".into());
                return Ok(warnings);
            }
            _ => return Err(Failure::transient(error)),
        },
    }
    let mut streams = context.streams();
    let mut unnamed = 0;
    while let Some(stream) = streams.next().await {
        let Ok(stream) = stream else {
            warnings.push("streams could not be listed, so their storage is not checked".into());
            break;
        };
        let Some(warning) = weakness(&stream.config) else { continue };
        if warnings.len() < STREAMS_NAMED_MAX {
            warnings.push(warning);
        } else {
            unnamed += 1;
        }
    }
    if unnamed > 0 {
        warnings.push(format!("{unnamed} more streams have such weaknesses"));
    }
    warnings.push(
        "NATS acknowledges before it syncs to disk: by default (sync_interval 2m) a power loss \
         may take the last two minutes of a stream with one replica; set `sync_interval: always` \
         or use three replicas"
            .to_owned(),
    );
    Ok(warnings)
}

fn no_jetstream(place: &str) -> Failure {
    Failure::definite(format!(
        "JetStream is not enabled {place}, so NATS would keep nothing; enable it (`nats-server \
         -js`, or `jetstream: enabled` in its configuration)"
    ))
}

fn weakness(config: &Config) -> Option<String> {
    let mut parts = Vec::new();
    if config.storage == StorageType::Memory {
        parts.push("is kept in memory and lost with the server".to_owned());
    } else if config.num_replicas <= 1 {
        parts.push("has one replica, and is lost with that server's disk".to_owned());
    }
    if config.duplicate_window < DUPLICATE_WINDOW_MIN {
        parts.push(format!(
            "forgets message ids after {:?} (duplicate_window), so a retry may be stored twice or \
             late",
            config.duplicate_window
        ));
    }
    if config.no_ack {
        parts.push("acknowledges nothing (no_ack), so no row can be confirmed there".to_owned());
    }
    (!parts.is_empty()).then(|| format!("stream \"{}\" {}", config.name, parts.join("; it ")))
}
